"""File names as they come: prepared, listed and packed whatever they are made of."""

import os
import unicodedata
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from conftest import Result

from pinmem_core.data.card import DatasetCard, Layout
from pinmem_core.data.catalog import get_card
from pinmem_core.data.layouts import find_samples
from pinmem_core.data.pack import pack
from pinmem_core.data.prepare import prepare, survey
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.data.unpack import unpack
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Notice
from pinmem_core.images import write_png
from pinmem_core.label_files import read_label

TRAIN_IDS = [0, 1, 2, 8, 10, 13, 255]
IDS = [7, 8, 11, 21, 23, 26, 0]
PICTURE = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)


def card(image="images/{n}.png", label="labels/{n}.png", **more: object) -> DatasetCard:
    layout = {"name": "f", "label_maps": ("trainids",), "id": "{n}", "image": image, "label": label}
    return DatasetCard(name="mine", title="Mine", layouts=(Layout(**{**layout, **more}),))


def pair(root: Path, image: str, label: str | None, values=TRAIN_IDS) -> None:
    for name, pixels in ((image, PICTURE), (label, np.resize(values, (8, 8)).astype(np.uint8))):
        if name is not None:
            write_png(root / "written.png", pixels)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "written.png").rename(root / name)


def pairs(root: Path, *names: str) -> Path:
    for name in names:
        pair(root, f"images/{name}.png", f"labels/{name}.png")
    return root


def ids(dataset: PreparedDataset) -> list[str]:
    return [sample.id for sample in dataset.samples]


# What is listed


def test_hidden_files_and_pipes_are_no_samples(tmp_path):
    folder = pairs(tmp_path / "raw", "a", "b")
    for kind in ("images", "labels"):
        (folder / kind / "._a.png").write_bytes(b"\0\5\x16\7")
        (folder / kind / "Thumbs.db").write_bytes(b"")
        os.mkfifo(folder / kind / "pipe.png")
    dataset = prepare(card(), [folder], strict=True)
    assert (ids(dataset), dataset.summary["excluded"]) == (["a", "b"], [])


@pytest.mark.parametrize(
    ("image", "label"),
    [("images/train/a.JPG", "labels/train/a.PNG"), ("Images/Train/a.jpg", "LABELS/train/a.Png")],
)
def test_cards_find_files_whatever_the_case_of_folders_and_suffixes(tmp_path, image, label):
    pair(tmp_path, image, label)
    layout = card("images/{s:train|val}/{n}.jpg", "labels/{s}/{n}.png", split="{s}")
    assert prepare(layout, [tmp_path], strict=True).counts == {"train": 1}


def test_names_that_differ_in_case_alone_stay_apart(tmp_path):
    pair(tmp_path, "images/a.png", "labels/a.png", [0, 1])
    pair(tmp_path, "images/A.png", "labels/A.png", [2, 3])
    dataset = prepare(card(), [tmp_path], strict=True)
    labels = {s.id: set(np.unique(read_label(s.label)).tolist()) for s in dataset.samples}
    assert labels == {"a": {0, 1}, "A": {2, 3}}


def test_a_domain_is_the_cards_whatever_its_case(tmp_path):
    stem = "GOPR0475_frame_000041"
    image = f"rgb_anon/Fog/Train/GOPR0475/{stem}_rgb_anon.PNG"
    pair(tmp_path, image, f"gt/fog/train/GOPR0475/{stem}_gt_labelTrainIds.png")
    dataset = prepare(get_card("acdc"), [tmp_path], strict=True)
    assert (dataset.domains, dataset.counts) == ({"fog": 1}, {"train": 1})


def test_what_is_there_is_named_where_no_image_fits(tmp_path):
    pairs(tmp_path, "a", "b")
    with pytest.raises(DataError, match="no images") as error:
        find_samples(card("images/{n}.jpeg"), [tmp_path])
    assert error.value.hint.endswith("Found: 4 *.png, e.g. images/a.png.")


# What names are made of


def test_accents_are_the_same_however_they_are_encoded(tmp_path):
    composed, apart = "Zürich_é", unicodedata.normalize("NFD", "Zürich_é")
    pair(tmp_path, f"{apart}/images/{apart}.png", f"{composed}/labels/{composed}.png")
    layout = card(f"{apart}/images/{{n}}.png", f"{composed}/labels/{{n}}.png", domain="{n}")
    listed = layout.model_copy(update={"split_lists": {"val": (apart,)}})
    dataset = prepare(listed, [tmp_path], strict=True)
    assert (ids(dataset), dataset.counts) == ([composed], {"val": 1})
    assert dataset.domains == {composed: 1}


ODD = {
    "latin-1": os.fsdecode(b"caf\xe9_1"),
    "backslash": "a\\b",
    "newline": "new\nline",
    "escape": "\x1b[31mred",
    "drive": "D:1",
    "colons": "12:30:05",
    "braces": "{n} {0}",
    "percent": "100%",
    "quotes": "'\"",
    "long": "x" * 250,
    "dots": "a..",
    "emoji": "👩‍🚀",
}


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_any_name_is_prepared_packed_and_unpacked(tmp_path, monkeypatch, name):
    source = pairs(tmp_path / "raw", name, "plain")
    dataset = prepare(card(), [source], strict=True)
    assert Path(source, "images", f"{name}.png") in {sample.image for sample in dataset.samples}
    assert not set("".join(ids(dataset))) & set("\\\n\x1b")
    path = pack("mine", tmp_path / "mine.tar").path
    monkeypatch.setenv("PINMEM_HOME", str(tmp_path / "elsewhere"))
    moved = unpack(path)
    assert ids(moved) == ids(dataset)
    assert moved.summary["digest"] == dataset.summary["digest"]
    assert all(np.array_equal(sample.read()[0], PICTURE) for sample in moved.samples)
    assert not set("".join(sample.image.name for sample in moved.samples)) & set('\\:*?"<>|\n')


def test_a_name_that_is_not_utf_8_is_told_by_the_command(tmp_path):
    folder = os.fsdecode(b"d\xe9p\xf4t")
    pairs(tmp_path / folder, os.fsdecode(b"caf\xe9"))
    (tmp_path / "mine.yaml").write_text(
        'name: mine\ntitle: x\nlayouts:\n  - {name: f, image: "images/{n}.png", '
        'label: "labels/{n}.png", label_maps: [trainids], id: "{n}"}\n'
    )
    arguments = ("--card", str(tmp_path / "mine.yaml"), "--from", str(tmp_path))
    assert Result("data", "prepare", "mine", *arguments, "--json").code == 0
    assert ids(PreparedDataset.open("mine")) == ["caf%E9"]
    assert Result("data", "verify", "mine").code == 0


def test_folders_with_braces_or_line_breaks_are_found_by_doubled_braces(tmp_path):
    pair(tmp_path, "run {1}\n/images/{x}/a.png", "run {1}\n/labels/{x}/a.png")
    layout = card("run {{1}}\n/images/{{x}}/{n}.png", "run {{1}}\n/labels/{{x}}/{n}.png")
    assert ids(prepare(layout, [tmp_path], strict=True)) == ["a"]
    field = card("images/{{{d}}}/{n}.png", "labels/{{{d}}}/{n}.png", domain="{d}")
    assert prepare(field, [tmp_path], strict=True).domains == {"x": 1}


# Labels of several kinds


CITYSCAPES = get_card("cityscapes")


def street(root: Path, split: str, number: int, values: list[int], kind="labelIds") -> None:
    city = {"train": "ulm", "val": "bonn"}[split]
    name = f"{split}/{city}/{city}_{number:06}_000019"
    label = f"gtFine/{name}_gtFine_{kind}.png"
    pair(root, f"leftImg8bit/{name}_leftImg8bit.png", label, values)


def test_a_split_with_another_kind_of_labels_is_not_lost(tmp_path):
    for number in range(3):
        street(tmp_path, "train", number, TRAIN_IDS, "labelTrainIds")
    for number in range(2):
        street(tmp_path, "val", number, IDS)
    told = []
    dataset = prepare(CITYSCAPES, [tmp_path], strict=True, on_event=told.append)
    assert dataset.counts == {"train": 3, "val": 2}
    for sample in dataset.samples:
        assert read_label(sample.label)[0, :7].tolist() == TRAIN_IDS
    assert any("split val" in getattr(event, "message", "") for event in told)
    assert dataset.summary["other_layouts"]["val"]["label_map"]["name"] == "cityscapes-ids"
    assert "label map" not in Result("data", "verify", "cityscapes").out


def test_where_one_layout_finds_nearly_all_it_is_taken_for_all(tmp_path):
    for number in range(3):
        street(tmp_path, "train", number, IDS)
        street(tmp_path, "train", number, TRAIN_IDS, "labelTrainIds")
    street(tmp_path, "val", 0, IDS)
    street(tmp_path, "val", 0, TRAIN_IDS, "labelTrainIds")
    street(tmp_path, "val", 1, TRAIN_IDS, "labelTrainIds")
    found = find_samples(CITYSCAPES, [tmp_path])
    assert (found.layout.label_maps, found.other_layouts, found.pairs) == (("trainids",), {}, 5)


def test_the_label_that_lies_next_to_an_image_is_named_where_the_wanted_one_is_missing(tmp_path):
    street(tmp_path, "train", 1, IDS)
    street(tmp_path, "train", 2, IDS)
    street(tmp_path, "train", 10, TRAIN_IDS, "labelTrainIds")
    street(tmp_path, "train", 100, IDS)
    missing = next(d for d in survey(CITYSCAPES, [tmp_path]).defects if "leftImg8bit" in d.file)
    other = "ulm_000010_000019_gtFine_labelTrainIds.png"
    assert missing.reason == f"its label is missing, but {other} is there"
    pair(tmp_path / "own", "images/1.png", "labels/1.tif")
    pair(tmp_path / "own", "images/2.png", "labels/2.png")
    pair(tmp_path / "own", "images/3.png", None)
    pair(tmp_path / "own", "images/33.png", "labels/33.png")
    reasons = [defect.reason for defect in survey(card(), [tmp_path / "own"]).defects]
    assert reasons == ["its label is missing, but 1.tif is there", "its label is missing"]


def test_train_ids_in_files_named_as_ids_are_refused_and_read_on_request(tmp_path):
    for number in range(3):
        street(tmp_path, "train", number, TRAIN_IDS)
    for number in range(2):
        street(tmp_path, "val", number, IDS)
    for attempt in (prepare, survey):
        with pytest.raises(DataError, match=r"split train.* hold trainIds") as error:
            attempt(CITYSCAPES, [tmp_path])
        assert "--label-map trainids" in error.value.hint
    events: list[object] = []
    dataset = prepare(CITYSCAPES, [tmp_path], label_map="trainids", on_event=events.append)
    assert dataset.counts == {"train": 3}
    said = [event.message for event in events if isinstance(event, Notice)]
    assert "left out, as their labels hold no trainIds: val" in said
    assert read_label(dataset.samples[0].label)[0, :7].tolist() == TRAIN_IDS
    for path in (tmp_path / "gtFine" / "train").rglob("*.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    assert prepare(CITYSCAPES, [tmp_path], strict=True).counts == {"train": 3, "val": 2}


def test_ids_of_cityscapes_are_not_taken_for_train_ids(tmp_path):
    street(tmp_path, "train", 0, [*IDS, 255])  # 255 is a licence plate
    street(tmp_path, "train", 1, [7, 11, 255])
    street(tmp_path, "val", 0, [7, 11, 0])
    assert prepare(CITYSCAPES, [tmp_path], strict=True).counts == {"train": 2, "val": 1}
    with pytest.raises(DataError):
        prepare(CITYSCAPES, [tmp_path], label_map="trainids")


def test_train_ids_named_as_ids_are_seen_in_cards_of_users_too(tmp_path):
    pairs(tmp_path, "a", "b")
    ids_card = card(label_maps=("cityscapes-ids",))
    with pytest.raises(DataError, match="hold trainIds"):
        prepare(ids_card, [tmp_path])
    assert prepare(ids_card, [tmp_path], label_map="trainids", strict=True).counts == {"train": 2}
    with pytest.raises(ConfigError, match="unknown label map"):
        prepare(card(label_maps=("trainids",)), [tmp_path], label_map="cityscapes-ids")


# Expressions of cards that fit a name in more ways than there is time to try


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("{n:" + "(?:a|a)" * 60 + "[bd]}.png", "a" * 60 + "c.png"),
        ("{n:" + "(?:a|b|ab)" * 60 + "[bd]}.png", "ab" * 60 + "c.png"),
        ("{n}{b}{c}{d}{e}/{n}{b}{c}.png", "a" * 100 + "/" + "a" * 99 + "b.png"),
    ],
)
def test_an_expression_that_takes_too_long_is_refused(tmp_path, monkeypatch, pattern, name):
    monkeypatch.setattr("pinmem_core.data.layouts.LONGEST_MATCH", 0.2)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    began = process_time()
    with pytest.raises(DataError, match="the layout 'f' takes too long") as error:
        find_samples(card(pattern), [tmp_path])
    assert process_time() - began < 5
    assert error.value.message.endswith(f"{name}.")


def test_many_fields_are_no_trouble_for_names_that_fit(tmp_path):
    pairs(tmp_path, *(f"aachen_{n:06}_000019_left_2026-11-26_{n}" for n in range(100)))
    fields = "_".join("{" + name + "}" for name in "abcde")
    assert len(find_samples(card(f"images/{fields}_{{n}}.png"), [tmp_path]).samples) == 100


def test_an_expression_that_is_wrong_only_in_its_place_is_named(tmp_path):
    pairs(tmp_path, "a")
    with pytest.raises(DataError, match="is wrong: cannot refer to an open group"):
        find_samples(card(r"images/{n:(a)\1}.png"), [tmp_path])
