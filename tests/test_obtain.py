"""Archives as people have them: renamed, copied, packed once more, in folders of other things."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from PIL import Image

from pinmem_core.datasets import DatasetCard, get_card
from pinmem_core.errors import DataError
from pinmem_core.events import Notice
from pinmem_core.preparation import obtain, prepare

BDD = get_card("bdd100k")
RNG = np.random.default_rng(0)


def picture(*shape: int, form: str = "PNG", high: int = 19) -> bytes:
    data = io.BytesIO()
    Image.fromarray(RNG.integers(0, high, shape, dtype=np.uint8)).save(data, form)
    return data.getvalue()


IMAGE, LABEL = picture(6, 8, 3, form="JPEG", high=255), picture(6, 8)
IMAGES = {f"bdd100k/images/10k/train/{n}.jpg": IMAGE for n in "ab"}
LABELS = {f"bdd100k/labels/sem_seg/masks/train/{n}.png": LABEL for n in "ab"}


def zipped(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return data.getvalue()


def put(folder: Path, **archives: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, members in archives.items():
        (folder / name).write_bytes(zipped(members))
    return folder


def counts(card: DatasetCard, *sources: Path, events: list | None = None) -> dict[str, int]:
    heard = [] if events is None else events
    return prepare(card, obtain(card, sources, on_event=heard.append)).counts


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("10k_images_train.zip", "bdd100k_sem_seg_labels_trainval.zip"),
        ("10k_images_train (1).zip", "bdd100k_sem_seg_labels_trainval(12).zip"),
        ("10K_IMAGES_TRAIN.ZIP", "bdd100k_sem_seg_labels_trainval (2).ZIP"),
        ("10k_images_train.zip.1", "bdd100k_sem_seg_labels_trainval.zip"),
        ("bdd100k_images_10k.zip", "bdd100k_sem_seg_labels_trainval.zip"),
    ],
)
def test_archives_are_known_by_the_names_that_they_have_on_disk(tmp_path, images, labels):
    put(tmp_path / "in", **{images: IMAGES, labels: LABELS})
    assert counts(BDD, tmp_path / "in") == {"train": 2}
    assert counts(BDD, tmp_path / "in" / images, tmp_path / "in" / labels) == {"train": 2}


def test_the_old_archive_holds_both(tmp_path):
    members = {f"bdd100k/seg/images/val/{n}.jpg": IMAGE for n in "abc"}
    members |= {f"bdd100k/seg/labels/val/{n}_train_id.png": LABEL for n in "abc"}
    assert counts(BDD, put(tmp_path / "in", **{"bdd100k_seg.zip": members})) == {"val": 3}


def test_of_two_copies_the_one_without_a_number_counts(tmp_path):
    archives = {"10k_images_train (1).zip": {}, "10k_images_train.zip": IMAGES}
    folder = put(tmp_path / "in", **archives, **{"bdd100k_sem_seg_labels_trainval.zip": LABELS})
    events: list = []
    assert counts(BDD, folder, events=events) == {"train": 2}
    said = [event.message for event in events if isinstance(event, Notice)]
    assert any("10k_images_train (1).zip" in message for message in said)


def test_archives_of_other_names_are_named_with_a_command_that_works(tmp_path):
    members = {"my streets.zip": IMAGES | LABELS, "b.7z": {}, "c.zip.part": {}, "d.txt": {}}
    folder = put(tmp_path / "in", **members)
    with pytest.raises(DataError) as caught:
        obtain(BDD, [folder])
    text = f"{caught.value.message} {caught.value.hint}"
    assert all(str(folder / name) in text for name in ("my streets.zip", "b.7z", "c.zip.part"))
    assert f"--from '{folder / 'my streets.zip'}'" in text and "d.txt" not in text
    assert counts(BDD, folder / "my streets.zip") == {"train": 2}


def test_a_folder_that_holds_the_dataset_is_taken_and_its_archives_are_named(tmp_path):
    folder = put(tmp_path / "in", **{"10k_images_train.zip": IMAGES, "x.zip": {}})
    for name, data in (IMAGES | LABELS).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    events: list = []
    assert obtain(BDD, [folder], on_event=events.append) == [folder]
    assert [
        e.message for e in events if "10k_images_train.zip" in e.message and "x.zip" in e.message
    ]


def test_what_is_unpacked_already_counts_next_to_archives(tmp_path):
    folder = put(tmp_path / "in", **{"10k_images_train.zip": IMAGES})
    for name, data in LABELS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert counts(BDD, folder) == {"train": 2}


def tar_xz(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:xz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_an_archive_in_an_archive_is_unpacked_once(tmp_path, home):
    inner = {"10k_images_train.zip": zipped(IMAGES), "x/labels.zip": zipped(LABELS)}
    outer = tar_xz(tmp_path / "all.tar.xz", {"in.zip": zipped(inner)})
    assert counts(BDD, outer) == {"train": 2}
    assert not list((home / "raw").rglob("*.zip"))  # the outer archive still holds them
    assert counts(BDD, outer) == {"train": 2}


def test_archives_in_an_archive_share_its_limit(tmp_path, home):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(40 << 20))
    (tmp_path / "x.zip").write_bytes(zipped({f"{n}.zip": bomb.getvalue() for n in range(3)}))
    with pytest.raises(DataError, match="would grow to more than 200 times"):
        obtain(BDD, [tmp_path / "x.zip"])
    written = sum(p.stat().st_size for p in home.rglob("*") if p.is_file())
    assert written < 90 << 20


def test_an_archive_of_an_unknown_kind_is_named_as_one(tmp_path):
    (tmp_path / "a.7z").write_bytes(b"7z")
    (tmp_path / "a.txt").write_bytes(b"a")
    with pytest.raises(DataError, match="an archive of a kind"):
        obtain(BDD, [tmp_path / "a.7z"])
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        obtain(BDD, [tmp_path / "a.txt"])


def test_extract_says_what_it_left(tmp_path):
    folder = put(tmp_path / "in", **{"10k_images_train.zip": IMAGES, "x.zip": {}})
    result = Result("data", "extract", "bdd100k", "--from", str(folder))
    assert result.code == 0 and "x.zip" in result.err and "10k_images_train" in result.out
