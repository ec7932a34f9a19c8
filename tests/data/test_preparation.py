import json
from pathlib import Path

import numpy as np
import pytest
from conftest import camvid_folder
from PIL import Image

from pinmem_core.data.catalog import get_card
from pinmem_core.data.locate import locate_raw_files
from pinmem_core.data.prepare import expand, prepare
from pinmem_core.data.prepared import PreparedDataset, Selection, select
from pinmem_core.data.samples import ids_of
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.images import write_png
from pinmem_core.label_files import read_label

CAMVID = get_card("camvid")


def test_flat_camvid_becomes_train_ids_with_contiguous_validation(tmp_path):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 10, "Seq05VD": 5})
    dataset = prepare(CAMVID, [source])
    assert dataset.counts == {"train": 12, "val": 3}
    assert dataset.domains == {"0001TP": 10, "Seq05VD": 5}
    assert [s.id for s in dataset.samples if s.split == "val"] == [
        "0001TP_00008",
        "0001TP_00009",
        "Seq05VD_00004",
    ]
    sample = dataset.samples[0]
    assert sample.image == source / "images" / "0001TP_00000.png"  # referenced, not copied
    table = np.array([10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12, 255], np.uint8)
    raw = read_label(source / "labels" / "0001TP_00000.png")
    assert np.array_equal(read_label(sample.label), table[raw])


def test_the_manifest_is_as_the_contract_says(tmp_path, home):
    dataset = prepare(CAMVID, [camvid_folder(tmp_path / "raw", {"0016E5": 2})])
    first = json.loads((dataset.root / "manifest.jsonl").read_text().splitlines()[0])
    assert set(first) == {"id", "image", "label", "split", "domain", "width", "height"}
    assert (first["width"], first["height"]) == (40, 30)
    assert (dataset.root / first["label"]).exists()
    assert dataset.root == home / "datasets" / "camvid"


def test_segnet_layout_keeps_its_splits(tmp_path):
    for split, drive in (("train", "0006R0"), ("val", "0016E5"), ("test", "0001TP")):
        write_png(tmp_path / split / f"{drive}_1.png", np.zeros((6, 8, 3), np.uint8))
        write_png(tmp_path / f"{split}annot" / f"{drive}_1.png", np.eye(6, 8, dtype=np.uint8))
    dataset = prepare(CAMVID, [tmp_path])
    assert dataset.counts == {"test": 1, "train": 1, "val": 1}
    assert dataset.summary["layout"].startswith("SegNet")


def test_original_layout_is_decoded_by_colour(tmp_path):
    colours = np.array([[(128, 0, 0), (0, 64, 64), (64, 128, 64)]], np.uint8)
    write_png(tmp_path / "701_StillsRaw_full" / "0001TP_1.png", np.zeros((1, 3, 3), np.uint8))
    write_png(tmp_path / "LabeledApproved_full" / "0001TP_1_L.png", colours)
    dataset = prepare(CAMVID, [tmp_path])
    assert read_label(dataset.samples[0].label).tolist() == [[2, 6, 255]]


def _break_image(source: Path) -> None:
    path = source / "images" / "0001TP_00001.png"
    path.write_bytes(path.read_bytes()[:-200])


def _store_32_bits(source: Path) -> None:
    Image.new("F", (40, 30)).save(source / "images" / "0001TP_00001.png", "tiff")


def _shrink_label(source: Path) -> None:
    write_png(source / "labels" / "0001TP_00001.png", np.zeros((15, 20), np.uint8))


def _lay_on_its_side(source: Path) -> None:
    path = source / "images" / "0001TP_00001.png"
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (40, 30)).save(path, exif=exif)


def _unknown_id(source: Path) -> None:
    write_png(source / "labels" / "0001TP_00001.png", np.full((30, 40), 77, np.uint8))


def _single_value(source: Path) -> None:
    write_png(source / "labels" / "0001TP_00001.png", np.full((30, 40), 3, np.uint8))


def _flip_a_bit(source: Path) -> None:
    path = source / "labels" / "0001TP_00001.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _drop_image(source: Path) -> None:
    (source / "images" / "0001TP_00001.png").unlink()


def _drop_label(source: Path) -> None:
    (source / "labels" / "0001TP_00001.png").unlink()


DEFECTS = [
    (_break_image, "cannot be read"),
    (_store_32_bits, "32-bit values"),
    (_flip_a_bit, "cannot be read"),
    (_shrink_label, "is 20x15, but its image is 40x30"),
    (_lay_on_its_side, "is 40x30, but its image, turned upright by its EXIF orientation, is 30x40"),
    (_unknown_id, "does not know: 77"),
    (_single_value, "single value"),
    (_drop_label, "its label is missing"),
    (_drop_image, "its image is missing"),
]


@pytest.mark.parametrize(("spoil", "reason"), DEFECTS)
def test_a_defective_sample_is_left_out_and_listed(tmp_path, spoil, reason):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 3})
    spoil(source)
    dataset = prepare(CAMVID, [source])
    (excluded,) = dataset.summary["excluded"]
    assert "0001TP_00001" in excluded["file"] and reason in excluded["reason"]
    assert [s.id for s in dataset.samples] == ["0001TP_00000", "0001TP_00002"]


@pytest.mark.parametrize(("spoil", "reason"), DEFECTS)
def test_strict_refuses_a_defect_and_writes_nothing(tmp_path, home, spoil, reason):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 3})
    spoil(source)
    with pytest.raises(DataError, match=reason):
        prepare(CAMVID, [source], strict=True)
    assert not any(path.is_file() for path in home.rglob("*"))


def test_nothing_usable_is_an_error_and_keeps_what_was_prepared_before(tmp_path, home):
    before = prepare(CAMVID, [camvid_folder(tmp_path / "good", {"0001TP": 5})])
    bad = camvid_folder(tmp_path / "bad", {"0001TP": 1})
    (bad / "labels" / "0001TP_00000.png").unlink()
    with pytest.raises(DataError, match="1 of 1 samples"):
        prepare(CAMVID, [bad])
    assert PreparedDataset.open("camvid") == before
    assert [p.name for p in (home / "datasets").iterdir()] == ["camvid"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_the_dataset_is_named(tmp_path, exists):
    folder = tmp_path / "empty"
    if exists:
        folder.mkdir()
    with pytest.raises(DataError, match=str(folder)):
        prepare(CAMVID, [folder])


def test_the_digest_depends_on_labels_but_not_on_the_folder(tmp_path):
    one = prepare(CAMVID, [camvid_folder(tmp_path / "a", {"0001TP": 2})]).summary["digest"]
    moved = camvid_folder(tmp_path / "b", {"0001TP": 2})
    assert prepare(CAMVID, [moved]).summary["digest"] == one
    label = read_label(moved / "labels" / "0001TP_00000.png").copy()
    label[0, 0] = (label[0, 0] + 1) % 11
    write_png(moved / "labels" / "0001TP_00000.png", label)
    assert prepare(CAMVID, [moved]).summary["digest"] != one


def test_selections(tmp_path):
    prepare(CAMVID, [camvid_folder(tmp_path, {"0001TP": 10, "0016E5": 10})])

    def count(text: str, default: str = "train") -> int:
        return len(select(Selection.parse(text), default))

    assert count("camvid") == 16
    assert count("camvid:0001TP") == 8
    assert count("camvid:0001TP", "all") == 10
    assert count("camvid:0001TP@val") == 2
    assert str(Selection.parse("camvid:0001TP@val")) == "camvid:0001TP@val"


def test_a_group_of_splits_is_selected_by_its_name(tmp_path):
    card = get_card("gtav")
    first = {split: next(expand(ids)) for split, ids in card.split_lists.items()}
    for name in first.values():
        write_png(tmp_path / "images" / f"{name}.png", np.zeros((6, 8, 3), np.uint8))
        write_png(tmp_path / "labels" / f"{name}.png", np.eye(6, 8, dtype=np.uint8) * 7)
    prepare(card, [tmp_path])
    assert ids_of(select(Selection.parse("gtav@full"), "train")) == sorted(first.values())
    assert ids_of(select(Selection.parse("gtav@val"), "train")) == [first["val"]]
    with pytest.raises(ConfigError) as error:
        select(Selection.parse("gtav@ful"), "train")
    assert "'full'" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("text", "hint"),
    [("camvit", "camvid"), ("camvid:001TP", "0001TP"), ("camvid@vall", "val"), ("camvid:", "")],
)
def test_wrong_selections_suggest_the_closest(tmp_path, text, hint):
    prepare(CAMVID, [camvid_folder(tmp_path, {"0001TP": 10})])
    with pytest.raises(ConfigError) as error:
        select(Selection.parse(text), "train")
    assert hint in (error.value.hint or "")


def test_a_wrong_domain_is_told_before_the_data_is_looked_for():
    with pytest.raises(ConfigError, match="unknown domain of camvid '0001TX'"):
        Selection.parse("camvid:0001TX")


def test_an_unprepared_dataset_and_an_empty_split_say_what_to_do(tmp_path):
    with pytest.raises(DataError) as error:
        select(Selection("camvid"), "train")
    assert "pinmem data prepare camvid" in (error.value.hint or "")
    prepare(CAMVID, [camvid_folder(tmp_path, {"0001TP": 3})])
    with pytest.raises(DataError, match="no samples of the split 'val'"):
        select(Selection("camvid"), "val")


def test_a_second_copy_is_left_out_and_its_labels_are_not_taken_for_lonely(tmp_path):
    camvid_folder(tmp_path / "one", {"0001TP": 3})
    camvid_folder(tmp_path / "two", {"0001TP": 2})
    (tmp_path / "one" / "labels" / "0001TP_00000.png").rename(tmp_path / "elsewhere.png")
    dataset = prepare(CAMVID, [tmp_path])
    assert [s.image.parent.parent.name for s in dataset.samples] == ["one", "one", "one"]
    assert {d["rule"] for d in dataset.summary["excluded"]} == {"double"}
    assert len(dataset.summary["excluded"]) == 2


def test_linked_folders_are_followed_and_circles_end(tmp_path):
    camvid_folder(tmp_path / "disk", {"0001TP": 3})
    source = tmp_path / "raw"
    source.mkdir()
    for kind in ("images", "labels"):
        (source / kind).symlink_to(tmp_path / "disk" / kind)
    (tmp_path / "disk" / "images" / "up").symlink_to(tmp_path / "disk" / "images")
    assert len(prepare(CAMVID, [source]).samples) == 3


def test_the_users_folders_are_remembered(tmp_path):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 3})
    prepare(CAMVID, [source])
    assert locate_raw_files(CAMVID) == [source]
