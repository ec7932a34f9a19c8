"""What was written before format version 2 is read, and old keys are explained."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_run_resuming import state, stopped_run

from pinmem_core.config import ModelConfig
from pinmem_core.errors import CheckpointError, ConfigError
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.overrides import validate, with_overrides
from pinmem_core.training import resume

KEYS = {"backbone": "trunk", "decoder": "head", "test_time_bn": "own_statistics"}


def old_tensors(path: Path) -> None:
    """Give the tensors of a file their names in version 1."""
    tensors = {
        name.replace("backbone.", "trunk.", 1).replace("decoder.", "head.", 1): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path)


def old_model(settings: dict) -> None:
    settings["model"] = {KEYS.get(key, key): value for key, value in settings["model"].items()}


def old_checkpoint(folder: Path) -> None:
    """Turn a checkpoint into one of version 1."""
    old_tensors(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    old_model(config)
    if "training" in config:
        old_model(config["training"])
    model = json.dumps(config["model"], sort_keys=True, separators=(",", ":"))
    config["format_version"] = 1
    config["sha256"] = {
        "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "model": hashlib.sha256(model.encode()).hexdigest(),
    }
    (folder / "config.json").write_text(json.dumps(config))


def old_run(run: Path) -> None:
    """Turn an unfinished run into one that a pinmem of version 1 has written."""
    config = json.loads((run / "config.json").read_text())
    old_model(config)
    (run / "config.json").write_text(json.dumps(config))
    old_checkpoint(run / "checkpoint")
    for folder in (run / "snapshots").iterdir():
        manifest = json.loads((folder / "manifest.json").read_text())
        for name in manifest["files"]:
            old_tensors(folder / name)
            content = (folder / name).read_bytes()
            manifest["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
        (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    segmenter = Segmenter(ModelConfig(backbone="tiny", feature_dim=16, test_time_bn=0.1))
    save_checkpoint(segmenter, tmp_path, {"training": {"model": segmenter.config.model_dump()}})
    return segmenter, tmp_path


def test_a_checkpoint_of_version_1_is_the_same_network(saved):
    segmenter, folder = saved
    old_checkpoint(folder)
    loaded, config = load_checkpoint(folder)
    assert loaded.config == segmenter.config
    for name, tensor in segmenter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert config["training"]["model"] == config["model"] == segmenter.config.model_dump()


def test_a_checkpoint_of_version_1_becomes_one_of_version_2(saved, tmp_path):
    segmenter, folder = saved
    old_checkpoint(folder)
    save_checkpoint(load_checkpoint(folder)[0], tmp_path / "new", {})
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["format_version"] == 2 and config["model"]["backbone"] == "tiny"
    assert load_file(tmp_path / "new" / "model.safetensors").keys() == segmenter.state_dict().keys()


def test_an_edited_checkpoint_of_version_1_is_refused(saved):
    _, folder = saved
    old_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["own_statistics"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="the section 'model' of its config"):
        load_checkpoint(folder)


@pytest.mark.slow
def test_a_run_of_version_1_is_resumed_exactly(tmp_path):
    expected = stopped_run(tmp_path / "new", 3)
    run = stopped_run(tmp_path / "run", 3)
    old_run(run)
    resume(expected)
    resume(run)
    assert {k: v for k, v in state(run).items() if k != "config.json"} == {
        k: v for k, v in state(expected).items() if k != "config.json"
    }


@pytest.mark.parametrize(("new", "old"), KEYS.items())
def test_an_old_key_says_what_it_is_called_now(new, old):
    with pytest.raises(ConfigError, match=f"unknown configuration key 'model.{old}'") as caught:
        validate(with_overrides({}, [f"model.{old}=1"]))
    assert caught.value.hint == f"It is called 'model.{new}' now."
