"""Listing folders, and names from outside as clean text."""

import errno
import os
import shutil
import unicodedata
from contextlib import contextmanager
from pathlib import Path

import pytest

from pinmem_core.errors import ConfigError, DataError
from pinmem_core.inference.sources import find_sources
from pinmem_core.paths import as_id, as_portable_name, as_text, expanded, folder_size, iter_files


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(folder: Path, **options: Path) -> list[str]:
    return sorted(iter_files(folder, **options))


def test_hidden_files_and_those_of_systems_are_passed_over(tmp_path):
    touch(tmp_path, "a.png", "b/c.png", "._a.png", ".dir/d.png", "b/.e", "b/Thumbs.db")
    touch(tmp_path, "desktop.ini", "@eaDir/a.png/thumb.jpg", "__MACOSX/b/._c.png")
    assert found(tmp_path) == ["a.png", "b/c.png"]


def test_a_hidden_folder_that_is_named_is_listed(tmp_path):
    assert found(touch(tmp_path / ".data", "a.png")) == ["a.png"]


def test_links_are_followed_and_each_folder_is_listed_once_by_its_own_name(tmp_path):
    touch(tmp_path / "elsewhere", "x.png", "deep/y.png")
    folder = touch(tmp_path / "in", "z/own.png", "file.png")
    (folder / "a").symlink_to("z")  # sorts before the folder itself
    (folder / "disk").symlink_to(tmp_path / "elsewhere")
    (folder / "link.png").symlink_to("file.png")
    expected = ["disk/deep/y.png", "disk/x.png", "file.png", "link.png", "z/own.png"]
    assert found(folder) == expected


def test_circles_of_links_end_and_lead_nowhere_else(tmp_path):
    touch(tmp_path, "not-meant.png")
    folder = touch(tmp_path / "in", "a/x.png", "b/y.png")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "further-up").symlink_to(tmp_path)
    (folder / "a" / "to-b").symlink_to(folder / "b")
    (folder / "b" / "to-a").symlink_to(folder / "a")
    (folder / "itself").symlink_to(folder / "itself")
    (folder / "broken").symlink_to("nowhere")
    assert found(folder) == ["a/x.png", "b/y.png"]


def test_pipes_and_sockets_are_no_files(tmp_path):
    folder = touch(tmp_path, "a.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(folder / "pipe.png")
    assert found(folder) == ["a.png"]


def test_a_folder_is_left_out_by_any_of_its_names(tmp_path):
    folder = touch(tmp_path / "in", "a.png", "masks/a.png")
    (tmp_path / "out").symlink_to(folder / "masks")
    assert found(folder, without=tmp_path / "out") == ["a.png"]
    assert found(folder, without=tmp_path / "not-there") == ["a.png", "masks/a.png"]


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_a_loss(tmp_path, monkeypatch):
    folder = touch(tmp_path, "a.png", "locked/b.png")
    scandir = os.scandir

    def refuse(path):  # root, who may run the tests, may list everything
        if "locked" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="locked/ cannot be listed: Permission denied"):
        found(folder)


def test_text_is_composed_and_says_what_cannot_be_printed():
    assert as_text("images/a b-ü.png") == "images/a b-ü.png"
    assert as_text(unicodedata.normalize("NFD", "Zürich/été.png")) == "Zürich/été.png"
    assert as_text(os.fsdecode(b"caf\xe9_1.png")) == "caf%E9_1.png"
    assert as_text("a\nb\x1b[2J\x9b\u2028\ud800.png") == "a%0Ab%1B[2J%C2%9B%E2%80%A8%ED%A0%80.png"
    assert as_text("日本 👩‍🚀") == "日本 👩‍🚀"


@pytest.mark.parametrize("name", ["plain_1", "a\\b", "c:d?*", "x" * 300, "é" * 200, "con", "a. "])
def test_ids_and_portable_names_fit_into_file_names(name):
    assert as_id(as_id(name)) == as_id(name) and "\\" not in as_id(name)
    portable = as_portable_name(name)
    assert as_portable_name(portable) == portable
    assert not set(portable) & set('\\/:*?"<>|') and portable[-1] not in ". "
    assert max(len(text.encode()) for text in (as_id(name), portable)) <= 240


def test_different_long_names_stay_different():
    assert as_id("x" * 300 + "1") != as_id("x" * 300 + "2")
    assert as_portable_name("CON.png") != "CON.png" and as_portable_name("cone") == "cone"


def test_an_unknown_user_leaves_a_path_as_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/x") == Path("/somewhere/x")
    assert expanded("~nouser-at-all/x") == Path("~nouser-at-all/x")


# Inputs of predictions


def names(*inputs: object, out: Path | None = None) -> list[str]:
    return [str(source.name) for source in find_sources([str(text) for text in inputs], out=out)]


def test_folders_and_patterns_find_the_same(tmp_path):
    touch(tmp_path / "disk2", "s.png")
    folder = touch(tmp_path / "in", "top.png", "._top.png", "sub/a.png", "masks/old.png")
    (folder / "drive2").symlink_to(tmp_path / "disk2")
    (folder / "sub" / "up").symlink_to(folder)
    expected = ["drive2/s.png", "sub/a.png", "top.png"]
    for text in (folder, folder / "**", folder / "**" / "*.png", folder / "**" / "**" / "*.png"):
        assert names(text, out=folder / "masks") == expected
    assert names(folder / "*" / "**" / "*.png", out=folder / "masks") == expected[:2]
    assert names(folder / "sub" / "**" / "a.*") == ["a.png"]


def test_a_folder_of_links_alone_holds_images(tmp_path):
    touch(tmp_path / "disk2", "s.png")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "drive2").symlink_to("../disk2")
    assert names(tmp_path / "links") == ["drive2/s.png"]


def test_patterns_pass_over_what_systems_write_unless_it_is_named(tmp_path):
    touch(tmp_path, "a.png", "Thumbs.db", "._a.png", "@eaDir/b.png", "x/notes.txt", "x/c.png")
    assert names(tmp_path / "*.*") == ["a.png"]
    assert names(tmp_path / "*" / "*.png") == ["x/c.png"]
    assert names(tmp_path / "*" / "**") == ["x/c.png"]
    assert names(tmp_path / "._*") == ["._a.png"]


def test_the_case_of_a_suffix_does_not_matter_in_patterns(tmp_path):
    for name in ("a.png", "b.PNG", "sub/c.Png", "d.jpg", "A.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> set[str]:
        return {str(source.name) for source in find_sources([f"{tmp_path}/{pattern}"])}

    assert found("*.png") == found("*.PNG") == {"a.png", "A.png", "b.PNG"}
    assert found("**/*.png") == {"a.png", "A.png", "b.PNG", "sub/c.Png"}
    assert found("a*.png") == {"a.png"}


def test_an_input_without_a_name_is_not_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="has no name"):
        find_sources([""])


def test_patterns_work_in_folders_whose_names_look_like_patterns(tmp_path):
    touch(tmp_path, "photos[1]/a.png", "photos1/b.png")
    assert names(tmp_path / "photos[1]" / "*.png") == ["a.png"]
    assert names(tmp_path / "photos?" / "*.png") == ["photos1/b.png"]


def test_a_pipe_or_an_endless_name_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="is no regular file"):
        names(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        names(tmp_path / ("x" * 300))


def test_an_input_of_an_unknown_user_is_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"~nouser-at-all/x\.png does not exist"):
        names("~nouser-at-all/x.png")


def test_sizes_are_counted_while_another_process_removes_files(tmp_path, monkeypatch):
    touch(tmp_path, "b", "folder/c")
    (tmp_path / "a").write_bytes(b"123")
    scan = os.scandir

    @contextmanager
    def scan_before_removal(folder):
        with scan(folder) as entries:
            found = list(entries)
        if folder == tmp_path:
            (tmp_path / "b").unlink()
            shutil.rmtree(tmp_path / "folder")
        yield found

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", scan_before_removal)
        assert folder_size(tmp_path) == 3
    assert folder_size(tmp_path / "folder") == 0
