"""Files of torch.save that would take far more time or memory than their size asks for."""

import io
import pickle
import time
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pinmem_core.checkpoints.torch_file import read_torch_file
from pinmem_core.errors import DataError
from pinmem_core.models.backbones import backbones

STATE: dict[str, Any] = {"weight": torch.arange(12.0).reshape(3, 4), "steps": torch.tensor(7)}

TRAINING = {
    "state_dict": OrderedDict(STATE),
    "schedule": {"milestones": Counter([3, 5]), "betas": (0.9, 0.999), "last": None},
    "random": torch.get_rng_state(),
    "seed": 2**64 - 1,
    "score": np.float64(0.5),
    "size": torch.Size((1, 2)),
    "device": torch.device("cpu"),
    "precision": torch.float16,
    "names": {"a", 2},
    "bytes": b"abc\xff",
    "scalar": torch.tensor(3.0),
    "empty": torch.ones(0, 3),
    "repeated": torch.ones(1).expand(4, 4),
    "part": torch.arange(10)[2:8:2],
    "parameter": torch.nn.Parameter(torch.ones(3)),
    "complex": torch.ones(2, dtype=torch.complex64),
}


def saved(content: object, path: Path, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def with_pickle(path: Path, data: bytes, kind: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive of torch's whose list of objects is `data`, and which stores 12 bytes."""
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/data/0", np.arange(3, dtype="<f4").tobytes())
        archive.writestr("a/version", "3\n")
    return path


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def storage(values: int, key: str = "0") -> bytes:
    """Steps that load a storage of floats."""
    number = pickle.dumps(values, 2)[2:-1]
    place = text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number
    return b"(" + place + b"tQ"


def tensor(values: int, size: int, stride: int = 1, offset: int = 0) -> bytes:
    """Steps that rebuild a tensor of one dimension."""
    numbers = [pickle.dumps(number, 2)[2:-1] for number in (offset, size, stride)]
    place = storage(values) + numbers[0] + numbers[1] + b"\x85" + numbers[2] + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + b"\x89ccollections\nOrderedDict\n)RtR"


def state(steps: bytes) -> bytes:
    return b"\x80\x02}(" + text("w") + steps + b"u."


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
def test_what_training_saves_is_read(tmp_path, legacy):
    found = read_torch_file(saved(TRAINING, tmp_path / "a.pth", legacy=legacy))
    assert found.keys() == TRAINING.keys()
    for key, value in TRAINING.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[key], value), key
        elif key != "state_dict":
            assert found[key] == value, key
    assert all(torch.equal(found["state_dict"][name], value) for name, value in STATE.items())


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
def test_the_state_of_a_module_keeps_its_metadata(tmp_path, legacy):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    found = read_torch_file(saved(module.state_dict(), tmp_path / "a.pth", legacy=legacy))
    module.load_state_dict(found)
    assert found._metadata == module.state_dict()._metadata


def test_a_pickle_of_hand_made_steps_is_read(tmp_path):
    found = read_torch_file(with_pickle(tmp_path / "a.pth", state(tensor(3, 2, offset=1))))
    assert found["w"].tolist() == [1, 2]


def hash_bomb() -> bytes:
    """A key whose hash takes 2**60 steps."""
    return b"\x80\x02}))" + b"\x86q\x00h\x00" * 60 + b"\x86K\x01s."


PICKLES = {
    "a storage longer than its member": state(tensor(10**6, 10**6)),
    "a storage of a negative length": state(tensor(-3, 1)),
    "a tensor beyond its storage": state(tensor(3, 10**10)),
    "a tensor that begins beyond its storage": state(tensor(3, 1, offset=3)),
    "a tensor that repeats a value too often": state(tensor(3, 10**12, stride=0)),
    "tensors that repeat a value too often": state(tensor(3, 2**26, stride=0))[:-2]
    + b"".join(text(str(n)) + tensor(3, 2**26, stride=0) for n in range(3))
    + b"u.",
    "a missing member": state(storage(3, "1")),
    "a key that takes years to hash": hash_bomb(),
    "a key that is a tuple": b"\x80\x02}K\x01\x85K\x01s.",
    "a tuple of too many entries": b"\x80\x02(" + b"K\x01" * 2000 + b"t.",
    "a huge integer": b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".",
    "bytes that are not in the file": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "a storage that is not in the file": b"\x80\x02ctorch.storage\nUntypedStorage\n"
    + b"J\xff\xff\xff\x7f\x85R.",
    "a codec that is slow": b"\x80\x02c_codecs\nencode\n"
    + text("ä")
    + text("punycode")
    + b"\x86R.",
    "a method that is overwritten": b"\x80\x02ccollections\nOrderedDict\n)R}"
    + text("items")
    + b"K\x01sb.",
    "too many steps": b"\x80\x02" + b"N" * 600_000 + b".",
    "too many tensors": state(tensor(3, 1))[:-2]
    + text("x")
    + b"](ccollections\nOrderedDict\nq\x00"
    + b"h\x00)R" * 100_001
    + b"eu.",
    "more objects than any network has": b"\x80\x02" + text("x" * 2**21) + b".",
    "an empty stack": b"\x80\x020.",
    "no mark": b"\x80\x02t.",
    "no end": b"\x80\x02}",
    "a function of torch that weights do not need": b"\x80\x02ctorch._tensor\n"
    + b"_rebuild_from_type_v2\n.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_asks_for_more_than_weights_is_refused(tmp_path, name):
    refused(with_pickle(tmp_path / "a.pth", PICKLES[name], zipfile.ZIP_DEFLATED))


def refused(path: Path) -> str:
    """Return the sentence with which a file is refused at once."""
    began = time.process_time()
    with pytest.raises(DataError) as refusal:
        read_torch_file(path)
    assert time.process_time() - began < 10
    message = refusal.value.message
    assert message.startswith(f"{path} ") and message.endswith(".")
    assert "\n" not in message and len(message) < 300
    return message


def legacy(*pickles: object, content: bytes, stored: bytes = b"") -> bytes:
    """Return a file of the legacy format."""
    head = io.BytesIO()
    torch.save({}, head, _use_new_zipfile_serialization=False)
    beginning = head.getvalue()[: -len(pickle.dumps({}, 2)) - len(pickle.dumps([], 2))]
    return beginning + content + b"".join(pickle.dumps(p, 2) for p in pickles) + stored


def values(count: int) -> bytes:
    return count.to_bytes(8, "little") + bytes(4 * count)


@pytest.mark.parametrize(
    ("content", "keys", "stored"),
    [
        (state(tensor(10**10, 3)), ["0"], values(3)),
        (state(tensor(3, 10**10)), ["0"], values(3)),
        (state(tensor(3, 3)), [], values(3)),  # its values would be whatever memory holds
        (state(tensor(3, 3)), ["0", "0"], values(3) * 2),
        (state(tensor(3, 3)), ["0"], values(3)[:-1]),
        (state(tensor(3, 10**12, stride=0)), ["0"], values(3)),
    ],
)
def test_a_legacy_file_that_asks_for_more_than_it_stores_is_refused(
    tmp_path, content, keys, stored
):
    path = tmp_path / "a.pth"
    good = state(b"ctorch._utils\n_rebuild_tensor_v2\n" + tensor(3, 3).partition(b"v2\n")[2])
    good = good.replace(b"K\x03tQ", b"K\x03NtQ")
    path.write_bytes(legacy(["0"], content=good, stored=values(3)[:8] + b"\0\0\x80?" * 3))
    assert read_torch_file(path)["w"].tolist() == [1, 1, 1]
    path.write_bytes(legacy(keys, content=content.replace(b"tQ", b"NtQ"), stored=stored))
    refused(path)


def test_a_large_list_of_objects_in_the_legacy_format_is_refused(tmp_path):
    path = saved({"x": "x" * 3 * 2**20}, tmp_path / "a.pth", legacy=True)
    assert "more than 2 MiB of objects" in refused(path)


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", state(storage(2**24)))
        archive.writestr("a/data/0", bytes(4 * 2**24))
    assert path.stat().st_size < 2**20
    assert "would unpack to far more than its size" in refused(path)


def test_an_archive_of_very_many_members_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", state(storage(3)))
        for number in range(1000):
            archive.writestr(f"a/data/{number:05000}", b"")
    assert "more than 4 MiB of members" in refused(path)


def reversed_case(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("A/DATA.PKL", state(tensor(10**6, 10**6)))


def with_comment(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"x" * 30


def packed_slowly(path: Path) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a/data/1", bytes(1000))


@pytest.mark.parametrize("change", [reversed_case, with_comment, packed_slowly])
def test_an_archive_that_two_readers_understand_differently_is_refused(tmp_path, change):
    path = with_pickle(tmp_path / "a.pth", state(tensor(3, 3)))
    assert read_torch_file(path)["w"].tolist() == [0, 1, 2]
    change(path)
    assert "damaged, or not written by torch.save" in refused(path)


def test_names_that_are_no_texts_are_no_weights(tmp_path):
    """Their texts would be asked for what only texts have."""
    path = saved({1: torch.ones(3)}, tmp_path / "a.pth")
    with pytest.raises(DataError, match="does not hold a state dict"):
        backbones.get("resnet18")(32).load_pretrained(str(path))


def test_memory_that_runs_out_is_not_a_damaged_file(tmp_path, monkeypatch):
    from pinmem_core.errors import MachineError

    path = saved(STATE, tmp_path / "a.pth")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 bytes")

    monkeypatch.setattr("torch.load", fail)
    with pytest.raises(MachineError, match="memory ran out while reading"):
        read_torch_file(path)
