"""`prepare` does only what is missing, and ends the same however often it was killed."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import camvid_folder

from pinmem_core.data.catalog import get_card
from pinmem_core.data.convert import Conversion, Reencoding
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.data.verify import verify
from pinmem_core.errors import MachineError
from pinmem_core.images import write_png
from pinmem_core.label_files import read_label
from pinmem_core.locks import hold_lock, lock_file
from pinmem_core.paths import dataset_root

CAMVID = get_card("camvid")


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def converted(monkeypatch) -> list[str]:
    """The ids of the samples that are really converted, in order."""
    seen: list[str] = []
    real = Conversion.convert

    def noting(self, raw, split):
        seen.append(raw.id)
        return real(self, raw, split)

    monkeypatch.setattr(Conversion, "convert", noting)
    return seen


def test_two_locks_may_create_and_remove_their_folder_at_once(tmp_path):
    def hold_often(name: str) -> None:
        for _ in range(300):
            with hold_lock(lock_file(tmp_path / "new" / name), name):
                pass

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(hold_often, "ab")) == [None, None]


def test_a_second_run_converts_nothing_and_changes_nothing(tmp_path, converted):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 6})
    root = prepare(CAMVID, [source]).root
    before = _contents(root)
    converted.clear()
    prepare(CAMVID, [source])
    assert converted == []
    assert _contents(root) == before


def test_only_new_and_changed_samples_are_converted(tmp_path, converted):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 10})
    prepare(CAMVID, [source])
    converted.clear()
    label = read_label(source / "labels" / "0001TP_00002.png")
    write_png(source / "labels" / "0001TP_00002.png", np.flipud(label))
    camvid_folder(tmp_path / "more", {"0016E5": 2})
    for kind in ("images", "labels"):
        for path in (tmp_path / "more" / kind).iterdir():
            shutil.copy(path, source / kind)
    (source / "images" / "0001TP_00003.png").unlink()
    dataset = prepare(CAMVID, [source])
    assert sorted(converted) == ["0001TP_00002", "0016E5_00000", "0016E5_00001"]
    fresh = prepare_elsewhere(source, tmp_path / "fresh")
    assert dataset.summary["digest"] == fresh
    assert not [*dataset.root.rglob("0001TP_00003.png")]


def prepare_elsewhere(source: Path, home: Path) -> str:
    before = os.environ["PINMEM_HOME"]
    os.environ["PINMEM_HOME"] = str(home)
    try:
        return prepare(CAMVID, [source]).summary["digest"]
    finally:
        os.environ["PINMEM_HOME"] = before


@pytest.mark.parametrize(
    ("victim", "spoilt_by"),
    [
        ("labels/*/0001TP_00000.png", "labels/*/0001TP_00001.png"),
        ("labels/*/0001TP_00000.png", None),
        ("images/*/0001TP_00000.png", None),
    ],
)
def test_a_file_that_was_spoilt_is_made_again(tmp_path, victim, spoilt_by):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 3})
    root = prepare(CAMVID, [source], reencoding=Reencoding("png")).root
    before = _contents(root)
    (spoilt,) = root.glob(victim)
    spoilt.write_bytes(next(root.glob(spoilt_by)).read_bytes() if spoilt_by else b"torn")
    assert str(spoilt) in {finding.file for finding in verify("camvid").findings}
    prepare(CAMVID, [source], reencoding=Reencoding("png"))
    assert _contents(root) == before


def test_another_label_map_converts_all(tmp_path, converted):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 3})
    prepare(CAMVID, [source])
    converted.clear()
    prepare(CAMVID, [source], reencoding=Reencoding("png"))
    assert len(converted) == 3


def test_an_interrupted_run_is_taken_up_where_it_stopped(tmp_path, converted):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 8})

    def stop_at_five(event):
        if event.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(CAMVID, [source], jobs=1, on_event=stop_at_five)
    assert not dataset_root("camvid").exists()
    converted.clear()
    prepare(CAMVID, [source], jobs=1)
    assert converted == [f"0001TP_0000{number}" for number in (5, 6, 7)]


_PREPARE = """
import sys
from pathlib import Path
from pinmem_core.data.catalog import get_card
from pinmem_core.locks import lock_file, hold_lock
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.data.convert import Reencoding
from pinmem_core.data.prepare import prepare
prepare(get_card("camvid"), [Path(sys.argv[1])], reencoding=Reencoding("jpeg", height=40),
        on_event=lambda event: print(event.done, flush=True))
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_it_had_run_through(tmp_path, monkeypatch):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 40}, size=(80, 60))
    monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "straight"))
    straight = prepare(CAMVID, [source], reencoding=Reencoding("jpeg", height=40)).root
    monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "killed"))
    root = dataset_root("camvid")
    dice = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _PREPARE, str(source)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(dice.randint(1, 12)):
            process.stdout.readline()
        time.sleep(dice.random() / 100)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not root.exists()
    prepare(CAMVID, [source], reencoding=Reencoding("jpeg", height=40))
    assert _contents(root) == _contents(straight)
    assert [path.name for path in root.parent.iterdir()] == ["camvid"]


def test_what_a_killed_run_left_and_this_one_does_not_want_is_gone(tmp_path):
    work = dataset_root("camvid").with_name(".camvid.part")
    write_png(work / "labels" / "0016E5_9.png", np.zeros((2, 2), np.uint8))
    (work / "conversions.jsonl").write_text('{"key": "torn')
    dataset = prepare(CAMVID, [camvid_folder(tmp_path / "raw", {"0001TP": 3})])
    assert len([p for p in (dataset.root / "labels").rglob("*") if p.is_file()]) == 3
    assert len([*(dataset.root / "labels").iterdir()]) <= 3  # no folder is left empty
    assert len((dataset.root / "conversions.jsonl").read_text().splitlines()) == 3


def test_two_processes_do_not_prepare_the_same_dataset(tmp_path):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 3})
    lock = hold_lock(lock_file(dataset_root("camvid")), "it")
    with lock, pytest.raises(MachineError, match="another pinmem"):
        prepare(CAMVID, [source])


def test_reencoded_images_and_labels_shrink_together(tmp_path):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 3}, size=(80, 60))
    dataset = prepare(CAMVID, [source], reencoding=Reencoding("webp", 80, height=30))
    for sample in dataset.samples:
        image, train_ids = sample.read()
        assert sample.image.parent.parent == dataset.root / "images"
        assert sample.image.name == f"{sample.id}.webp"
        assert image.shape == (30, 40, 3) and train_ids.shape == (30, 40)
    shutil.rmtree(source)
    assert dataset.samples[0].read()  # the copy needs no original


def test_images_under_the_home_move_with_it(tmp_path, home, monkeypatch):
    camvid_folder(home / "raw" / "camvid", {"0001TP": 3})
    prepare(CAMVID, [home / "raw" / "camvid"])
    home.rename(tmp_path / "moved")
    monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "moved"))
    for sample in PreparedDataset.open("camvid").samples:
        sample.read()
