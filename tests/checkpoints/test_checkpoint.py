"""A checkpoint loads whole or is refused in one sentence that names what is wrong."""

import errno
import json
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pinmem_core.checkpoints.checkpoint import state_dict_mismatch, write_checkpoint
from pinmem_core.config import ModelConfig
from pinmem_core.errors import CheckpointError, ConfigError, MachineError
from pinmem_core.export.files import export_weights
from pinmem_core.label_space import CITYSCAPES
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    segmenter = Segmenter(ModelConfig(backbone="tiny", feature_dim=16))
    save_checkpoint(segmenter, tmp_path / "c", {"iteration": 7})
    return tmp_path / "c"


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_it_says_all_that_a_stranger_needs(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["format_version"] == 2 and config["iteration"] == 7
    assert config["model"]["backbone"] == "tiny" and config["model"]["num_classes"] == 19
    assert config["classes"]["names"] == list(CITYSCAPES.names)
    assert config["classes"]["colors"][0] == [128, 64, 128]
    assert config["preprocessing"]["range"] == [0, 1] and len(config["preprocessing"]["mean"]) == 3
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_a_record_of_three_million_images_is_read(tmp_path):
    record = {"gtav": {"images": 3_000_000, "ids": "AAAAAAAA" * 3_000_000}}
    segmenter = Segmenter(ModelConfig(backbone="tiny", feature_dim=16))
    save_checkpoint(segmenter, tmp_path / "c", {"trained_on": record})
    assert load_checkpoint(tmp_path / "c")[1]["trained_on"] == record


def test_who_may_read_the_config_may_read_the_weights(folder):
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1


def test_the_first_checkpoints_load_though_they_say_less(folder):
    edit_config(folder, lambda c: [c.pop(key) for key in ("classes", "preprocessing", "sha256")])
    edit_config(folder, lambda c: c["model"].pop("test_time_bn"))
    assert load_checkpoint(folder)[0].memory is not None


def test_a_flipped_bit_in_the_weights_is_refused(folder):
    def flip(state):
        state[SLOTS].view(torch.int32)[0, 0] ^= 1

    edit_weights(folder, flip)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not have the SHA-256"):
        load_checkpoint(folder)
    edit_config(folder, lambda c: c.pop("sha256"))  # as the hint says
    assert load_checkpoint(folder)[0].memory is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"]["memory"].update(residual=True),
        lambda c: c["model"]["memory"].update(attention_temperature=0.1),
        lambda c: c["model"].update(test_time_bn=0.5),
        lambda c: c["model"].update(output_stride=8),
    ],
)
def test_an_edited_setting_of_the_network_is_refused(folder, change):
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match=r"the section 'model' of its config\.json") as error:
        load_checkpoint(folder)
    assert "remove 'sha256'" in error.value.hint


@pytest.mark.parametrize("key", ["num_classes", "decoder", "memory", "memory.momentum"])
def test_without_digests_only_settings_that_came_later_take_defaults(folder, key):
    *outer, last = key.split(".")
    edit_config(folder, lambda c: c.pop("sha256"))
    edit_config(folder, lambda c: (c["model"]["memory"] if outer else c["model"]).pop(last))
    with pytest.raises(CheckpointError, match=f"{key}' is missing"):
        load_checkpoint(folder)


def test_no_key_of_a_checkpoint_takes_its_default(folder):
    config = json.loads((folder / "config.json").read_text())
    inner = [f"memory.{key}" for key in config["model"]["memory"]]
    for key in [*config["model"], *inner, "classes", "preprocessing"]:
        changed = json.loads(json.dumps(config))
        section = changed if key in changed else changed["model"]
        *outer, last = key.split(".")
        (section["memory"] if outer else section).pop(last)
        (folder / "config.json").write_text(json.dumps(changed))
        # checkpoints of earlier versions lack some settings; the digest covers them
        later = key in ("backbone_options", "memory.gate", "memory.mask_empty")
        said = "was changed" if later else f"{key}' (is missing|are not those)"
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(folder)


@pytest.mark.parametrize("digests", [None, [], {}, {"weights": "0"}, {"weights": 1, "model": None}])
def test_digests_that_are_none_are_refused(folder, digests):
    edit_config(folder, lambda c: c.update(sha256=digests))
    with pytest.raises(CheckpointError, match=r"SHA-256|'sha256'") as error:
        load_checkpoint(folder)
    assert "\n" not in error.value.message


def test_writing_again_replaces_the_digests(folder):
    segmenter, _ = load_checkpoint(folder)
    with torch.no_grad():
        segmenter.memory.slots += 1
    write_checkpoint(segmenter, folder, {**segmenter.about, "sha256": {"weights": "x"}})
    assert torch.equal(load_checkpoint(folder)[0].memory.slots, segmenter.memory.slots)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        SafetensorError("Cannot allocate memory (os error 12)"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("place", ["safetensors.torch.load_file", "torch.isfinite"])
def test_memory_that_runs_out_is_no_damage(folder, monkeypatch, error, place):
    def fail(*_):
        raise error

    monkeypatch.setattr(place, fail)
    with pytest.raises(MachineError, match="memory ran out while loading the checkpoint"):
        load_checkpoint(folder)


SLOTS = "memory.slots"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop(SLOTS), r"it lacks 'memory\.slots'\."),
        (lambda s: s.update(extra=torch.ones(1)), r"it holds the unknown 'extra'\."),
        (
            lambda s: s.update(slots=s.pop(SLOTS)),
            r"it lacks 'memory\.slots' and it holds the unknown 'slots'",
        ),
        (lambda s: s.update({SLOTS: s[SLOTS].T.contiguous()}), r"\(16, 19\) instead of \(19, 16\)"),
        (lambda s: s.update({SLOTS: s[SLOTS] / 0}), "'memory.slots' holds values that are not"),
        (
            lambda s: s.update({SLOTS: s[SLOTS].int()}),
            r"'memory\.slots' has the dtype torch.int32",
        ),
        (
            lambda s: [s.pop(k) for k in sorted(s) if k.startswith("auxiliary")],
            r"it lacks 'auxiliary[\w.]+' \(and \d+ more\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, said):
    edit_weights(folder, change)
    with pytest.raises(CheckpointError, match=said) as error:
        load_checkpoint(folder)
    assert "\n" not in error.value.message and error.value.message.count("'") <= 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(format_version=3), "format version 3; this pinmem"),
        (lambda c: c.update(format_version=True), "format version True; this pinmem"),
        (lambda c: c.update(training=[1]), "'training' is not an object"),
        (lambda c: c.update(training={"sources": 3}), "'training.sources' is not a list"),
        (lambda c: c.update(converted="x"), "'converted' is not an object"),
        (lambda c: c.pop("format_version"), "has no format version"),
        (lambda c: c.pop("model"), "'model' is wrong"),
        (lambda c: c["model"].update(feature_dim="many"), "'model.feature_dim' is wrong"),
        (lambda c: c["model"].update(depth=3), "'model.depth' is wrong"),
        (lambda c: c["model"].update(feature_dim=10**6), "has the shape"),
        (lambda c: c["model"].update(feature_dim=10**9), "its network is too large"),
        (lambda c: c["model"].update(feature_dim=10**15), "'model.feature_dim' is wrong"),
        (lambda c: c["model"].update(feature_dim=10**30), "a number of 31 digits"),
        (lambda c: c["model"].update(backbone="tinny"), "unknown backbone 'tinny'"),
        (lambda c: c["preprocessing"].update(mean=[0, 0, 0]), "its 'preprocessing' are not"),
        (lambda c: c["classes"]["names"].reverse(), "its 'classes' are not"),
    ],
)
def test_a_config_that_does_not_fit_is_told(folder, change, said):
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match=said) as error:
        load_checkpoint(folder)
    assert "\n" not in error.value.message


BOMBS = [f'{{"format_version": {"9" * 4300}}}', '{"a":' * 60_000, '{"a": 1, "a": 2}', '{"a": NaN}']


@pytest.mark.parametrize(
    "content", ["[1]", "3", "", "{", "\x00", "[" * 100_000, '"text"', *BOMBS], ids=range(11)
)
def test_a_config_that_is_none_is_told(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json|cannot be read") as error:
        load_checkpoint(folder)
    assert "\n" not in error.value.message and len(error.value.message) < 400


def test_a_pipe_in_place_of_the_weights_is_refused_at_once(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(folder)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_file_that_was_cut_off_is_told(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"cannot be read: model\.safetensors") as error:
        load_checkpoint(folder)
    assert "\n" not in error.value.message and error.value.hint


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_stands_in_place_of_a_file_is_told(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_checkpoint(folder)
    (folder / name).mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(folder)
    (folder / name).rmdir()
    (folder / name).symlink_to(folder / name)
    with pytest.raises(CheckpointError, match=r"cannot be read|is missing"):
        load_checkpoint(folder)


def test_half_precision_comes_back_close_with_the_memory_untouched(folder):
    whole, _ = load_checkpoint(folder)
    written = export_weights(str(folder), folder.parent / "half", half=True)
    state = load_file(folder.parent / "half" / "model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in state.items()}
    assert kinds["memory.slots"] == kinds["memory.classifier.bias"] == torch.float32
    assert torch.float16 in kinds.values()
    assert written[0].bytes < 0.7 * (folder / "model.safetensors").stat().st_size
    half, config = load_checkpoint(folder.parent / "half")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert torch.equal(half.memory.slots, whole.memory.slots)
    images = torch.rand(1, 3, 32, 48)
    torch.testing.assert_close(half(images), whole(images), rtol=0, atol=5e-3)
    assert config["stored"].startswith("float16") and config["iteration"] == 7
    export_weights(str(folder.parent / "half"), folder.parent / "whole")
    assert "stored" not in load_checkpoint(folder.parent / "whole")[1]


def test_weights_too_large_for_half_precision_are_refused(folder):
    segmenter, _ = load_checkpoint(folder)
    with torch.no_grad():
        segmenter.memory.classifier.weight[0, 0] = 1e5
    with pytest.raises(ConfigError, match=r"'memory\.classifier\.weight'.*half precision"):
        write_checkpoint(segmenter, folder, {}, half=True)
    assert load_checkpoint(folder)[1]["iteration"] == 7


def test_loading_a_checkpoint_of_another_precision_is_no_mismatch():
    state = {"a": torch.ones(2), "n": torch.tensor(3)}
    assert (
        state_dict_mismatch({"a": torch.ones(2, dtype=torch.bfloat16), "n": state["n"]}, state)
        is None
    )


def test_a_checkpoint_brings_back_the_same_network(tmp_path):
    segmenter = Segmenter(ModelConfig(backbone="tiny", feature_dim=16)).eval()
    save_checkpoint(segmenter, tmp_path / "c", {"iteration": 7})
    save_checkpoint(segmenter, tmp_path / "c", {"iteration": 8})  # replaces
    loaded, config = load_checkpoint(tmp_path / "c")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), segmenter(images))
    assert torch.equal(loaded.memory.slots, segmenter.memory.slots)
    assert config["iteration"] == 8 and loaded.config == segmenter.config
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _drop_memory(folder):
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    del state["memory.slots"]
    save_file(state, folder / "model.safetensors")


def _other_version(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 9'))


def _other_width(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"feature_dim": 16', '"feature_dim": 24'))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_truncate, "cannot be read"),
        (_drop_memory, r"memory\.slots"),
        (_other_version, "format version 9"),
        (_other_width, "does not fit"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_a_sentence(tmp_path, spoil, said):
    folder = tmp_path / "c"
    save_checkpoint(Segmenter(ModelConfig(backbone="tiny", feature_dim=16)), folder, {})
    spoil(folder)
    with pytest.raises(CheckpointError, match=said) as error:
        load_checkpoint(folder)
    assert "\n" not in error.value.message
