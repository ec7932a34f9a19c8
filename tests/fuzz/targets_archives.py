"""Archives of every kind, and packs."""

import stat
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from archive_makers import MAKERS, Item, make

from fuzz.cases import ACCEPTED, INTACT_SHARE, RIGHT, Case, Target, require
from fuzz.mutators import mutated_bytes
from fuzz.targets_data import home_in, prepare_in, prepared_files
from pinmem_core.data.archives import extract
from pinmem_core.data.pack import pack
from pinmem_core.data.rar import libarchive
from pinmem_core.data.unpack import packed_card, unpack
from pinmem_core.label_files import read_train_ids

_CHECKED = ("zip", "tar.gz", "tgz", "tar.bz2", "tar.xz", "txz", "rar")
"""Whose contents have checksums; a plain tar has none."""
_ODD_NAMES = (
    *("../up.txt", "/etc/passwd", "a/../../up.txt", "C:/x", "a\\..\\..\\up", "a//b", "./a", "."),
    *("nul\0", "x" * 300, "a\nb", "\x1b[2J", "é", "e\u0301", "A.TXT", "a.txt/b", ".archive.json"),
)
_ITEMS = (Item("a.txt", b"alpha" * 9), Item("d/b.png", bytes(range(256))), Item("c.bin", b""))


@cache
def intact(kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return make(Path(folder, kind), *_ITEMS).read_bytes()


def _kinds() -> list[str]:
    return [kind for kind in MAKERS if kind != "x.rar" or libarchive() is not None]


def _make(rng: Random) -> Case:
    kind = rng.choice(_kinds())
    data = intact(kind)
    if rng.random() < INTACT_SHARE:
        return Case({f"in/{kind}": data}, intact=True, known=True)
    if rng.random() < 0.25:
        return Case({f"in/{kind}": _hostile(rng, kind)}, known=False)
    return Case({f"in/{kind}": mutated_bytes(rng, data)}, known=kind[2:] in _CHECKED)


def _hostile(rng: Random, kind: str) -> bytes:
    modes = (stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFREG, stat.S_IFREG)
    items = [*_ITEMS]
    for _ in range(rng.randint(1, 2)):
        name = rng.choice((*_ODD_NAMES, "a.txt", "d"))
        mode = rng.choice(modes) | rng.choice((0o644, 0o777, 0o4755, 0))
        data = rng.choice((b"../../etc", b"/etc/passwd", b"x" * 100, bytes(3 << 20)))
        items.insert(rng.randint(0, len(items)), Item(name, data, mode, rng.random() < 0.1))
    with tempfile.TemporaryDirectory() as folder:
        try:
            return make(Path(folder, kind), *items).read_bytes()
        except (ValueError, UnicodeError):  # a name that the writer does not take
            return mutated_bytes(rng, intact(kind))


def _read(case: Case, folder: Path) -> str:
    archive = folder / next(iter(case.files))
    raw = folder / "raw"
    raw.mkdir()
    try:
        place = extract(archive, raw)
    finally:
        around = {path.name for path in folder.iterdir()} | {path.name for path in raw.iterdir()}
        require(around <= {"in", "raw", "home", "x"}, f"something is left: {around}")
    found = {}
    for path in place.rglob("*"):
        require(not path.is_symlink(), f"a link: {path.name}")
        require(path.is_file() or path.is_dir(), f"no file: {path.name}")
        if path.is_file() and path.name != ".archive.json":
            found[str(path.relative_to(place))] = path.read_bytes()
    if not case.known:
        return ACCEPTED
    known = [item.data for item in _ITEMS]
    require(all(data in known for data in found.values()), "a file has other contents")
    if case.intact:
        require(found == {item.name: item.data for item in _ITEMS}, "other files")
    return RIGHT


@cache
def _pack() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        prepare_in(Path(folder))
        with home_in(Path(folder, "home")):
            return pack("camvid", Path(folder, "camvid.tar")).path.read_bytes()


@cache
def _labels() -> Mapping[str, bytes]:
    return {name: data for name, data in prepared_files().items() if name.startswith("labels/")}


def _make_pack(rng: Random) -> Case:
    data = _pack()
    if rng.random() < INTACT_SHARE:
        return Case({"camvid.tar": data}, intact=True)
    return Case({"camvid.tar": mutated_bytes(rng, data)})


def _read_pack(case: Case, folder: Path) -> str:
    card = packed_card(folder / "camvid.tar")
    dataset = unpack(folder / "camvid.tar")
    require(card.name == dataset.name == "camvid", "another name")
    with tempfile.TemporaryDirectory() as place:
        for sample in dataset.samples:
            name = f"labels/{sample.label.relative_to(dataset.root / 'labels')}"
            original = Path(place, "label.png")
            original.write_bytes(_labels()[name])
            same = np.array_equal(read_train_ids(sample.label), read_train_ids(original))
            require(same, f"the label {name} is another one")
            image, label = sample.read()
            require(image.shape[:2] == label.shape, "image and label differ in size")
    return RIGHT


TARGETS = (
    Target("archives (zip, tar, gz, bz2, xz, rar)", _make, _read, 12),
    Target("pack", _make_pack, _read_pack, 4),
)
