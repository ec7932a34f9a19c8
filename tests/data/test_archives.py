import gzip
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from archive_makers import (
    FORMATS,
    Item,
    each_format,
    make,
    make_tar,
    make_zip,
    needs_libarchive,
    refusal,
    tree,
)
from rar_writer import Entry, rar4

from pinmem_core import events as events_module
from pinmem_core.data import archives
from pinmem_core.data.archive_readers import Member, exactly
from pinmem_core.data.archives import (
    LARGEST_GROWTH,
    SMALL,
    Audit,
    check_archive,
    extract,
    is_archive,
    stem,
)
from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import Progress

# What archives are for


@each_format
def test_files_and_folders_are_unpacked(tmp_path, name):
    items = [Item("a/b.txt", b"b" * 3000), Item("c.txt", b""), Item("d", b"", stat.S_IFDIR | 0o755)]
    folder = extract(make(tmp_path / name, *items), tmp_path / "raw")
    assert folder == tmp_path / "raw" / "x"
    assert tree(folder) == {"a": None, "a/b.txt": b"b" * 3000, "c.txt": b"", "d": None}
    assert [path.name for path in folder.parent.iterdir()] == ["x"]
    check_archive(tmp_path / name)


@each_format
def test_backslashes_are_folders_too(tmp_path, name):
    folder = extract(make(tmp_path / name, Item("a\\b\\c.txt"), Item("./a/d.txt")), tmp_path)
    assert set(tree(folder)) == {"a", "a/b", "a/b/c.txt", "a/d.txt"}


def test_a_zip_may_mark_folders_by_their_names_alone(tmp_path):
    archive = make_zip(tmp_path / "x.zip", Item("a/", b"", 0), Item("b\\", b"", 0))
    assert tree(extract(archive, tmp_path)) == {"a": None, "b": None}


@each_format
def test_what_macos_adds_is_left_out(tmp_path, name):
    items = [Item("a.txt"), Item("__MACOSX/._a.txt"), Item("b/.DS_Store"), Item("b/c.txt")]
    assert set(tree(extract(make(tmp_path / name, *items), tmp_path))) == {"a.txt", "b", "b/c.txt"}


@each_format
def test_no_permission_is_taken_over(tmp_path, name):
    folder = extract(make(tmp_path / name, Item("run", mode=stat.S_IFREG | 0o6755)), tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    assert (folder / "run").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.ZIP", "a"),
        ("a.b.tar.gz", "a.b"),
        ("a.tgz", "a"),
        ("a.Tar", "a"),
        ("a.rar", "a"),
        ("a.tar.xz", "a"),
        ("a.TBZ2", "a"),
        ("a.gz", None),
        ("a.7z", None),
        ("zip", None),
        (".zip", None),
        ("...zip", None),  # its folder would be the parent's
    ],
)
def test_a_suffix_marks_an_archive(tmp_path, name, expected):
    assert is_archive(Path(name)) == (expected is not None)
    if expected:
        assert stem(name) == expected
    else:
        (tmp_path / name).touch()
        assert "no archive" in refusal(tmp_path / name).message


@pytest.mark.parametrize("pause", [0.0, 0.1])
@each_format
def test_progress_is_reported_in_bytes_up_to_the_end(tmp_path, name, pause, monkeypatch):
    monkeypatch.setattr(events_module, "PROGRESS_INTERVAL", pause)
    events: list[Progress] = []
    archive = make(tmp_path / name, *(Item(f"{i}.bin", os.urandom(9000)) for i in range(200)))
    extract(archive, tmp_path, on_event=events.append)
    done = [event.done for event in events]
    total = archive.stat().st_size if ".t" in name else 200 * 9000
    assert {(event.task, event.total, event.unit) for event in events} == {
        (f"unpacking {name}", total, "bytes")
    }
    assert done == sorted(done) and 0 < done[0] < done[-1] == total
    assert len(done) > 200 if pause == 0 else len(done) < 50


# Unpacking once


def test_an_archive_is_unpacked_once(tmp_path):
    archive = make(tmp_path / "x.zip", Item("a.txt"))
    folder = extract(archive, tmp_path)
    (folder / "a.txt").write_text("mine")
    extract(archive, tmp_path)
    assert tree(folder) == {"a.txt": b"mine"}


def test_a_changed_archive_is_unpacked_again(tmp_path):
    folder = extract(make(tmp_path / "x.zip", Item("a.txt")), tmp_path)
    extract(make(tmp_path / "x.zip", Item("b.txt", b"new")), tmp_path)
    assert tree(folder) == {"b.txt": b"new"}


def test_a_damaged_change_leaves_what_was_unpacked_before(tmp_path):
    folder = extract(make(tmp_path / "x.zip", Item("a.txt")), tmp_path)
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError):
        extract(tmp_path / "x.zip", tmp_path)
    assert tree(folder) == {"a.txt": b"data"}


def test_a_folder_of_the_users_is_not_replaced(tmp_path):
    archive = make(tmp_path / "x.zip", Item("a.txt"))
    (tmp_path / "raw" / "x").mkdir(parents=True)
    (tmp_path / "raw" / "x" / "mine.txt").write_text("mine")
    assert "in the way" in refusal(archive).message


def test_what_a_killed_run_left_is_cleaned_up(tmp_path):
    archive = make(tmp_path / "x.zip", *(Item(f"{i}.txt", os.urandom(99)) for i in range(50)))
    code = (
        "import sys, time, pathlib\n"
        "from pinmem_core.data.archives import extract\n"
        "def wait(event): print(event, flush=True); time.sleep(60)\n"
        "extract(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), on_event=wait)\n"
    )
    command = [sys.executable, "-c", code, str(archive), str(tmp_path / "raw")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.kill()
    (left,) = (tmp_path / "raw").glob(".*.part")
    assert left.name.startswith(".x.") and left.suffix == ".part" and len(tree(left)) == 1
    left.with_name(".x.12345.part").mkdir()  # of an earlier version, with the process in its name
    others = {".xy.1.part", ".x.1.txt", ".x.y.1.part"}
    for other in others:
        left.with_name(other).mkdir()
    folder = extract(archive, tmp_path / "raw")
    assert len(tree(folder)) == 50
    assert {path.name for path in (tmp_path / "raw").iterdir()} == others | {"x"}


# Hostile archives

OK = Item("ok.txt")
LINK = stat.S_IFLNK | 0o777
HOSTILE = {
    "parent": ([Item("../evil.txt")], "leads out"),
    "deep parent": ([Item("a/b/../../../evil.txt")], "leads out"),
    "backslashed parent": ([Item("a\\..\\..\\evil.txt")], "leads out"),
    "absolute": ([Item("/evil.txt")], "absolute"),
    "drive": ([Item("C:\\evil.txt")], "absolute"),
    "drive below": ([Item("a/C:evil.txt")], "absolute"),
    "share": ([Item("\\\\host\\evil.txt")], "absolute"),
    "link": ([Item("link", b"/etc/passwd", LINK)], "symbolic link"),
    "through a link": ([Item("up", b"..", LINK), Item("up/evil.txt")], "symbolic link"),
    "device": ([Item("null", b"", stat.S_IFCHR | 0o666)], "device"),
    "pipe": ([Item("pipe", b"", stat.S_IFIFO | 0o666)], "named pipe"),
    "twice": ([Item("a.txt"), Item("b.txt"), Item("a.txt")], "occurs twice"),
    "twice in disguise": ([Item("a/b.txt"), Item("c"), Item("a\\.\\b.txt")], "occurs twice"),
    "file then folder": ([Item("a"), Item("a/b.txt")], "below a file"),
    "folder then file": ([Item("a/b.txt"), Item("a")], "both a file and a folder"),
    "newline": ([Item("a\nb.txt")], "control characters"),
    "escape": ([Item("\x1b[2Ja.txt")], "control characters"),
    "marker": ([Item(".archive.json")], "keeps for itself"),
    "marker in capitals": ([Item("./.ARCHIVE.json")], "keeps for itself"),
}


@each_format
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_member_is_refused_and_nothing_written(tmp_path, name, case):
    items, reason = HOSTILE[case]
    error = refusal(make(tmp_path / name, OK, *items))
    assert isinstance(error, DataError)
    assert reason in error.message and str(tmp_path / name) in error.message
    assert error.message.isprintable() and "official source" in error.hint


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_hard_link_is_refused(tmp_path, name):
    archive = make(tmp_path / name, OK, Item("b.txt", is_hard_link=True))
    assert "hard link" in refusal(archive).message


@pytest.mark.parametrize("name", ["x.zip", pytest.param("x.rar", marks=needs_libarchive)])
def test_an_encrypted_member_is_refused(tmp_path, name):
    archive = make(tmp_path / name, Item("a.txt", is_encrypted=True))
    assert "is encrypted" in refusal(archive).message
    assert "is encrypted" in refusal(archive, lambda: check_archive(archive)).message


def test_a_nul_in_a_name_is_refused(tmp_path):
    assert "control" in refusal(make_zip(tmp_path / "x.zip", Item("a\0.txt"))).message


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_bomb_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 2**16)
    archive = make(tmp_path / name, OK, Item("zeros", bytes(2**22)))
    assert "200 times" in refusal(archive).message


@needs_libarchive
def test_a_rar_that_says_it_is_a_bomb_is_refused(tmp_path):
    (tmp_path / "x.rar").write_bytes(rar4(Entry("a", b"x"), Entry("zeros", b"x", size=2**40)))
    assert "200 times" in refusal(tmp_path / "x.rar").message


@pytest.mark.parametrize("size", [1000, 2**20])
def test_growth_is_limited_by_the_archives_size(tmp_path, size):
    with (tmp_path / "x.zip").open("wb") as file:
        file.truncate(size)
    members = Audit(tmp_path / "x.zip")
    members.admit(Member("a", max(SMALL, LARGEST_GROWTH * size)))
    members.admit(Member("b", -5))  # takes nothing back
    with pytest.raises(DataError):
        members.admit(Member("c", 1))


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path):
    archive = make_zip(tmp_path / "x.zip", Item("zeros", bytes(100_000)))
    data = archive.read_bytes()
    archive.write_bytes(data.replace((100_000).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    assert "damaged" in refusal(archive).message


def test_no_member_is_read_beyond_its_size(tmp_path):
    blocks = iter([b"1234", b"5678", b"90"])
    with pytest.raises(DataError, match="more bytes"):
        list(exactly(tmp_path / "x.zip", Member("a", 6), blocks))
    assert list(blocks) == [b"90"]


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    extract(make_zip(tmp_path / "y.zip", *(Item(str(i)) for i in range(3))), tmp_path)
    archive = make_zip(tmp_path / "x.zip", *(Item(str(i)) for i in range(4)))
    assert "more than 3 members" in refusal(archive).message


def test_a_long_list_of_members_is_refused_before_it_is_read(tmp_path):
    archive = make_zip(tmp_path / "x.zip", Item("a"))
    end = archive.read_bytes()[-22:]
    with archive.open("wb") as file:
        file.truncate(2**27)  # all of it a list, says the end
        file.seek(2**27)
        file.write(end[:12] + (2**27).to_bytes(4, "little") + bytes(6))
    assert "more than 500,000 members" in refusal(archive).message
    for count in (2**32, 2**27):
        locator = b"PK\x06\x07" + bytes(16)
        large = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(28) + count.to_bytes(8, "little")
        with archive.open("wb") as file:
            file.truncate(2**27)
            file.seek(2**27)
            file.write(large + bytes(8) + locator + end[:8] + b"\xff" * 12 + bytes(2))
        assert "more than 500,000 members" in refusal(archive).message


@each_format
@pytest.mark.parametrize("path", ["n" * 256, "é" * 128 + "/a", "/".join(["name"] * 500)])
def test_a_name_that_no_disk_takes_is_refused(tmp_path, name, path):
    assert "too long a name" in refusal(make(tmp_path / name, Item(path))).message


def test_xz_may_not_ask_for_all_memory(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**30}]
    data = make_tar(tmp_path / "y.tar", Item("a")).read_bytes()
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(data, filters=filters))
    assert "Memory usage limit" in refusal(tmp_path / "x.tar.xz").message


@pytest.mark.parametrize("padding", [0, 4, 2**20])
def test_xz_may_come_in_several_streams(tmp_path, padding):
    data = make_tar(tmp_path / "y.tar", Item("a", os.urandom(3000)), Item("b")).read_bytes()
    parts = [lzma.compress(part) for part in (data[:1000], b"", data[1000:])]
    (tmp_path / "x.tar.xz").write_bytes(bytes(padding).join([*parts, b""]))
    assert set(tree(extract(tmp_path / "x.tar.xz", tmp_path))) == {"a", "b"}


def test_an_endless_header_is_not_read_into_memory(tmp_path):
    info = tarfile.TarInfo("@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**21
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(2**21)))
    assert "header is too long" in refusal(tmp_path / "x.tar.gz").message


@each_format
def test_a_full_disk_is_reported_beforehand(tmp_path, name, monkeypatch):
    archive = make(tmp_path / name, Item("a.bin", os.urandom(50_000)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 40_000))
    error = refusal(archive)
    assert isinstance(error, MachineError) and "0.00 GB left" in error.message


# Damaged archives


def _cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _cut_at_the_end(data: bytes) -> bytes:
    return data[:-3]


def _flip_in_the_middle(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]


def _assert_damage_is_detected(archive: Path, spoil: Callable[[bytes], bytes]) -> None:
    make(archive, *(Item(f"{i}.bin", os.urandom(4000)) for i in range(9)))
    archive.write_bytes(spoil(archive.read_bytes()))
    for act in (None, lambda: check_archive(archive)):
        error = refusal(archive, act)
        assert isinstance(error, DataError) and "damaged" in error.message
        assert error.hint == "Fetch it again."


@each_format
def test_a_cut_off_archive_is_detected(tmp_path, name):
    _assert_damage_is_detected(tmp_path / name, _cut_in_half)


@pytest.mark.parametrize("spoil", [_cut_at_the_end, _flip_in_the_middle])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "x.tar"])
def test_small_damage_is_detected(tmp_path, name, spoil):
    """A plain tar has no checksum of its data, and ends in zeros."""
    _assert_damage_is_detected(tmp_path / name, spoil)


@pytest.mark.parametrize(("name", "start"), [("x.zip", 30 + len("a.txt")), ("x.tgz", 10)])
def test_what_cannot_be_decompressed_is_damage(tmp_path, name, start):
    archive = make_zip(tmp_path / "x.zip", Item("a.txt", bytes(5000)))
    if name == "x.tgz":
        archive = tmp_path / name
        archive.write_bytes(gzip.compress(make_tar(tmp_path / "x.tar", OK).read_bytes()))
    data = archive.read_bytes()
    archive.write_bytes(data[:start] + b"\x07" + data[start + 1 :])  # no such kind of block
    assert "invalid block type" in refusal(archive).message


def test_a_checksum_behind_the_end_of_a_tar_is_checked(tmp_path):
    tar = make_tar(tmp_path / "x.tar", Item("a.txt")).read_bytes()
    data = gzip.compress(tar + bytes(3 * 2**20))
    (tmp_path / "x.tgz").write_bytes(data[:-8] + b"1234" + data[-4:])
    assert "CRC" in refusal(tmp_path / "x.tgz").message


@pytest.mark.parametrize("keep", [512 + 1024, 512 + 1000, 512 + 1024 + 200])
def test_a_tar_that_ends_before_its_end_is_detected(tmp_path, keep):
    archive = make_tar(tmp_path / "x.tar", Item("a", bytes(1024)), Item("b"))
    archive.write_bytes(archive.read_bytes()[:keep])
    assert "damaged" in refusal(archive).message


def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path):
    archive = make_tar(tmp_path / "x.tar", Item("a", bytes(1024)), Item("b"), Item("c"))
    data = archive.read_bytes()
    archive.write_bytes(data[:1536] + b"X" + data[1537:])
    assert "checksum" in refusal(archive).message


@each_format
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html>\n<html>log in</html>", "a web page (it starts with '<!DOCTYPE html>')"),
        (b"\n  <html>", "a web page"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(50), "a 7z archive"),
        (b"", "is empty"),
        (bytes(100), None),
    ],
)
def test_what_is_no_archive_is_named_by_its_type(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    for act in (None, lambda: check_archive(tmp_path / name)):
        if reason:
            assert reason in refusal(tmp_path / name, act).message
        elif name != "x.tar":  # a tar of nothing is all zeros
            assert isinstance(refusal(tmp_path / name, act), DataError)


def test_one_kind_of_archive_is_not_taken_for_another(tmp_path):
    make_tar(tmp_path / "x.tar.gz", OK).rename(tmp_path / "x.zip")
    error = refusal(tmp_path / "x.zip")
    assert "is not a zip archive, but a gzip archive" in error.message
    assert f"Rename it to {tmp_path / 'x.tar.gz'}" in (error.hint or "")


def test_a_missing_archive_is_named(tmp_path):
    missing = tmp_path / "x.zip"
    for act in (None, lambda: check_archive(missing)):
        assert f"cannot read {missing}" in refusal(missing, act).message


def test_members_that_damage_hides_in_a_zips_directory_are_missed(tmp_path):
    archive = make_zip(tmp_path / "x.zip", Item("a"), Item("b"), Item("c"))
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 32] = 47  # a comment as long as the next entry
    archive.write_bytes(data)
    assert "it lists 2 of 3 members" in refusal(archive).message


def test_a_split_zip_is_explained(tmp_path):
    archive = make_zip(tmp_path / "x.zip", OK)
    whole = archive.read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    archive.write_bytes(whole[: end + 4] + b"\x02" + whole[end + 5 :])
    assert "zip -s 0 x.zip --out x-whole.zip" in refusal(archive).hint
    archive.write_bytes(whole)
    (tmp_path / "x.z01").touch()
    assert "several pieces" in refusal(archive).message


def test_an_unknown_compression_is_no_damage(tmp_path):
    archive = make_zip(tmp_path / "x.zip", OK)
    data = bytearray(archive.read_bytes())
    data[8] = data[data.index(b"PK\x01\x02") + 10] = 9  # "deflate64", which Windows uses
    archive.write_bytes(data)
    error = refusal(archive)
    assert isinstance(error, MachineError) and "unzip" in error.hint


def test_a_partial_file_is_checked_under_its_future_name(tmp_path):
    part = make_zip(tmp_path / "x.zip", OK).rename(tmp_path / ".x.zip.part")
    check_archive(part, "x.zip")
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(DataError):
        check_archive(part, "x.zip")
