"""LoRA and Rein: equations, initialisation, and what is trained."""

import copy
import math
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import small_config
from safetensors.torch import save_file
from test_backbones import VIT
from testers import BackboneTester, images
from torch import nn

from pinmem_core.config import ModelConfig, OptimConfig
from pinmem_core.errors import ConfigError
from pinmem_core.models import Segmenter
from pinmem_core.models.adapters.lora import LoRA, LoRALinear
from pinmem_core.models.adapters.rein import ReinTokens
from pinmem_core.models.backbones import backbones
from pinmem_core.training.optim import parameter_groups
from pinmem_core.training.setup import initial_segmenter, resolve
from pinmem_core.training.step import TrainStep

DINO = "timm:vit_small_patch14_dinov2"


@pytest.mark.slow
class TestLoRA(BackboneTester):
    model: ClassVar = {
        "backbone": "timm:vit_tiny_patch16_224",
        "backbone_options": VIT,
        "adapters": {"lora": {"rank": 2}},
    }


@pytest.mark.slow
class TestRein(BackboneTester):
    model: ClassVar = {
        "backbone": "timm:vit_tiny_patch16_224",
        "backbone_options": VIT,
        "adapters": {"rein": {"tokens": 5, "rank": 2}},
    }


def vit(decoder: str = "linear", **adapters: object) -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=DINO, backbone_options=VIT, decoder=decoder, feature_dim=16, adapters=adapters
    )
    return Segmenter(config).eval()


def test_lora_equals_its_equation():
    torch.manual_seed(0)
    linear = nn.Linear(5, 3).double()
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    LoRALinear.adapt(linear, rank=2, alpha=8)
    x = torch.randn(4, 5, dtype=torch.float64)
    assert torch.equal(linear(x), x @ weight.T + bias)  # B = 0
    nn.init.normal_(linear.lora_b)
    for row in range(4):
        for output in range(3):
            update = sum(
                linear.lora_b[output, r] * linear.lora_a[r, i] * x[row, i]
                for r in range(2)
                for i in range(5)
            )
            expected = weight[output] @ x[row] + bias[output] + 8 / 2 * update
            assert linear(x)[row, output].item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_minor_part_of_a_weight_becomes_the_update():
    torch.manual_seed(0)
    linear = nn.Linear(6, 4).double()
    whole = linear.weight.detach().clone()
    LoRALinear.adapt(linear, rank=2, alpha=3, minor=True)
    linear.split_minor()
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(linear.weight, whole) and torch.equal(
        linear(x), F.linear(x, whole, linear.bias)
    )
    update = 3 / 2 * linear.lora_b @ linear.lora_a
    nn.init.zeros_(linear.lora_b)  # leaves the frozen part
    frozen = linear(torch.eye(6, dtype=torch.float64)).T - linear.bias[:, None]
    assert (frozen + update - whole).abs().max() < 1e-6
    values = torch.linalg.svdvals(whole)
    assert torch.linalg.svdvals(frozen)[:2].allclose(values[:2], atol=1e-6)
    assert torch.linalg.svdvals(update)[:2].allclose(values[2:], atol=1e-6)


def test_rein_equals_its_equation():
    torch.manual_seed(0)
    dim, tokens = 6, 4
    rein = ReinTokens(blocks=2, dim=dim, tokens=tokens, rank=3).double()
    features = torch.randn(2, 5, dim, dtype=torch.float64)
    refined = rein.refine(features, 1)
    of_layer = rein.a[1] @ rein.b[1]
    for image in range(2):
        for pixel in range(5):
            f = features[image, pixel]
            scores = [(f @ of_layer[m]).item() / math.sqrt(dim) for m in range(tokens)]
            total = sum(math.exp(score) for score in scores)
            read = torch.zeros(dim, dtype=torch.float64)
            for m in range(1, tokens):  # without the sink
                read += math.exp(scores[m]) / total * rein.token_map(of_layer[m])
            expected = f + 0.001 * rein.feature_map(read + f)
            assert (refined[image, pixel] - expected).abs().max() < 1e-9


def test_the_queries_of_rein_equal_their_equation():
    torch.manual_seed(0)
    blocks, dim, tokens, width = 3, 6, 4, 5
    rein = ReinTokens(blocks, dim=dim, tokens=tokens, rank=3).double()
    rein.add_queries(width)
    queries = rein.queries()
    weight, bias = rein.query_map.weight, rein.query_map.bias
    merge, shift = rein.query_merge.weight, rein.query_merge.bias
    for m in range(tokens):
        mapped = [[0.0] * width for _ in range(blocks)]
        for i in range(blocks):
            token = [
                sum((rein.a[i, m, r] * rein.b[i, r, c]).item() for r in range(3))
                for c in range(dim)
            ]
            for d in range(width):
                mapped[i][d] = bias[d].item() + sum(
                    weight[d, c].item() * token[c] for c in range(dim)
                )
        of_d = [[mapped[i][d] for i in range(blocks)] for d in range(width)]
        merged = [max(v) for v in of_d] + [sum(v) / blocks for v in of_d] + [v[-1] for v in of_d]
        for d in range(width):
            expected = shift[d].item() + sum(
                merge[d, k].item() * merged[k] for k in range(3 * width)
            )
            assert abs(queries[m, d].item() - expected) < 1e-9


def test_a_mask_decoder_takes_its_queries_from_rein():
    segmenter = vit(decoder="mask", rein={"tokens": 7, "rank": 2})
    assert not {"decoder.queries", "decoder.places"} & segmenter.state_dict().keys()
    output = segmenter.run(images(32, 32))
    assert output.decoded["classes"][0].shape == (2, 7, 20)
    places = segmenter.backbone.rein.queries()
    contents = segmenter.decoder.norm(segmenter.decoder.content(places))
    expected = segmenter.decoder.classifier(contents).expand(2, -1, -1)
    assert output.decoded["classes"][0].allclose(expected, atol=1e-6)
    output.decoded["classes"][-1].square().mean().backward()
    assert segmenter.backbone.rein.query_map.weight.grad.any()
    twin = copy.deepcopy(segmenter)
    nn.init.zeros_(twin.backbone.rein.query_merge.weight)  # the copy has queries of its own
    with torch.no_grad():
        assert not torch.equal(twin(images(32, 32)), segmenter(images(32, 32)))


@torch.no_grad()
def test_rein_refines_the_patches_of_each_block_and_not_the_class_token():
    plain, rein = vit(), vit(rein={"tokens": 5, "rank": 2})
    rein.backbone.network.load_state_dict(plain.backbone.network.state_dict())
    seen: list[torch.Tensor] = []
    for segmenter in (plain, rein):
        block = segmenter.backbone.blocks()[0]
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
        segmenter.encode(images(32, 32))
    assert torch.equal(seen[0][:, 0], seen[1][:, 0])
    expected = rein.backbone.rein.refine(seen[0][:, 1:], 0)
    assert torch.equal(seen[1][:, 1:], expected)


@pytest.mark.parametrize(
    ("adapters", "trained"),
    [
        ({"lora": {"rank": 2}}, {"lora_a", "lora_b"}),
        ({"lora": {"rank": 2, "bias": True}}, {"lora_a", "lora_b", "bias"}),
        ({"bias": {}}, {"bias"}),
        ({"rein": {}}, {"a", "b", "scale", "weight", "bias"}),
    ],
)
def test_pretrained_weights_are_frozen(adapters, trained):
    segmenter = vit(**adapters)
    pretrained = segmenter.backbone.network
    names = {n for n, p in segmenter.backbone.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in names if "pyramid" not in name} == trained
    assert any("pyramid" in name for name in names)  # it has no pretrained weights
    if "rein" in adapters:
        assert not any(p.requires_grad for p in pretrained.parameters())
    assert all(p.requires_grad for p in segmenter.decoder.parameters())


@pytest.mark.slow
def test_a_copy_has_tokens_of_its_own():
    original = vit(rein={"tokens": 5, "rank": 2})
    twin = copy.deepcopy(original)
    with torch.no_grad():
        twin.backbone.rein.scale.fill_(1.0)
        assert not torch.equal(twin(images(32, 32)), original(images(32, 32)))
        twin.backbone.rein.scale.copy_(original.backbone.rein.scale)
        assert torch.equal(twin(images(32, 32)), original(images(32, 32)))


@torch.no_grad()
def test_soma_begins_at_the_pretrained_network(tmp_path):
    plain = backbones.get(DINO)(16, **VIT)
    save_file(plain.network.state_dict(), tmp_path / "vit.safetensors")
    config = small_config(
        init_weights=str(tmp_path / "vit.safetensors"),
        model__backbone=DINO,
        model__backbone_options=VIT,
        model__adapters={"lora": {"rank": 2, "init": "minor", "first_block": 1}},
    )
    segmenter = initial_segmenter(config)
    updated = [m for m in segmenter.modules() if isinstance(m, LoRALinear)]
    assert len(updated) == 4 * (len(plain.blocks()) - 1)
    assert all(m.lora_b.any() for m in updated)
    ours = segmenter.backbone.eval()(images(32, 32))[2]
    assert ours.allclose(plain.eval()(images(32, 32))[2], atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "resnet18", "adapters": {"lora": {}}}, "LoRA finds no linear map"),
        ({"backbone": "resnet18", "adapters": {"rein": {}}}, "Rein needs a plain ViT"),
        ({"adapters": {"lora": {"rank": 500}}}, "exceeds the rank"),
        ({"adapters": {"lora": {"rank": 0}}}, "model.adapters.lora.rank"),
        ({"adapters": {"lora": {"targets": ["nothing"]}}}, "LoRA finds no linear map"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(values, message):
    base = {"backbone": DINO, "backbone_options": VIT, "output_stride": 16}
    if "backbone" in values:
        base = {"output_stride": 16}
    with pytest.raises(ConfigError, match=message):
        Segmenter(ModelConfig.model_validate({**base, **values}))


def test_settings_have_defaults_of_the_papers():
    assert (LoRA().rank, LoRA().init) == (16, "random")


@pytest.mark.parametrize(
    ("tune", "trained"),
    [
        ("full", {"weight", "bias"}),
        ("frozen", set()),
        ("bias", {"bias"}),
        ("lora", {"lora_a", "lora_b"}),
        ("rein", {"a", "b", "scale", "weight", "bias"}),
    ],
)
def test_a_tuning_mode_says_what_is_trained(tmp_path, tune, trained):
    plain = backbones.get(DINO)(16, **VIT)
    save_file(plain.network.state_dict(), tmp_path / "vit.safetensors")
    config = resolve(
        small_config(
            tune=tune,
            init_weights=str(tmp_path / "vit.safetensors"),
            model__backbone=DINO,
            model__backbone_options=VIT,
            model__adapters={"lora": {"rank": 3}} if tune == "lora" else {},
        )
    )
    assert resolve(config) == config
    step = TrainStep(config, initial_segmenter(config), torch.device("cpu"))
    backbone = step.segmenter.backbone
    names = {n for n, p in backbone.named_parameters() if p.requires_grad and "pyramid" not in n}
    assert {name.rpartition(".")[2] for name in names} >= trained
    assert bool(names) == bool(trained)
    assert any(p.requires_grad for n, p in backbone.named_parameters() if "pyramid" in n)
    if tune == "lora":
        assert backbone.blocks()[0].attn.qkv.lora_a.shape[0] == 3


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_adapters_of_random_weights_are_warned_of(tune):
    config = resolve(small_config(tune=tune, model__backbone=DINO, model__backbone_options=VIT))
    heard = []
    initial_segmenter(config, on_event=heard.append)
    warnings = [event.message for event in heard if event.warning]
    assert [("random weights" in text) for text in warnings] == [True] * (tune == "lora")


@pytest.mark.parametrize(
    ("tune", "trained"),
    [
        pytest.param("bias", {"bias"}, marks=pytest.mark.slow),
        ("lora", {"lora_a", "lora_b"}),
        pytest.param("rein", {"a", "b", "scale", "weight", "bias"}, marks=pytest.mark.slow),
    ],
)
def test_a_frozen_backbone_leaves_adapters_trained(tmp_path, tune, trained):
    plain = backbones.get(DINO)(16, **VIT)
    save_file(plain.network.state_dict(), tmp_path / "vit.safetensors")
    config = resolve(
        small_config(
            tune=tune,
            init_weights=str(tmp_path / "vit.safetensors"),
            optim__freeze="backbone",
            model__backbone=DINO,
            model__backbone_options=VIT,
        )
    )
    step = TrainStep(config, initial_segmenter(config), torch.device("cpu"))
    backbone = step.segmenter.backbone
    names = {n for n, p in backbone.named_parameters() if p.requires_grad and "pyramid" not in n}
    assert {name.rpartition(".")[2] for name in names} == trained
    assert not backbone.network.training


def test_adapters_train_together_in_any_order():
    for names in (["bias", "lora"], ["lora", "bias"]):
        backbone = vit(**{name: {} for name in names}).backbone
        trained = {n for n, p in backbone.network.named_parameters() if p.requires_grad}
        assert {name.rpartition(".")[2] for name in trained} == {"bias", "lora_a", "lora_b"}


def test_tokens_and_positions_have_no_weight_decay():
    segmenter = vit(rein={}, lora={"rank": 2})
    segmenter.backbone.requires_grad_(True)
    groups = parameter_groups(OptimConfig(decay_vectors=False, weight_decay=0.05), segmenter)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    network = segmenter.backbone.network
    rein = segmenter.backbone.rein
    without = [network.pos_embed, network.cls_token, rein.a, rein.b, rein.scale]
    assert {decay[id(parameter)] for parameter in without} == {0.0}
    qkv = segmenter.backbone.blocks()[0].attn.qkv
    assert {decay[id(parameter)] for parameter in (qkv.weight, qkv.lora_a, qkv.lora_b)} == {0.05}
