"""Whole networks: an evaluation forward, a training forward, and the memory's initialisation."""

import re

import pytest
import torch
from torch import Tensor

from pinmem_core.config import LossConfig, ModelConfig
from pinmem_core.methods.losses import cross_entropy, read_loss, training_losses
from pinmem_core.models import Segmenter
from pinmem_core.models.decoders.base import resize
from pinmem_core.models.memory import class_prototypes

from .figures import Computed, under
from .fixtures import Fixture, every_file
from .names import batch_counts, fingerprint, model_config, official_tensors, stride_of
from .networks import features, rule_segmenter

pytestmark = pytest.mark.reference

MODE = re.compile(r"(\w+)/(eval|train)/")


def described_config(fixture: Fixture) -> ModelConfig:
    """Return the architecture by its description, the stride by the size of layer4's output."""
    architecture, memory = re.search(r"(\w+) with memory=(\w+)", fixture.about["what"]).groups()
    layer4 = fixture.about["tensors"]["a/eval/feat_stats/layer4"]["meaning"]
    position_height = int(re.search(r"\((?:\d+, ){2}(\d+),", layer4)[1])
    stride = stride_of(fixture.tensors["a/eval/argmax"].shape[1], position_height)
    return model_config(architecture, stride, memory=memory == "True")


def inputs(fixture: Fixture, case: str) -> tuple[Tensor, Tensor]:
    """Return images and labels of case "a" or "b"; many files share those of one."""
    images, height, width = fixture.tensors[f"{case}/eval/argmax"].shape
    return (
        fixture.input(f"{case}/input", (images, 3, height, width)),
        fixture.input(f"{case}/label", (images, height, width)).long(),
    )


@every_file("net")
def test_network(fixture: Fixture) -> None:
    config = described_config(fixture)
    modes = {match.groups() for key in fixture.tensors if (match := MODE.match(key))}
    segmenter = rule_segmenter(config, fixture.seed, fixture.dtype)
    fixture.compare_fact("sha256_of_float32_state_dict", fingerprint(segmenter))
    for case, mode in sorted(modes):
        segmenter = rule_segmenter(config, fixture.seed, fixture.dtype)
        run = evaluation if mode == "eval" else training
        fixture.compare(under(f"{case}/{mode}", run(segmenter, *inputs(fixture, case))))
        if mode == "train":
            counts = batch_counts(segmenter)
            fixture.compare_fact(f"{case}_train_after_num_batches_tracked", counts)


@torch.no_grad()
def evaluation(segmenter: Segmenter, images: Tensor, labels: Tensor) -> Computed:
    with features(segmenter.eval()) as layers:
        output = segmenter.run(images)
        logits = resize(output.logits, images.shape[-2:])
    computed = {
        "logits": logits,
        "argmax": logits.argmax(dim=1),
        "val_loss": cross_entropy(logits, labels),
        "inter_feature": output.encoding.feature,
        "updated_query": layers["memory"],
        **under("feat", layers),
    }
    if output.scores is not None:
        computed["softmax_score_memory"] = output.scores.softmax(dim=1).permute(0, 2, 3, 1)
        computed["readloss"] = read_loss(output.scores, labels, 1)
    return computed


@torch.no_grad()
def training(segmenter: Segmenter, images: Tensor, labels: Tensor) -> Computed:
    with features(segmenter.train()) as layers:
        losses = training_losses(
            segmenter, images, labels, LossConfig(), write=segmenter.memory is not None
        )
    computed = {
        **losses.terms,
        "inter_feature": layers["inter_feature"],
        **under("feat", layers),
        **under("after/buf", official_tensors(segmenter)),
    }
    if losses.written is not None:
        computed["m_items_out"] = losses.written
    return computed


@every_file("net init")
def test_initialisation(fixture: Fixture) -> None:
    classes = len(fixture.tensors["m_items"])
    last = int(re.search(r"it1\.\.it(\d+)", fixture.settings["inputs"])[1])
    depth, stride = map(int, re.search(r"R(\d+)-D(\d+) net", fixture.about["what"]).groups())
    config = model_config(f"DeepR{depth}V3PlusD", stride, memory=True)
    segmenter = rule_segmenter(config, fixture.seed, fixture.dtype).eval()
    keys = [f"it{i}" for i in range(1, last + 1)]
    batches = [(fixture.input(f"{key}/input"), fixture.input(f"{key}/label")) for key in keys]
    with torch.no_grad():
        prototypes = class_prototypes(
            (
                (segmenter.encode(images.flatten(0, 1)).feature, labels.flatten(0, 1).long())
                for images, labels in batches
            ),
            classes,
        )
    fixture.compare({"m_items": prototypes})
