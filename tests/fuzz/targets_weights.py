"""Tensors: checkpoints, snapshots, and files of `torch.save`."""

import io
import json
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pinmem_core.models.backbones
from fuzz.cases import ACCEPTED, INTACT_SHARE, RIGHT, Case, Target, require
from fuzz.mutators import mutated_bytes, mutated_json
from fuzz.readers import json_of_accepted, read_safetensors
from pinmem_core.checkpoints.model_card import model_card
from pinmem_core.checkpoints.torch_file import read_torch_file
from pinmem_core.config import ModelConfig
from pinmem_core.events import ignore
from pinmem_core.export.official import convert_official
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.training import snapshots
from pinmem_core.training.optim import load_optimizer_state, optimizer_state

_PLUGIN = str(Path(__file__).parents[1] / "plugins" / "backbones")
if _PLUGIN not in pinmem_core.models.backbones.__path__:
    pinmem_core.models.backbones.__path__.append(_PLUGIN)


@cache
def _segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(ModelConfig(backbone="tiny", feature_dim=8))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@cache
def _checkpoint() -> Mapping[str, bytes]:
    about = {"training": {"sources": ["camvid"], "targets": [], "method": "pinmem"}, "iteration": 3}
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(_segmenter(), Path(folder, "c"), about)
        return _files(Path(folder, "c"))


def _mutated_safetensors(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.4:
        return mutated_bytes(rng, data)
    length = int.from_bytes(data[:8], "little")
    header = mutated_json(rng, json.loads(data[8 : 8 + length]))
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _make_checkpoint(rng: Random) -> Case:
    files = dict(_checkpoint())
    intact = rng.random() < INTACT_SHARE
    if not intact and rng.random() < 0.5:
        files["config.json"] = mutated_json(rng, json.loads(files["config.json"]))
    elif not intact:
        files["model.safetensors"] = _mutated_safetensors(rng, files["model.safetensors"])
    return Case({f"c/{name}": content for name, content in files.items()}, intact)


def _read_checkpoint(case: Case, folder: Path) -> str:
    segmenter, config = load_checkpoint(folder / "c")
    require(json_of_accepted(case.files["c/config.json"]) == config, "another configuration")
    stored = read_safetensors(case.files["c/model.safetensors"])
    state = segmenter.state_dict()
    require(set(stored) == set(state), "other tensors")
    for name, tensor in state.items():
        require(np.array_equal(tensor.numpy(), stored[name]), f"{name} is not what is stored")
        finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        require(finite, f"{name} is not finite")
    require(model_card(config).strip(), "no card")
    return RIGHT


def _optimizer(segmenter: Segmenter) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(segmenter.parameters(), lr=0.1, momentum=0.9)
    for number, parameter in enumerate(segmenter.parameters()):
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, number)
    return optimizer


@cache
def _snapshots() -> Mapping[str, bytes]:
    optimizer = _optimizer(_segmenter())
    with tempfile.TemporaryDirectory() as folder:
        for iteration in (3, 6):
            meta = snapshots.SnapshotMeta(iteration=iteration, logged=10, scaler={}, processes=1)
            tensors = optimizer_state(optimizer, _segmenter())[0]
            states = {"model": _segmenter().state_dict(), "optimizer": tensors}
            snapshots.save_snapshot(Path(folder), meta, states, keep=2)
        return _files(Path(folder))


def _make_snapshot(rng: Random) -> Case:
    files = dict(_snapshots())
    intact = rng.random() < INTACT_SHARE
    if not intact:
        name = rng.choice([*files])
        data = files[name]
        if rng.random() < 0.1:
            del files[name]
        elif name.endswith(".json"):
            files[name] = mutated_json(rng, json.loads(data))
        else:
            files[name] = _mutated_safetensors(rng, data)
    return Case({f"run/{name}": content for name, content in files.items()}, intact)


def _read_snapshot(case: Case, folder: Path) -> str:
    found = snapshots.newest_snapshot(folder / "run", ignore)
    require(found is not None, "no snapshot, though one is intact")
    assert found
    iterations = (6,) if case.intact else (3, 6)
    require(found.meta.iteration in iterations, f"iteration {found.meta.iteration}")
    place = f"run/{found.folder.relative_to(folder / 'run')}"
    require(int(found.folder.name) == found.meta.iteration, f"{place} is of another iteration")
    torch.manual_seed(1)
    segmenter = Segmenter(_segmenter().config)
    optimizer = _optimizer(segmenter)
    for state in optimizer.state.values():
        state["momentum_buffer"].zero_()
    states = found.states()
    segmenter.load_state_dict(states["model"])
    load_optimizer_state(optimizer, segmenter, states["optimizer"], {})
    expected = _segmenter().state_dict()
    same = all(torch.equal(value, expected[key]) for key, value in segmenter.state_dict().items())
    require(same, "other weights")
    for number, parameter in enumerate(segmenter.parameters()):
        buffer = optimizer.state[parameter]["momentum_buffer"]
        require(bool((buffer == number).all()), "other buffers")
    return RIGHT


class _Call:
    """Pickled, it is a call that would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("pinmem-was-here"),)


_STATE: dict[str, Any] = {
    "module.layer0.0.weight": torch.arange(12.0).reshape(3, 4),
    "module.memory.m_items": torch.ones(2, 3),
    "counter": torch.tensor(7),
}


@cache
def _torch_files() -> tuple[bytes, ...]:
    contents = ({"state_dict": _STATE, "epoch": 3, "mean_iu": np.float64(0.5)}, dict(_STATE))
    files = []
    for content in contents:
        for legacy in (False, True):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=not legacy)
            files.append(file.getvalue())
    return tuple(files)


@cache
def _hostile() -> tuple[bytes, ...]:
    file = io.BytesIO()
    torch.save({"state_dict": _STATE, "x": _Call()}, file)
    calls = file.getvalue(), pickle.dumps(_Call()), pickle.dumps({"a": [_Call()] * 3}, 2)
    return *calls, *map(_archive, _BOMBS), _archive(b"\x80\x02N.", {"data/0": bytes(1 << 26)})


_STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuJ%btQ"
_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(%bK\0J%b\x85J%b\x85\x89}tR"
_MANY = b"\xff\xff\xff\x7f"
_FEW = b"\1\0\0\0"
_BOMBS = (
    b"\x80\x02}))" + b"\x86q\0h\0" * 60 + b"\x86K\1s.",  # a hash of 2**60 steps
    b"\x80\x02c__builtin__\nbytearray\nJ" + _MANY + b"\x85R.",
    b"\x80\x02}X\1\0\0\0w" + _TENSOR % (_STORAGE % _MANY, _MANY, _FEW) + b"s.",
    b"\x80\x02}X\1\0\0\0w" + _TENSOR % (_STORAGE % _FEW, _MANY, b"\0\0\0\0") + b"s.",
)
"""Short pickles that ask for years of work, or for gigabytes."""


def _archive(steps: bytes, members: Mapping[str, bytes] = {"data/0": bytes(4)}) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"data.pkl": steps, **members}.items():
            archive.writestr(f"a/{name}", content)
    return file.getvalue()


def _rezipped(rng: Random, data: bytes) -> bytes:
    """Damage a member of the archive, with right checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = rng.choice([name for name in names if name.endswith("data.pkl")] + names)
        for name in names:
            content = old.read(name)
            content = mutated_bytes(rng, content) if name == chosen else content
            kind = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
            new.writestr(name, content, kind)
    return out.getvalue()


def _make_torch(rng: Random) -> Case:
    number = rng.randrange(4)
    data = _torch_files()[number]
    if rng.random() < INTACT_SHARE:
        return Case({"a.pth": data}, intact=True, known=True)
    if rng.random() < 0.1:
        return Case({"a.pth": rng.choice(_hostile())})
    is_zip = number % 2 == 0
    if is_zip and rng.random() < 0.5:
        return Case({"a.pth": _rezipped(rng, data)})
    return Case({"a.pth": mutated_bytes(rng, data)}, known=is_zip)


def _read_torch(case: Case, folder: Path) -> str:
    try:
        found = read_torch_file(folder / "a.pth")
    finally:
        require(not Path("pinmem-was-here").exists(), "code of the file was run")
    if not case.known:
        return ACCEPTED
    state = found.get("state_dict", found)
    require(set(state) == set(_STATE), "other tensors")
    for name, tensor in _STATE.items():
        same = isinstance(state[name], Tensor) and torch.equal(state[name], tensor)
        require(same, f"{name} is not what was saved")
    return RIGHT


def _read_official(case: Case, folder: Path) -> str:
    convert_official(folder / "a.pth", allow_missing_memory=True)
    return ACCEPTED


def _make_official(rng: Random) -> Case:
    case = _make_torch(rng)
    return Case(case.files)  # no network of the family, even if it is intact


TARGETS = (
    Target("checkpoint", _make_checkpoint, _read_checkpoint, 8),
    Target("snapshot", _make_snapshot, _read_snapshot, 5),
    Target("torch.save (.pth)", _make_torch, _read_torch, 8),
    Target(".pth of the original", _make_official, _read_official, 2),
)
