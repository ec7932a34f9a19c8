"""Checkpoints of the original implementation become pinmem's, or are refused in a sentence."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.fixtures import ABSENT, FOLDER, Fixture, manifest
from reference.names import official_tensors
from reference.weight_rule import value
from torch import Tensor

from pinmem_core.config import ModelConfig
from pinmem_core.errors import CheckpointError, DataError
from pinmem_core.export.official import MEMORY, convert_official, recognized
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint

CLASSES, DIM = 5, 8

PLACES = {
    "layer0.0.weight": "backbone.conv1.weight",
    "layer0.1.running_mean": "backbone.bn1.running_mean",
    "layer2.0.downsample.0.weight": "backbone.layer2.0.downsample.0.weight",
    "layer4.1.bn2.bias": "backbone.layer4.1.bn2.bias",
    "aspp.img_conv.0.weight": "decoder.pooled.0.weight",
    "aspp.features.3.1.weight": "decoder.pyramid.3.1.weight",
    "bot_aspp.0.weight": "decoder.projection.0.weight",
    "bot_fine.1.running_var": "decoder.fine.1.running_var",
    "final1.3.weight": "decoder.fusion.3.weight",
    "final2.0.bias": "decoder.classifier.bias",
    "dsn.4.weight": "auxiliary.4.weight",
    "memory.output.0.weight": "memory.fuse.0.weight",
    "memory.writenet.writefeat.1.bias": "memory.write_map.1.bias",
    "memory.clsfier.weight": "memory.classifier.weight",
    "memory.m_items": "memory.slots",
}
"""Where some of the original's tensors belong, one of each part."""


def tiny(**values: object) -> ModelConfig:
    """A ResNet-18 of the family, its head as narrow as can be."""
    settings = {"backbone": "resnet18", "output_stride": 32, "num_classes": CLASSES}
    return ModelConfig(**(settings | {"feature_dim": DIM} | values))


def state_of(config: ModelConfig) -> dict[str, Tensor]:
    """A state under the original's names, each tensor with a value of its own, stored once."""
    with torch.device("meta"):
        tensors = official_tensors(Segmenter(config))
    return {
        name: torch.tensor(n / 1000).expand(tensor.shape)
        if tensor.is_floating_point()
        else torch.tensor(n)
        for n, (name, tensor) in enumerate(tensors.items())
    }


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    return state_of(tiny())


def training_state(state: dict[str, Tensor], prefix: str = "module.") -> dict[str, object]:
    """What the original's training writes."""
    content: dict[str, object] = {
        "state_dict": {prefix + name: t for name, t in state.items() if name != MEMORY},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.01, "foreach": None}]},
        "scheduler": {"last_epoch": 1, "lr_lambdas": [None]},
        "epoch": 40,
        "mean_iu": 0,
    }
    return content | ({"memory": state[MEMORY]} if MEMORY in state else {})


def saved(content: object, folder: Path, *, legacy: bool = False) -> Path:
    path = folder / "last.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in state.items() if not name.startswith("memory.")}


def test_every_tensor_goes_to_its_place_and_survives_its_file(whole, tmp_path):
    path = saved(training_state(whole), tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    segmenter, about = convert_official(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert segmenter.config == tiny()
    assert not segmenter.training
    state = segmenter.state_dict()
    for theirs, ours in PLACES.items():
        assert torch.equal(state[ours], whole[theirs]), ours
    assert all(p.requires_grad and p.is_leaf for p in segmenter.parameters())
    assumed = ["method pinmem", "output stride 32", "its 5 classes, the first of Cityscapes' 19"]
    assumed += ["a memory read by gumbel, written with momentum 0.8"]
    shown = {"file": "last.pth", "sha256": digest, "method": "pinmem", "assumed": assumed}
    assert about == {"converted": shown}


def test_the_converted_network_is_a_checkpoint_as_any_other(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = Segmenter(tiny(num_classes=19)).eval()
        images = torch.rand(1, 3, 64, 64)
    path = saved(training_state(official_tensors(original)), tmp_path)
    save_checkpoint(*_with_folder(convert_official(path), tmp_path / "converted"))
    loaded, config = load_checkpoint(tmp_path / "converted")
    with torch.no_grad():
        assert torch.equal(loaded(images), original(images))
    assert config["converted"]["file"] == "last.pth"


def _with_folder(converted, folder):
    segmenter, about = converted
    return segmenter, folder, about


FORMS = {
    "no prefix": lambda whole: training_state(whole, prefix=""),
    "bare": plain,
    "bare, wrapped": lambda whole: {f"module.{k}": t for k, t in plain(whole).items()},
    "memory inside": lambda whole: dict(whole),
    "loss buffers": lambda whole: training_state(whole | {"criterion.weight": torch.ones(3)}),
    "score of numpy": lambda whole: training_state(whole) | {"mean_iu": np.float64(0.5)},
    "memory with gradient": lambda whole: (
        training_state(whole) | {"memory": whole[MEMORY].clone().requires_grad_()}
    ),
    "no counters": lambda whole: training_state(
        {name: t for name, t in whole.items() if "num_batches" not in name}
    ),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_the_forms_a_file_may_have(whole, tmp_path, form, legacy):
    content = FORMS[form](whole)
    segmenter, about = convert_official(saved(content, tmp_path, legacy=legacy))
    state = segmenter.state_dict()
    for theirs, ours in PLACES.items():
        if "bare" not in form or not theirs.startswith("memory."):
            assert torch.equal(state[ours], whole[theirs]), ours
    assert (segmenter.memory is None) == ("bare" in form)
    assert about["converted"]["method"] == ("aggregate" if "bare" in form else "pinmem")
    assert not any(buffer.requires_grad for buffer in segmenter.buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_precisions_become_float32(whole, tmp_path, dtype):
    cast = {k: t.to(dtype) if t.is_floating_point() else t for k, t in whole.items()}
    segmenter, _ = convert_official(saved(training_state(cast), tmp_path))
    for theirs, ours in PLACES.items():
        tensor = segmenter.state_dict()[ours]
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, cast[theirs].float())


def test_a_score_of_old_numpy_is_read(whole, tmp_path):
    content = training_state(whole) | {"mean_iu": np.float64(0.5)}
    path = saved(content, tmp_path, legacy=True)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    assert convert_official(path)[0].memory is not None


@pytest.mark.parametrize(
    "config",
    [
        tiny(),
        tiny(memory=None),
        ModelConfig(backbone="resnet50", num_classes=3, feature_dim=16),
        ModelConfig(backbone="resnet101", memory=None),
        ModelConfig(backbone="resnet101-v2", decoder="deeplabv2", output_stride=8),
    ],
    ids=lambda config: f"{config.backbone}-{'memory' if config.memory else 'none'}",
)
def test_the_architecture_is_recognised(config):
    with torch.device("meta"):
        assert recognized(official_tensors(Segmenter(config))) == config


def test_a_missing_memory_is_refused_unless_allowed_and_then_empty(whole, tmp_path):
    content = training_state(whole)
    del content["memory"]
    path = saved(content, tmp_path)
    with pytest.raises(CheckpointError, match="not the memory itself") as refusal:
        convert_official(path)
    assert "--allow-missing-memory" in refusal.value.hint
    segmenter, about = convert_official(path, allow_missing_memory=True)
    assert torch.equal(segmenter.memory.slots, torch.zeros(CLASSES, DIM))
    assert "an empty memory (zeros)" in about["converted"]["assumed"]


def test_a_missing_auxiliary_head_is_drawn_the_same_each_time(whole, tmp_path):
    path = saved({k: t for k, t in plain(whole).items() if not k.startswith("dsn.")}, tmp_path)
    before = torch.random.get_rng_state()
    first, about = convert_official(path)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    second, _ = convert_official(path)
    assert torch.equal(first.auxiliary[0].weight, second.auxiliary[0].weight)
    assert "a random auxiliary head (only training uses it)" in about["converted"]["assumed"]


def without(name: str):
    return lambda state: {k: t for k, t in state.items() if not k.startswith(name)}


def put(name: str, tensor: Tensor):
    return lambda state: state | {name: tensor}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("final1.0.weight"), "lacks 'final1.0.weight'"),
        (without("final2.0.weight"), "lacks 'final2.0.weight'"),
        (without("layer0.1."), "lacks 'layer0.1."),  # RobustNet's whitening in the stem
        (put("layer1.1.instance_norm_layer.weight", torch.ones(64)), "instance_norm_layer"),
        (put("layer0.0.weight", torch.ones(64, 3, 3, 3)), "'layer0.0.weight' has the shape"),
        (put("final2.0.weight", torch.ones(())), "has the shape"),
        (put("final2.0.weight", torch.ones(300, DIM, 1, 1)), "no network that pinmem knows"),
        (put("final2.0.bias", torch.full([CLASSES], torch.nan)), "'final2.0.bias'"),
        (put("bot_fine.1.bias", torch.ones(48, dtype=torch.int8)), "'bot_fine.1.bias'"),
        (put(MEMORY, torch.rand(19, DIM)), f"'{MEMORY}' has the shape"),
        (put(MEMORY, torch.full((CLASSES, DIM), torch.inf)), f"'{MEMORY}'"),
        (put("bot_fine.1.bias", torch.ones(48).to_sparse()), "no state dict"),
        (put("bot_fine.1.bias", torch.ones(48, device="meta")), "no state dict"),
        (without("layer3.1."), "no network that pinmem knows"),
        (without("aspp."), "no network that pinmem knows"),
        (lambda state: {}, "no network that pinmem knows, but nothing"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_what_does_not_fit_is_refused_by_name(whole, tmp_path, change, says):
    path = saved(training_state(change(whole)), tmp_path)
    with pytest.raises(CheckpointError) as refusal:
        convert_official(path)
    assert says in refusal.value.message
    one_sentence(refusal.value, path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": 5}, {1: torch.ones(2)}])
def test_a_file_without_state_dict_is_refused(tmp_path, content):
    path = saved(content, tmp_path)
    with pytest.raises(CheckpointError, match="holds no state dict") as refusal:
        convert_official(path)
    one_sentence(refusal.value, path)


def one_sentence(error: DataError, path: Path) -> None:
    assert error.message.startswith(str(path))
    assert error.message.endswith(".")
    assert "\n" not in error.message
    assert ". " not in error.message


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_weight(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        member = next(m for m in archive.infolist() if m.filename.endswith("data/3"))
        inside = archive.read(member)
    content = path.read_bytes()
    assert content.count(inside) == 1
    path.write_bytes(content.replace(inside, bytes([inside[0] ^ 1]) + inside[1:]))


def other_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/readme.txt", "no tensors")


DAMAGES = {
    "cut": cut,
    "flipped": flip_a_weight,
    "archive of something else": other_archive,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>404</html>\n"),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "absent": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize(
    ("damage", "legacy"),
    [*((name, False) for name in DAMAGES), ("cut", True)],  # no checksums in the legacy format
)
def test_a_damaged_file_is_refused(whole, tmp_path, damage, legacy):
    path = saved(training_state(whole), tmp_path, legacy=legacy)
    DAMAGES[damage](path)
    with pytest.raises(DataError, match="cannot be read") as refusal:
        convert_official(path)
    one_sentence(refusal.value, path)


def test_an_archive_that_was_compressed_is_read_all_the_same(whole, tmp_path):
    path = saved(training_state(whole), tmp_path)
    with zipfile.ZipFile(path) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    segmenter, _ = convert_official(path)
    assert torch.equal(segmenter.memory.slots, whole[MEMORY])


class Payload:
    """A pickle that runs a command when it is read naively."""

    def __init__(self, mark: Path) -> None:
        self.command = f"echo run > '{mark}'"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
def test_a_file_that_would_run_code_is_refused_unrun(whole, tmp_path, legacy):
    mark = tmp_path / "was-run"
    path = saved(training_state(whole) | {"args": Payload(mark)}, tmp_path, legacy=legacy)
    with pytest.raises(DataError, match=r"system', which could run code") as refusal:
        convert_official(path)
    one_sentence(refusal.value, path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so the payload was a real one


def official_files() -> list[tuple[str, str]]:
    """Pairs of a reference file of a network, and the checkpoint's description that fits it."""
    path = FOLDER / "official_state_dict.json"
    if not path.is_file():
        return []
    theirs = json.loads(path.read_text(encoding="utf-8"))["checkpoints"]
    return [
        (Path(file).stem, name)
        for file, about in manifest()["files"].items()
        for name, checkpoint in theirs.items()
        if about["what"].startswith(f"{checkpoint['arch']} with memory={checkpoint['memory']}:")
        and about["settings"]["dtype"] == "f32"
    ]


@pytest.mark.reference
@pytest.mark.parametrize("pair", official_files() or [ABSENT], ids=lambda pair: "-".join(pair))
def test_a_converted_checkpoint_gives_the_originals_logits(pair, tmp_path):
    fixture = Fixture(pair[0], manifest())
    described = json.loads((FOLDER / "official_state_dict.json").read_text(encoding="utf-8"))
    theirs = described["checkpoints"][pair[1]]
    state = {
        name.removeprefix("module."): torch.from_numpy(
            value(name.removeprefix("module."), shape, fixture.seed)
        )
        for name, shape, _ in theirs["state_dict"]
    }
    if theirs["memory"]:
        shape = theirs["top_level"]["memory"]["shape"]
        state[MEMORY] = torch.from_numpy(value(MEMORY, shape, fixture.seed))
    segmenter, _ = convert_official(saved(training_state(state), tmp_path))
    for case in sorted({key[0] for key in fixture.tensors if key.endswith("/eval/logits_s4")}):
        expected = fixture.tensors[f"{case}/eval/argmax"]
        size = (len(expected), 3, *expected.shape[1:])
        with torch.no_grad():
            logits = segmenter(fixture.input(f"{case}/input", size))
        assert torch.equal(logits.argmax(dim=1), expected.long())
        difference = logits[..., ::4, ::4] - fixture.tensors[f"{case}/eval/logits_s4"]
        assert difference.abs().max() < 2e-6
