import sys
from pathlib import Path

import pytest
from archive_makers import needs_libarchive, refusal, tree
from rar_writer import (
    HIDDEN_NAMES,
    LOCK_RECORD,
    LOCKED,
    NO_CRC,
    SOLID,
    VOLUME,
    Entry,
    link_record,
    number,
    rar4,
    rar5,
)

from pinmem_core.data.archives import check_archive, extract
from pinmem_core.data.rar import libarchive
from pinmem_core.errors import DataError, MachineError

A = Entry("d/a.txt", b"a" * 5000)
B = Entry("b.txt", b"bb")
TREE = {"d": None, "d/a.txt": A.data, "b.txt": B.data}
ALTERED = Entry("b.txt", b"bB", crc=0x12345678)


def write(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "x.rar").write_bytes(data)
    return tmp_path / "x.rar"


# What the headers tell, whoever unpacks


@needs_libarchive
@pytest.mark.parametrize("rar", [rar4, rar5])
def test_both_formats_are_unpacked(tmp_path, rar):
    archive = write(tmp_path, rar(A, B))
    assert tree(extract(archive, tmp_path)) == TREE
    check_archive(archive)


@needs_libarchive
@pytest.mark.parametrize("rar", [rar4, rar5])
def test_wrong_bytes_are_found_though_libarchive_accepts_them(tmp_path, rar):
    archive = write(tmp_path, rar(A, ALTERED))
    assert "checksum of 'b.txt' is wrong" in refusal(archive).message
    assert (
        "checksum of 'b.txt' is wrong" in refusal(archive, lambda: check_archive(archive)).message
    )


@needs_libarchive
def test_an_archive_that_was_cut_off_between_members_is_found(tmp_path):
    assert "ends early" in refusal(write(tmp_path, rar4(A, B, end=False))).message


@needs_libarchive
@pytest.mark.parametrize(
    "data",
    [
        rar4(Entry("a", bytes(16), flags=LOCKED)),
        rar5(Entry("a", bytes(16), extra=LOCK_RECORD)),
    ],
)
def test_an_encrypted_member_is_refused(tmp_path, data):
    error = refusal(write(tmp_path, data))
    assert isinstance(error, DataError) and "'a' is encrypted" in error.message


@pytest.mark.parametrize("data", [rar4(A, main_flags=HIDDEN_NAMES), rar5(A, hidden_names=True)])
def test_encrypted_names_are_refused_by_the_headers_alone(tools, data):
    error = refusal(write(tools.root, data))
    assert isinstance(error, DataError) and "it is encrypted" in error.message


@pytest.mark.parametrize("rar", [rar4, rar5])
def test_a_volume_is_refused(tmp_path, rar):
    error = refusal(write(tmp_path, rar(A, main_flags=VOLUME)))
    assert isinstance(error, DataError) and "several volumes" in error.message


@needs_libarchive
@pytest.mark.parametrize(("kind", "word"), [(1, "symbolic link"), (4, "hard link")])
def test_links_of_format_5_are_refused(tmp_path, kind, word):
    link = Entry("link", extra=link_record(kind, "b.txt"))
    assert word in refusal(write(tmp_path, rar5(B, link))).message


@pytest.mark.parametrize("size", [2**40, 2**63 - 1, 2**80])
def test_absurd_lengths_are_damage(tmp_path, size):
    assert "damaged" in refusal(write(tmp_path, rar5(Entry("a", packed=size)))).message
    long = rar5(Entry("a", extra=b"x" * 20)).replace(b"x" * 20, number(size).ljust(20, b"\x01"))
    assert "damaged" in refusal(write(tmp_path, long)).message


def test_a_number_without_an_end_is_damage(tmp_path):
    endless = b"Rar!\x1a\x07\x01\x00" + bytes(4) + b"\xff" * 2**24
    assert "damaged" in refusal(write(tmp_path, endless)).message


# Tools in the place of libarchive

FAKE = """#!/bin/sh
for archive; do :; done
/bin/cat "${archive%/*}/output"
[ -e "${archive%/*}/output.error" ] || exit 0
/bin/cat "${archive%/*}/output.error" >&2
exit 3
"""
TOOLS = ("unrar", "7zz", "7z", "bsdtar")
D = Entry("d", mode=0o040755)


class Tools:
    """A machine without libarchive, on which a tool may be installed that prints `output`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir()
        self.archive = write(root, rar4(A, D, B))

    def install(self, name: str, output: bytes = A.data + B.data) -> None:
        (self.root / "bin" / name).write_text(FAKE)
        (self.root / "bin" / name).chmod(0o755)
        (self.root / "output").write_bytes(output)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "libarchive", None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Tools(tmp_path)


each_tool = pytest.mark.parametrize("tool", TOOLS)


@each_tool
def test_a_tool_stands_in_for_libarchive(tools, tool):
    tools.install(tool)
    check_archive(tools.archive)
    assert tree(extract(tools.archive, tools.root / "raw")) == TREE


def test_without_any_tool_the_ways_to_get_one_are_named(tools):
    for act in (None, lambda: check_archive(tools.archive)):
        error = refusal(tools.archive, act)
        assert isinstance(error, MachineError)
        for way in ("apt install libarchive13", "brew install libarchive", "unrar"):
            assert way in error.hint


@pytest.mark.parametrize("problem", [OSError, TypeError, AttributeError])
def test_a_missing_library_is_not_the_end(problem, monkeypatch):
    def fail(name: str) -> None:
        raise problem

    monkeypatch.setattr("pinmem_core.data.rar.import_module", fail)
    assert libarchive() is None


@pytest.mark.parametrize("rar", [rar4, rar5])
@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry("../a.txt", b"a"), "leads out"),
        (Entry("..\\a.txt", b"a"), "leads out"),
        (Entry("/a.txt", b"a"), "absolute"),
        (Entry("\x1b[2J", b"a"), "control characters"),
        (Entry("b.txt", b"a"), "occurs twice"),
        (Entry("a", mode=0o120777), "symbolic link"),
        (Entry("a", mode=0o020666), "device"),
        (Entry("a", size=99999999999), "200 times"),
    ],
)
def test_hostile_headers_are_refused(tools, rar, entry, reason):
    tools.install("unrar")
    error = refusal(write(tools.root, rar(B, entry)))
    assert isinstance(error, DataError) and reason in error.message


@each_tool
@pytest.mark.parametrize(
    "output",
    [A.data, A.data + B.data + b"c", A.data + b"bB", b""],
    ids=["few", "more", "wrong", "0"],
)
def test_a_tool_that_prints_other_bytes_is_found_out(tools, tool, output):
    tools.install(tool, output)
    assert "damaged" in refusal(tools.archive).message


@each_tool
@pytest.mark.parametrize(
    ("complaint", "kind", "reason"),
    [
        ("", DataError, "ended with code 3"),
        ("ERROR: CRC Failed : b.txt\nmore", DataError, "says: ERROR: CRC Failed : b.txt."),
        ("Incorrect password for x.rar", DataError, "is encrypted"),
        ("ERROR: Unsupported Method : b.txt", MachineError, "Unsupported Method"),
    ],
)
def test_a_tool_that_fails_is_quoted(tools, tool, complaint, kind, reason):
    tools.install(tool)
    (tools.root / "output.error").write_text(complaint)
    error = refusal(tools.archive)
    assert isinstance(error, kind) and reason in error.message


@each_tool
def test_the_bytes_of_what_is_not_wanted_are_skipped(tools, tool):
    write(tools.root, rar4(Entry("__MACOSX/a.txt", A.data), D, B))
    tools.install(tool)
    assert tree(extract(tools.archive, tools.root / "raw")) == {"d": None, "b.txt": b"bb"}


def test_an_archive_may_be_called_like_an_option(tools, monkeypatch):
    tools.install("unrar")
    tools.archive.rename(tools.root / "-x.rar")
    monkeypatch.chdir(tools.root)
    assert tree(extract(Path("-x.rar"), tools.root / "raw")) == TREE


# What libarchive cannot read, another one may

UNREADABLE = {
    "solid": rar4(A, D, Entry("b.txt", b"bb", flags=SOLID)),
    "copy": rar5(A, D, Entry("b.txt", extra=link_record(5, "x"), size=2)),
    "other checksum": rar5(A, D, Entry("b.txt", b"bb", crc=NO_CRC)),
}


@needs_libarchive
@pytest.mark.parametrize("case", UNREADABLE)
def test_unrar_reads_what_libarchive_cannot(tmp_path, monkeypatch, case):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    tools = Tools(tmp_path)
    write(tmp_path, UNREADABLE[case])
    for act in (None, lambda: check_archive(tools.archive)):
        error = refusal(tools.archive, act)
        assert isinstance(error, MachineError) and "Install the tool 'unrar'" in error.hint
    tools.install("unrar")
    assert tree(extract(tools.archive, tmp_path / "raw")) == TREE


@needs_libarchive
def test_libarchive_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    tools = Tools(tmp_path)
    tools.install("unrar", bytes(5002))
    assert tree(extract(tools.archive, tmp_path / "raw")) == TREE
