"""Mistakes that people make with the files of published datasets."""

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest
from conftest import Result
from published import (
    CASES,
    Case,
    bdd100k,
    bdd100k_old,
    cityscapes,
    grey,
    idd,
    mapillary,
    picture,
    synthia,
)

from pinmem_core.data.catalog import get_card
from pinmem_core.data.locate import locate_raw_files
from pinmem_core.data.prepare import prepare
from pinmem_core.data.state import state_of
from pinmem_core.errors import DataError
from pinmem_core.label_files import read_train_ids

TRAIN_IDS = np.arange(20).reshape(4, 5) % 19
TRAIN_IDS[0, 0] = 255


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("dataset", "images", "labels"),
    [
        ("gtav", "images/00001.png", "labels/00001.png"),
        ("wilddash2", "images/a.jpg", "labels/a.png"),
        ("kitti", "training/image_2/000000_10.png", "training/semantic/000000_10.png"),
    ],
)
def test_labels_that_someone_turned_into_train_ids_are_not_read_as_ids(
    tmp_path, dataset, images, labels
):
    form = "jpeg" if images.endswith(".jpg") else "png"
    files = {images: picture(1, form, (5, 4)), labels: grey(TRAIN_IDS)}
    folder, card = written(tmp_path, files), get_card(dataset)
    with pytest.raises(DataError, match="hold trainIds") as error:
        prepare(card, [folder])
    assert "--label-map trainids" in error.value.hint
    sample = prepare(card, [folder], label_map="trainids", strict=True).samples[0]
    assert read_train_ids(sample.label).tolist() == TRAIN_IDS.tolist()


def renamed(case: Case, **names: str) -> Case:
    """Return a case with archives of other names, by the stems of the old ones."""
    archives = {names.get(name.split(".")[0], name): f for name, f in case.archives.items()}
    return Case(case.dataset, case.label_map, archives, case.samples)


@pytest.mark.parametrize(
    "case",
    [
        CASES["mapillary 1.2"](),  # either archive will do
        renamed(bdd100k_old(), **{"10k_images_train": "bdd100k_seg.zip"}),
        renamed(idd(), **{"idd-segmentation": "idd-20k-I.tar.gz"}),
    ],
    ids=lambda case: case.dataset,
)
def test_a_dataset_from_archives_of_ones_own_is_prepared_again_without_naming_them(tmp_path, case):
    card, folder = get_card(case.dataset), case.write(tmp_path / "in")
    first = prepare(card, locate_raw_files(card, [folder]))
    for path in folder.iterdir():
        path.unlink()  # they are unpacked
    again = prepare(card, locate_raw_files(card))
    assert again.summary["digest"] == first.summary["digest"]
    assert Result("data", "prepare", case.dataset).code == 0


def test_a_folder_that_has_moved_is_asked_for_instead_of_terms_or_a_download(tmp_path):
    folder = tmp_path / "in"
    for files in bdd100k().archives.values():
        written(folder, files)
    prepare(get_card("bdd100k"), [folder])
    folder.rename(tmp_path / "moved")
    for more in ([], ["--accept-terms"], ["--dry-run"]):
        done = Result("data", "prepare", "bdd100k", *more)
        assert done.code == 3 and f"{folder}, from which bdd100k was prepared" in done.err
        assert "pinmem data prepare bdd100k --from FOLDER" in done.err
        assert "pinmem data download bdd100k" in done.err
    for command in ("stats", "preview"):
        assert "pinmem data prepare bdd100k --from FOLDER" in Result("data", command, "bdd100k").err
    assert Result("data", "prepare", "bdd100k", "--from", str(tmp_path / "moved")).code == 0


def unpacked(case: Case, folder: Path) -> Path:
    for files in case.archives.values():
        written(folder, files)
    return folder


@pytest.mark.parametrize("kind", ["leftImg8bit", "gtFine", None])
def test_a_folder_that_is_unpacked_in_part_is_not_taken_for_the_whole(tmp_path, kind):
    folder = unpacked(cityscapes(), tmp_path / "in")
    for path in folder.glob(f"{kind or '*'}/val/*/*"):
        path.unlink()
    done = Result("data", "prepare", "cityscapes", "--from", str(folder))
    assert done.code == 0
    assert "published samples are missing: train 1 of 2,975, val 0 of 500" in done.err


@pytest.mark.parametrize("kind", ["leftImg8bit", "gtFine"])
def test_samples_without_a_partner_do_not_make_a_dataset_complete(tmp_path, kind):
    folder = unpacked(cityscapes(), tmp_path / "in")
    next(folder.glob(f"{kind}/val/*/*_{'labelIds' if kind == 'gtFine' else kind}.png")).unlink()
    card = get_card("cityscapes").model_copy(update={"counts": {"train": 1, "val": 1}})
    events: list = []
    prepare(card, [folder], on_event=events.append)
    said = [getattr(event, "message", "") for event in events]
    assert "published samples are missing: val 0 of 1" in said
    assert state_of(card).state == "partial"


def test_the_options_of_the_last_preparation_are_not_dropped_without_a_word(tmp_path):
    folder = unpacked(mapillary("rein", ("v1.2",)), tmp_path / "in")
    options = ["--label-map", "rein", "--reencode", "jpeg", "--quality", "90", "--height", "20"]
    source = ["--from", str(folder)]
    assert "the last" not in Result("data", "prepare", "mapillary", *source, *options).err
    again = f"pinmem data prepare mapillary {' '.join(options)}"
    assert again in Result("data", "verify", "mapillary").err
    assert again in Result("data", "info", "mapillary").err
    for given, dropped in (
        (options, None),
        (["--label-map", "pinmem", "--reencode", "png"], None),
        (options, None),
        (["--label-map", "rein"], "--reencode jpeg --quality 90 --height 20"),
        ([], "--label-map rein"),
        ([], None),
    ):
        done = Result("data", "prepare", "mapillary", *source, *given)
        assert done.code == 0
        said = f"the last preparation had {dropped}, this one" if dropped else "the last"
        assert (said in done.err) == bool(dropped)


def test_a_dry_run_lists_the_archives_that_it_would_unpack(tmp_path, home, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder = cityscapes().write(tmp_path / "in")
    archives = sorted(map(str, folder.iterdir()))
    for sources in ([str(folder)], archives):
        words = [word for source in sources for word in ("--from", source)]
        plan = Result("data", "prepare", "cityscapes", *words, "--dry-run", "--json").json
        assert [entry["file"] for entry in plan["unpack"]] == archives
        shown = Result("data", "prepare", "cityscapes", *words, "--dry-run")
        assert shown.code == 0 and "gtFine_trainvaltest.zip" in shown.out
        assert not home.exists()
    assert Result("data", "prepare", "cityscapes", "--from", str(folder)).code == 0
    for words in (["--from", str(folder)], ["--from", ",".join(archives)], []):
        plan = Result("data", "prepare", "cityscapes", *words, "--dry-run", "--json").json
        assert plan["counts"] == {"train": 1, "val": 1}
    missing = Result("data", "prepare", "cityscapes", "--from", "none.zip", "--dry-run")
    assert missing.code == 3 and "none.zip does not exist" in missing.err


@pytest.mark.parametrize("name", ["synthia.zip", "synthia.tar.gz", "synthia", "index.html?id=3"])
def test_an_archive_of_another_kind_than_its_name_says_is_to_be_renamed(tmp_path, name):
    folder = synthia().write(tmp_path / "in")
    archive = next(folder.iterdir()).rename(folder / name)
    done = Result("data", "prepare", "synthia", "--from", str(archive))
    new = folder / f"{name.removesuffix('.zip').removesuffix('.tar.gz')}.rar"
    assert done.code == 3 and "a RAR archive" in done.err and f"Rename it to {new}" in done.err
    archive.rename(new)
    assert Result("data", "prepare", "synthia", "--from", str(new)).code == 0


def test_a_folder_that_is_called_as_its_archive_is_a_folder(tmp_path):
    folder = cityscapes().write(tmp_path / "in")
    (folder / "gtFine_trainvaltest.zip").unlink()
    written(folder / "gtFine_trainvaltest.zip", cityscapes().archives["gtFine_trainvaltest.zip"])
    assert Result("data", "prepare", "cityscapes", "--from", str(folder)).code == 0


def test_archives_are_found_in_folders_of_the_folder(tmp_path):
    case = cityscapes()
    case.write(tmp_path / "in")
    (tmp_path / "in" / "leftImg8bit").mkdir()
    for path in (tmp_path / "in").glob("left*.zip"):
        path.rename(tmp_path / "in" / "leftImg8bit" / path.name)
    done = Result("data", "prepare", "cityscapes", "--from", str(tmp_path), "--json")
    assert done.json["counts"] == {"train": 1, "val": 1}


@pytest.fixture
def pack(tmp_path, monkeypatch) -> Path:
    """A pack of Cityscapes, on a machine that does not have the dataset."""
    folder, file = cityscapes().write(tmp_path / "in"), tmp_path / "cityscapes.tar"
    assert Result("data", "prepare", "cityscapes", "--from", str(folder)).code == 0
    assert Result("data", "pack", "cityscapes", "-o", str(file)).code == 0
    monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "other"))
    return file


def test_a_dataset_that_came_in_a_pack_is_not_downloaded_again(pack):
    assert Result("data", "prepare", "cityscapes", "--from", str(pack)).code == 0
    for more in ([], ["--accept-terms"], ["--dry-run"]):
        done = Result("data", "prepare", "cityscapes", *more)
        assert done.code == 3 and "came in a pack" in done.err and "--from PACK" in done.err
    assert Result("data", "stats", "cityscapes").code == 0


@pytest.mark.parametrize(("suffix", "module"), [(".gz", gzip), (".bz2", bz2)])
def test_a_pack_that_was_compressed_is_named_as_one(pack, suffix, module):
    packed = pack.with_name(pack.name + suffix)
    packed.write_bytes(module.compress(pack.read_bytes()))
    done = Result("data", "prepare", "cityscapes", "--from", str(packed))
    assert done.code == 3 and "is a pack that was compressed" in done.err


@pytest.mark.parametrize(
    ("file", "damage", "forgotten"),
    [
        ("manifest.jsonl", lambda text: text[:-30], False),
        (
            "dataset.json",
            lambda text: text.replace('"schema_version": 2', '"schema_version": 1'),
            False,
        ),
        ("dataset.json", lambda text: text[:-30], True),
        ("dataset.json", lambda text: text.replace('"sources": [', '"sources": [1, '), True),
    ],
)
def test_a_damaged_dataset_is_prepared_again_from_its_folder_not_downloaded(
    tmp_path, home, file, damage, forgotten
):
    folder = unpacked(cityscapes(), tmp_path / "in")
    options = ["--reencode", "png"]
    assert Result("data", "prepare", "cityscapes", "--from", str(folder), *options).code == 0
    path = home / "datasets" / "cityscapes" / file
    path.write_text(damage(path.read_text()))
    damaged = Result("data", "verify", "cityscapes")
    assert damaged.code == 3 and "pinmem data prepare cityscapes" in damaged.err
    again = Result("data", "prepare", "cityscapes")
    if forgotten:
        assert again.code == 3 and "does not say from which folders" in again.err
        again = Result("data", "prepare", "cityscapes", "--from", str(folder))
    else:
        assert "the last preparation had --reencode png" in again.err
    assert again.code == 0 and Result("data", "preview", "cityscapes").code == 0


@pytest.mark.parametrize("name", ["sheet.jpg", "sheet"])
def test_a_preview_is_not_written_under_the_name_of_another_format(tmp_path, name):
    folder = unpacked(cityscapes(), tmp_path / "in")
    assert Result("data", "prepare", "cityscapes", "--from", str(folder)).code == 0
    done = Result("data", "preview", "cityscapes", "-o", str(tmp_path / name))
    assert done.code == 2 and f"a preview is a PNG, which {tmp_path / name} is not" in done.err
    assert not (tmp_path / name).exists()
    assert Result("data", "preview", "cityscapes", "-o", str(tmp_path / "sheet.PNG")).code == 0
