"""Checkpoints that hold only what was trained, and name their base weights."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Result, small_config
from safetensors.torch import load_file, save_file

import pinmem_core as pm
from pinmem_core.errors import CheckpointError, ConfigError, StoppedRunError
from pinmem_core.events import Metrics
from pinmem_core.export.push import plan_upload
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.models.backbones import backbones
from pinmem_core.models.backbones.timm import Timm
from pinmem_core.training import resume, train
from pinmem_core.training.setup import base_of, initial_segmenter, resolve

DINO = "timm:vit_small_patch14_dinov2"
VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2}
LORA = {"rank": 2}
MINOR = {"rank": 2, "init": "minor", "bias": True}

pytestmark = pytest.mark.slow  # trains several networks


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a base, a ViT with patches of 14 pixels that are resampled to 16, and a checkpoint."""
    folder = tmp_path_factory.mktemp("made")
    base = weights(folder / "vit.safetensors", seed=7)
    saved(folder / "run", run_config(base))
    return folder


@pytest.fixture
def base(tmp_path, made):
    """Copy the base."""
    return Path(shutil.copy(made / "vit.safetensors", tmp_path))


def weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    network = backbones.get(DINO)(16, patch_size=14, img_size=56, **VIT).network
    state = {name: value.half() for name, value in network.state_dict().items()}
    save_file({**state, "mask_token": torch.zeros(1, 32)}, path)
    return path


def run_config(base, tune="lora", adapters=(("lora", LORA),), **values):
    settings = {
        "tune": tune,
        "init_weights": str(base),
        "method": "aggregate",
        "iterations": 1,
        "checkpoint__adapter_only": True,
        "evaluation__max_images": 1,
        "augmentation__crop": 32,
        "model__backbone": DINO,
        "model__backbone_options": VIT | {"img_size": 64},
        "model__decoder": "linear",
        "model__output_stride": 32,
        "model__adapters": dict(adapters),
    }
    return small_config(**settings | values)


@torch.no_grad()
def saved(folder, config):
    """Save the checkpoint of a run whose trained parameters have moved."""
    segmenter = initial_segmenter(resolve(config))
    segmenter.freeze(resolve(config).optim.freeze)
    for parameter in segmenter.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)
    about = {"parameters": segmenter.count_parameters()}
    save_checkpoint(segmenter, folder, about, base=base_of(resolve(config)))
    return folder


@pytest.fixture
def trained(tmp_path, made, base):
    """Copy the checkpoint and its base."""
    folder = Path(shutil.copytree(made / "run", tmp_path / "run"))
    edit_config(folder, lambda c: c["base"].update(source=str(base)))
    return folder


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def edit_config(folder, change):
    config = config_of(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("tune", "adapters"),
    [
        pytest.param("lora", {"lora": LORA}, marks=pytest.mark.slow),
        ("lora", {"lora": MINOR}),
        pytest.param("rein", {"rein": {"tokens": 5, "rank": 2}}, marks=pytest.mark.slow),
        pytest.param("bias", {}, marks=pytest.mark.slow),
        pytest.param("frozen", {}, marks=pytest.mark.slow),
    ],
)
def test_the_small_file_and_the_base_give_the_same_network(tmp_path, base, tune, adapters):
    small = saved(tmp_path / "small", run_config(base, tune, adapters))
    whole_config = run_config(base, tune, adapters, checkpoint__adapter_only=False)
    whole = saved(tmp_path / "whole", whole_config)
    names, all_names = (load_file(f / "model.safetensors").keys() for f in (small, whole))
    record = config_of(small)["base"]
    assert not names & {*record["tensors"]} and names | {*record["tensors"]} == all_names
    assert "backbone.network.blocks.1.mlp.fc1.weight" in record["tensors"]
    assert (record["kind"], record["source"]) == ("weights", str(base))
    loaded, expected = (load_checkpoint(f)[0] for f in (small, whole))
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in expected.state_dict().items())
    images = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        assert torch.equal(loaded(images), expected(images))


def test_a_stopped_run_resumes_to_the_same_checkpoint(tmp_path, base):
    config = run_config(base, iterations=2)
    train(config, tmp_path / "straight")
    heard = []
    with pytest.raises(StoppedRunError):
        train(
            config,
            tmp_path / "run",
            on_event=heard.append,
            stop=lambda: any(isinstance(event, Metrics) for event in heard),
        )
    resume(tmp_path / "run")
    for name in ("model.safetensors", "config.json"):
        files = [tmp_path / run / "checkpoint" / name for run in ("straight", "run")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_the_whole_network_of_the_hint_needs_no_base(tmp_path, trained, monkeypatch):
    whole = tmp_path / "whole"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"needs the base weights vit\.safetensors") as error:
        plan_upload(str(trained), "user/name")
    words = shlex.split(error.value.hint[error.value.hint.index("pinmem") :])
    assert Result(*words[1:]).code == 0 and "base" not in config_of(whole)
    (tmp_path / "vit.safetensors").rename(tmp_path / "moved")  # the whole one does not need it
    states = [Segmenter.from_pretrained(whole).state_dict()]
    (tmp_path / "moved").rename(tmp_path / "vit.safetensors")
    states += [pm.load(str(trained)).segmenter.state_dict()]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_that_starts_from_it_names_it_as_its_base(tmp_path, base, trained):
    config = run_config(base, init_weights=None, init_from=str(trained))
    further = saved(tmp_path / "further", config)
    record = config_of(further)["base"]
    assert (record["kind"], record["source"]) == ("model", str(trained))
    assert "backbone.network.patch_embed.proj.weight" in record["tensors"]  # resampled before
    assert (
        load_checkpoint(further)[0].state_dict().keys()
        == Segmenter(load_checkpoint(trained)[0].config).state_dict().keys()
    )
    (tmp_path / "run").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="needs its base weights") as error:
        load_checkpoint(further)
    assert "PINMEM_BASE to the folder of the model" in error.value.hint


def test_a_base_that_moved_is_named_by_the_environment(tmp_path, base, trained, monkeypatch):
    expected = load_checkpoint(trained)[0].state_dict()
    base.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match=r"vit\.safetensors' does not exist") as error:
        load_checkpoint(trained)
    assert "PINMEM_BASE to the file with the weights" in error.value.hint
    monkeypatch.setenv("PINMEM_BASE", str(tmp_path / "elsewhere.safetensors"))
    state = load_checkpoint(trained)[0].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in expected.items())


def test_a_resumed_run_reads_a_base_that_moved(tmp_path, base, monkeypatch):
    config = resolve(run_config(base))
    before = base_of(config)
    moved = base.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ConfigError, match=r"vit\.safetensors' does not exist"):
        base_of(config, resumed=True)
    monkeypatch.setenv("PINMEM_BASE", str(moved))
    after = base_of(config, resumed=True)
    assert (after.digests, after.source) == (before.digests, str(moved))


def test_another_base_is_refused(tmp_path, base, trained):
    weights(base, seed=8)
    with pytest.raises(CheckpointError, match=r"on other base weights than .*vit\.safetensors"):
        load_checkpoint(trained)


def test_a_base_of_another_network_is_refused(base, trained):
    save_file({"conv.weight": torch.zeros(3)}, base)
    with pytest.raises(CheckpointError, match=r"needs its base weights: .* do not fit"):
        load_checkpoint(trained)


@pytest.mark.parametrize("digests", [True, False])
def test_a_missing_and_a_surplus_tensor_are_named(trained, digests):
    path = trained / "model.safetensors"
    state = load_file(path)
    if not digests:
        edit_config(trained, lambda c: c.pop("sha256"))
    name = "backbone.network.blocks.0.attn.qkv.lora_a"
    save_file({k: v for k, v in state.items() if k != name}, path)
    with pytest.raises(CheckpointError, match=f"it lacks '{name}'"):
        load_checkpoint(trained)
    name = config_of(trained)["base"]["tensors"][0]
    save_file(state | {name: torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=f"it holds the unknown '{name}'"):
        load_checkpoint(trained)


def test_a_truncated_file_is_refused(trained):
    path = trained / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(trained)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(base=[]), "'base' is not an object"),
        (lambda c: c["base"].pop("source"), "'base' is wrong"),
        (lambda c: c["base"].update(kind="x"), "'base' is wrong"),
        (lambda c: c.pop("base"), "it lacks 'backbone.network"),
        (lambda c: c["base"].update(tensors=c["base"]["tensors"][:-1]), "it lacks"),
        (lambda c: c["base"].update(sha256="0"), "on other base weights"),
    ],
)
def test_a_damaged_record_of_the_base_is_refused(trained, change, said):
    edit_config(trained, change)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(trained)


def test_a_model_is_not_its_own_base(trained):
    edit_config(trained, lambda c: c["base"].update(kind="model", source=str(trained)))
    with pytest.raises(CheckpointError, match="it is based on itself"):
        load_checkpoint(trained)
    other = Path(shutil.copytree(trained, trained.with_name("other")))
    edit_config(trained, lambda c: c["base"].update(source=str(other)))
    with pytest.raises(CheckpointError, match="it is based on itself") as error:
        load_checkpoint(trained)
    assert error.value.message.count("needs its base weights") == 2


@pytest.mark.parametrize("moved", ["run", "vit.safetensors"])
def test_either_base_of_a_chain_may_move(tmp_path, base, trained, monkeypatch, moved):
    further = saved(
        tmp_path / "further", run_config(base, init_weights=None, init_from=str(trained))
    )
    expected = load_checkpoint(further)[0].state_dict()
    place = (tmp_path / moved).rename(tmp_path / f"moved-{moved}")
    with pytest.raises(CheckpointError, match="needs its base weights"):
        load_checkpoint(further)
    monkeypatch.setenv("PINMEM_BASE", str(place))
    state = load_checkpoint(further)[0].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tune": "full", "model__adapters": {}}, "contradicts tune=full"),
        ({"init_weights": None}, "needs base weights"),
    ],
)
def test_a_run_without_a_base_is_refused(base, values, said):
    with pytest.raises(ConfigError, match=said):
        resolve(run_config(base, **values))


def test_a_published_base_is_pushed_by_name(tmp_path, base, monkeypatch):
    monkeypatch.setattr(Timm, "published", lambda *_: load_file(base))
    folder = saved(tmp_path / "run", run_config("lvd142m"))
    upload = plan_upload(str(folder), "user/name")
    assert upload.files["model.safetensors"] == folder / "model.safetensors"
    assert "| base weights, needed for loading | lvd142m |" in upload.card


def test_the_card_counts_parameters_and_names_the_base(trained):
    card, counts = (trained / "README.md").read_text(), config_of(trained)["parameters"]
    assert 0 < counts["trained"] < counts["total"]
    assert f"| trained parameters | {counts['trained']} |" in card
    assert "| base weights, needed for loading | vit.safetensors |" in card
    assert str(trained.parent) not in card
