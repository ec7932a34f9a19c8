"""Makes archives of all kinds, as hostile as a test asks, and watches what they do."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rar_writer import LOCKED, Entry, rar4

from pinmem_core.data.archives import extract
from pinmem_core.data.rar import libarchive
from pinmem_core.errors import PinMemError


@dataclass(frozen=True)
class Item:
    name: str
    data: bytes = b"data"
    mode: int = stat.S_IFREG | 0o644
    is_hard_link: bool = False
    is_encrypted: bool = False


def make_zip(path: Path, *items: Item) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for item in items:
            info = zipfile.ZipInfo("x")
            info.filename = item.name  # as it is: the constructor ends it at a NUL
            info.external_attr = item.mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, item.data)
    data = bytearray(path.read_bytes())
    if any(item.is_encrypted for item in items):
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    return path


TAR_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def make_tar(path: Path, *items: Item) -> Path:
    compressions = {
        ".gz": "gz",
        ".tgz": "gz",
        ".bz2": "bz2",
        ".tbz2": "bz2",
        ".xz": "xz",
        ".txz": "xz",
    }
    with tarfile.open(path, f"w:{compressions.get(path.suffix, '')}") as file:
        for item in items:
            info = tarfile.TarInfo(item.name)
            info.mode = stat.S_IMODE(item.mode)
            info.type = tarfile.LNKTYPE if item.is_hard_link else TAR_TYPES[stat.S_IFMT(item.mode)]
            info.linkname = "ok.txt"
            info.size = len(item.data) if info.isreg() else 0
            file.addfile(info, io.BytesIO(item.data))
    return path


def make_rar(path: Path, *items: Item) -> Path:
    entries = (Entry(i.name, i.data, i.mode, LOCKED * i.is_encrypted) for i in items)
    path.write_bytes(rar4(*entries))
    return path


needs_libarchive = pytest.mark.skipif(libarchive() is None, reason="the system lacks libarchive")
MAKERS = {"x.zip": make_zip, "x.tar": make_tar, "x.tar.gz": make_tar, "x.tgz": make_tar}
MAKERS |= dict.fromkeys(("x.tar.bz2", "x.tar.xz", "x.txz"), make_tar)
FORMATS = [*MAKERS, pytest.param("x.rar", marks=needs_libarchive)]
MAKERS["x.rar"] = make_rar
each_format = pytest.mark.parametrize("name", FORMATS)


def make(path: Path, *items: Item) -> Path:
    return MAKERS[f"x.{path.name.partition('.')[2].lower()}"](path, *items)


def tree(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder but pinmem's own note; None stands for folders."""
    paths = (path for path in folder.rglob("*") if path.name != ".archive.json")
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in paths
    }


def refusal(archive: Path, act: Callable[[], object] | None = None) -> PinMemError:
    """What unpacking an archive ends with, which must change nothing."""
    root = archive.parent
    (root / "raw").mkdir(exist_ok=True)
    before = tree(root)
    with pytest.raises(PinMemError) as caught:
        act() if act else extract(archive, root / "raw")
    assert tree(root) == before
    assert "\n" not in caught.value.message and caught.value.message.endswith(".")
    return caught.value
