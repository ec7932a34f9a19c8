"""The shipped cards against the published facts, and cards that are broken."""

import json
import os
import re
import time
from pathlib import Path
from string import Formatter

import numpy as np
import pytest
from conftest import Result

import pinmem_core.data.cards
from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import cards, damaged_cards, get_card, read_card, write_card
from pinmem_core.data.encodings import ENCODINGS
from pinmem_core.data.layouts import find_samples
from pinmem_core.data.prepare import expand
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.images import write_png
from pinmem_core.label_space import label_space

HERE = Path(__file__).parents[1]
FACTS = Path(os.environ.get("PINMEM_REFERENCE") or HERE / "../../shared/reference").parent / "facts"
CARDS = {p.stem: read_card(p) for p in Path(pinmem_core.data.cards.__file__).parent.glob("*.yaml")}
MAPS = [(name, label_map) for name in sorted(CARDS) for label_map in CARDS[name].label_map_names]
TABLES = json.loads((HERE / "facts" / "label_tables.json").read_text())
STANDARD = {
    "cityscapes-ids": TABLES["cityscapes"]["cityscapes-ids"],
    "trainids": TABLES["bdd100k"]["trainids"],
}
OWN = {  # maps to the dataset's own classes, whose ids are the trainIds
    ("idd-lite", "trainids"): {**{str(i): i for i in range(7)}, "255": 255},
    ("camvid", "camvid-11"): {**{str(i): i for i in range(11)}, "11": 255},
    ("mapillary", "mapillary-66"): {**{str(i): i for i in range(65)}, "65": 255},
    ("mapillary", "mapillary-124"): {**{str(i): i for i in range(123)}, "123": 255},
}
CITYSCAPES = "https://www.cityscapes-dataset.com"
REPORTED = {name: card for name, card in CARDS.items() if name != "idd-lite"}
every_card = pytest.mark.parametrize("name", sorted(CARDS))


def test_thirteen_datasets_are_known_by_the_name_of_their_file():
    assert len(CARDS) == 13
    for name, card in CARDS.items():
        assert card.name == name and get_card(name) == card


@every_card
def test_a_card_says_what_a_user_must_know(name):
    card = CARDS[name]
    assert all((card.title, card.homepage, card.citation, card.terms, card.terms_url, card.layouts))


@every_card
def test_every_archive_can_be_had(name):
    card = CARDS[name]
    files = [archive.file for archive in card.archives]
    assert files and len(set(files)) == len(files)
    for archive in card.archives:
        assert bool(archive.url) != bool(card.steps), "either pinmem fetches it or a person does"
        assert all(re.fullmatch(r"https?://[^\s/]+/\S+", url) for url in archive.url)


def test_terms_that_restrict_use_are_accepted_before_anything_is_fetched():
    free = {name for name, card in CARDS.items() if not card.must_accept}
    by_hand = {name for name, card in CARDS.items() if card.steps}
    assert free - by_hand == {"camvid", "dark-zurich"}


def test_gtav_comes_in_ten_parts_of_images_and_labels():
    parts = {}
    for archive in CARDS["gtav"].archives:
        parts.setdefault(archive.part, []).append(archive.file)
    assert parts == {str(n): [f"{n:02}_images.zip", f"{n:02}_labels.zip"] for n in range(1, 11)}


# ---- label maps ----


def _packed(raw: str) -> int:
    red, green, blue = (int(part) for part in raw.split(","))
    return (red << 16) | (green << 8) | blue


def _entries(card: DatasetCard, label_map: str) -> dict[int, int]:
    """What a map knows, less the license plates (-1) of the standard map it stems from."""
    entries = dict(card.label_map(label_map).entries)
    while label_map in card.label_maps:
        label_map = card.label_maps[label_map].like or ""
    if label_map == "cityscapes-ids":
        assert entries.pop(255) == 255
    return entries


@pytest.mark.parametrize(("name", "label_map"), [m for m in MAPS if m != ("wilddash2", "merged")])
def test_a_label_map_equals_the_published_table(name, label_map):
    table = OWN.get((name, label_map)) or TABLES.get(name, {}).get(label_map) or STANDARD[label_map]
    expected = {_packed(raw) if "," in raw else int(raw): t for raw, t in table.items()}
    assert _entries(CARDS[name], label_map) == expected


REIN = {7: 0, 8: 0, 9: 1, 10: 0, 11: 1, 14: 0, 23: 0, 41: 255, 44: 5, 46: 7, 49: 7}


@pytest.mark.parametrize(
    ("name", "one", "other", "differences"),
    [
        ("gtav", "ids", "pinmem", {18: 5, 34: 13}),
        ("mapillary", "pinmem", "rein", REIN),
        ("wilddash2", "ids", "merged", {34: 13, 35: 13, 38: 0}),
    ],
)
def test_two_maps_differ_in_known_ids_only(name, one, other, differences):
    base, variant = (_entries(CARDS[name], label_map) for label_map in (one, other))
    assert base.keys() == variant.keys()
    assert {raw: t for raw, t in variant.items() if base[raw] != t} == differences


def test_the_largest_id_tells_the_versions_of_mapillary_apart():
    card = CARDS["mapillary"]
    ranges = {lay.label_maps[0]: lay.largest_id for lay in card.layouts if lay.largest_id}
    largest = {name: max(_entries(card, name)) for name in ("pinmem", "v2.0")}
    assert ranges == {"pinmem": (0, largest["pinmem"]), "v2.0": (66, largest["v2.0"])}


def test_polygons_find_their_ids_by_name():
    ids = CARDS["idd"].label_map("ids").ids
    assert len(ids) == 40
    assert (ids["road"], ids["non-drivable fallback"], ids["license plate"]) == (0, 5, 39)


# ---- split lists ----


@pytest.mark.parametrize(
    ("name", "first", "last", "width"), [("gtav", 1, 24966, 5), ("synthia", 0, 9399, 7)]
)
def test_split_lists_hold_every_sample_once(name, first, last, width):
    card = CARDS[name]
    lists = {split: [*expand(entries)] for split, entries in card.split_lists.items()}
    assert {split: len(ids) for split, ids in lists.items()} == card.counts
    excluded = [i for defect in card.known_defects if defect.exclude for i in defect.samples]
    everything = sorted([*excluded, *(i for ids in lists.values() for i in ids)])
    assert everything == [f"{n:0{width}}" for n in range(first, last + 1)]


def test_published_sizes():
    assert CARDS["gtav"].counts == {"train": 12388, "val": 6382, "test": 6181}
    assert CARDS["synthia"].counts == {"train": 6580, "val": 2820}
    excluded = [len(d.samples) for d in CARDS["gtav"].known_defects if d.exclude]
    assert excluded == [15, 0]


# ---- layouts ----

FIELD = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


def _fields(text: str) -> set[str]:
    return {field for _, field, _, _ in Formatter().parse(text) if field is not None}


@every_card
def test_the_image_pattern_defines_every_field(name):
    for layout in CARDS[name].layouts:
        defined = {field for field, _ in FIELD.findall(layout.image)}
        used = [layout.label, layout.id, layout.domain or "", layout.split or ""]
        assert set().union(*map(_fields, used)) <= defined
        assert layout.encoding in ENCODINGS.all()


# image, label, id, domain and split of a sample in each layout, "" where a layout has none
EXAMPLES = {
    "gtav": [
        ("images/00001.png", "labels/00001.png", "00001", "", ""),
        ("images/valid/a/00022.png", "labels/valid/a/00022.png", "00022", "", "val"),
    ],
    "synthia": [
        ("RGB/0000000.png", "GT/LABELS/0000000.png", "0000000", "", ""),
        ("RGB/val/0000003.png", "GT/LABELS/val/0000003.png", "0000003", "", "val"),
    ],
    "cityscapes": [
        (
            "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png",
            f"gtFine/val/ulm/ulm_000000_000019_gtFine_label{kind}.png",
            "ulm_000000_000019",
            "",
            "val",
        )
        for kind in ("Ids", "TrainIds")
    ],
    "bdd100k": [
        ("10k/train/0a-7c.jpg", "sem_seg/masks/train/0a-7c.png", "0a-7c", "", "train"),
        ("images/val/7d-e0.jpg", "labels/val/7d-e0_train_id.png", "7d-e0", "", "val"),
    ],
    "mapillary": [
        ("validation/images/k_-1.jpg", f"validation/{folder}/k_-1.png", "k_-1", "", "val")
        for folder in ("v1.2/labels", "v2.0/labels", "labels", "labels")
    ],
    "idd": [
        (
            f"leftImg8bit/train/201/frame0029_leftImg8bit.{image}",
            f"gtFine/train/201/frame0029_gtFine_{label}",
            "201_frame0029",
            "",
            "train",
        )
        for image, label in (("jpg", "polygons.json"), ("png", "labelcsTrainIds.png"))
    ],
    "idd-lite": [
        ("leftImg8bit/val/9/f1_image.jpg", "gtFine/val/9/f1_label.png", "9_f1", "", "val"),
    ],
    "acdc": [
        (
            "rgb_anon/fog/train/GOPR0475/GOPR0475_frame_000041_rgb_anon.png",
            f"gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_label{kind}.png",
            "GOPR0475_frame_000041",
            "fog",
            "train",
        )
        for kind in ("TrainIds", "Ids")
    ],
    "kitti": [
        ("training/image_2/000000_10.png", "training/semantic/000000_10.png", "000000_10", "", "")
    ],
    "dark-zurich": [
        (
            "rgb_anon/val/night/GOPR0356/GOPR0356_frame_000324_rgb_anon.png",
            "gt/val/night/GOPR0356/GOPR0356_frame_000324_gt_labelTrainIds.png",
            "GOPR0356_frame_000324",
            "",
            "val",
        )
    ],
    "wilddash2": [
        ("images/ar0000_100000.jpg", "labels/ar0000_100000.png", "ar0000_100000", "", "")
    ],
    "muses": [
        (
            "frame_camera/val/snow/night/REC0006_frame_000001_frame_camera.png",
            "gt_semantic/val/snow/night/REC0006_frame_000001_gt_labelTrainIds.png",
            "REC0006_frame_000001",
            "snow-night",
            "val",
        )
    ],
    "camvid": [
        ("val/0016E5_07959.png", "valannot/0016E5_07959.png", "0016E5_07959", "0016E5", "val"),
        ("images/Seq05VD_f00000.jpg", "labels/Seq05VD_f00000.png", "Seq05VD_f00000", "Seq05VD", ""),
        (
            "701_StillsRaw_full/0001TP_006690.png",
            "LabeledApproved_full/0001TP_006690_L.png",
            "0001TP_006690",
            "0001TP",
            "",
        ),
    ],
}


LAYOUTS = [(name, index) for name in sorted(CARDS) for index, _ in enumerate(EXAMPLES[name])]


@pytest.mark.parametrize(("name", "index"), LAYOUTS)
def test_a_layout_finds_its_sample_in_the_published_tree(tmp_path, name, index):
    card = CARDS[name]
    assert len(card.layouts) == len(EXAMPLES[name])
    layout = card.layouts[index]
    image, label, *expected = EXAMPLES[name][index]
    largest = layout.largest_id[1] if layout.largest_id else 0
    write_png(tmp_path / "a" / image, np.zeros((2, 2, 3), np.uint8))
    write_png(tmp_path / "b" / label, np.full((2, 2), largest, np.uint8))
    found = find_samples(card, [tmp_path])
    assert (found.layout, found.pairs, found.orphans) == (layout, 1, [])
    (sample,) = found.samples
    domain = "" if sample.domain == name else sample.domain
    assert [sample.id, domain, sample.split or ""] == expected
    assert sample.domain in card.domains


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("cityscapes", "leftImg8bit/test/bonn/bonn_000000_000019_leftImg8bit.png"),
        ("bdd100k", "bdd100k/images/10k/test/ac6d4f42-00000000.jpg"),
        ("bdd100k", "bdd100k/images/100k/train/0a0a0b1a-7c39d841.jpg"),
        ("mapillary", "testing/images/key.jpg"),
        ("acdc", "rgb_anon/fog/train_ref/GOPR0475/GOPR0475_frame_000041_rgb_ref_anon.png"),
        ("kitti", "training/image_2/000000_11.png"),
        ("dark-zurich", "rgb_anon/train/night/GOPR0351/GOPR0351_frame_000159_rgb_anon.png"),
        ("synthia", "GT/COLOR/0000000.png"),
    ],
)
def test_pictures_without_a_public_label_are_left_alone(tmp_path, name, image):
    write_png(tmp_path / image, np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match="no images"):
        find_samples(CARDS[name], [tmp_path])


# ---- reading and writing ----

CARD = """\
name: mine
title: My streets
label_maps:
  ids:
    values: {0: way, 1: automobile}
    classes:
      road: 0
      car: 1
layouts:
  - name: flat
    image: "images/{frame}.png"
    label: "labels/{frame}.png"
    label_maps: ids
    id: "{frame}"
"""


DEFECTS = "known_defects: [{reason: x, samples: "
LAUGHS = "a0: &a0 [lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
CHAIN = "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title:", "colour: red\ntitle:", ["line 2", "colour", "not permitted"]),
        ("title:", "version: many\ntitle:", ["line 2", "version", "integer"]),
        ("label_maps: ids", "largest_id: [0]", ["line 10", "layouts.0.label_maps", "required"]),
        ("car: 1", "kar: 1", ["line 8", "classes.kar: unknown class 'kar'", "mean 'car'"]),
        ("car: 1", "car: one", ["line 8", "label_maps.ids.classes.car.0", "'one' is neither"]),
        ("car: 1", "car: 65536", ["line 8", "label_maps.ids.classes.car.0", "0..65535"]),
        ("car: 1", 'car: "0,0,256"', ["line 8", "'0,0,256' is neither"]),
        ("car: 1", 'car: "1,2,3"', ["ids", "mixes"]),
        ("label_maps: ids", "label_maps: idz", ["unknown label map 'idz'", "mean 'ids'"]),
        ("layouts:", "split_lists: {val: no.txt}\nlayouts:", ["split_lists.val", "no.txt"]),
        ("title: My streets", "title: [", ["line 4: this is not YAML"]),
        (CARD, "- name", ["'key: value'"]),
        ("My streets", "\udcff", ["UTF-8"]),
    ],
)
def test_an_error_names_file_line_and_key(tmp_path, old, new, expected):
    path = tmp_path / "mine.yaml"
    assert CARD.count(old) == 1
    path.write_bytes(CARD.replace(old, new).encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        read_card(path)
    text = f"{caught.value.message} {caught.value.hint}"
    assert all(part in text for part in [str(path), *expected]), text


def test_a_missing_card_is_told(tmp_path):
    with pytest.raises(ConfigError, match=str(tmp_path / r"none\.yaml")):
        read_card(tmp_path / "none.yaml")


def test_a_users_card_may_name_lists_and_colours(tmp_path):
    text = CARD.replace("{0: way, 1: automobile}", '{"0,0,0": way, "10, 20, 30": automobile}')
    text = text.replace("road: 0", 'road: "0,0,0"').replace("car: 1", 'car: ["10,20,30"]')
    (tmp_path / "mine.yaml").write_text(text + "split_lists: {train: lists/mine.txt}\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "mine.txt").write_text("01..03\n07\n")
    card = read_card(tmp_path / "mine.yaml")
    assert card.split_lists == {"train": ("01..03", "07")}
    assert card.label_map("ids").entries == {0x000000: 0, 0x0A141E: 13}
    assert card.domains == {"mine": "My streets"}


@every_card
def test_a_written_card_reads_back_equal(name, tmp_path):
    write_card(CARDS[name], tmp_path / "card.yaml")
    assert read_card(tmp_path / "card.yaml") == CARDS[name]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: mine", "name: ../mine", ["line 1", "name"]),
        ("title:", "name: yours\ntitle:", ["line 2", "'name' is given twice"]),
        ("title:", 'title: x\n"title":', ["line 3", "'title' is given twice"]),
        ("{0: way, 1: automobile}", '{0: way, "0": automobile}', ["line 5", "0 is listed twice"]),
        (
            "{0: way, 1: automobile}",
            "{0: way, 0x0: automobile}",
            ["line 5", "'0x0' is given twice"],
        ),
        ("car: 1", "car: [1, 0]", ["line 6", "0 is listed twice"]),
        ('id: "{frame}"', 'id: "../{frame}"', ["line 10", "id: '../{frame}' is a path"]),
        ('id: "{frame}"', 'id: "C:\\\\{frame}"', ["line 10", "is a path"]),
        ('id: "{frame}"', 'id: "{frame:>99999999999}"', ["line 10", "only its name"]),
        ('id: "{frame}"', 'id: "{frame.__class__}"', ["line 10", "only its name"]),
        ('id: "{frame}"', 'id: "{frame!r}"', ["line 10", "only its name"]),
        ('id: "{frame}"', 'id: "{name}"', ["line 10", "no field 'name'"]),
        ('id: "{frame}"', 'id: "{frame"', ["line 10", "id", "wrong"]),
        ('id: "{frame}"', 'id: "{frame}"\n    domain: "{city}"', ["no field 'city'"]),
        ("images/{frame}.png", "images/{frame:(}.png", ["line 11", "field 'frame' is wrong"]),
        ("images/{frame}.png", "images/{frame:(a+)+}.png", ["'frame' repeats a group"]),
        ("images/{frame}.png", "images/{frame:(a|aa)*b}.png", ["'frame' repeats a group"]),
        ("images/{frame}.png", "images/{frame:[)]*(.*[a])*}.png", ["'frame' repeats a group"]),
        ("images/{frame}.png", "images/{frame:.*.*.*x}.png", ["more than 2 times"]),
        ("images/{frame}.png", "images/{frame:(?#[)(a+)+]}.png", ["comments"]),
        ("images/{frame}.png", "images/{1}.png", ["line 11", "'1' cannot be the name"]),
        ("layouts:", "split_lists: {val: /etc/passwd}\nlayouts:", ["below the card's folder"]),
        ("layouts:", "split_lists: {val: ../mine.yaml}\nlayouts:", ["below the card's folder"]),
        ("layouts:", "split_lists: {val: 'C:\\x'}\nlayouts:", ["below the card's folder"]),
        ("layouts:", "split_lists: {val: .}\nlayouts:", ["split_lists.val"]),
        ("layouts:", "split_lists: {val: [0..99999999999]}\nlayouts:", ["too many samples"]),
        ("layouts:", f"split_lists: {{val: [0..{'9' * 5000}]}}\nlayouts:", ["too long"]),
        ("layouts:", "split_lists: {val: [9..1]}\nlayouts:", ["ends before"]),
        ("layouts:", f"{DEFECTS}[0..1999999, 0..1]}}]\nlayouts:", ["too many samples"]),
        ("title:", f"version: {'9' * 5000}\ntitle:", ["line 2", "number is too long"]),
        ("title:", f"version: {'9' * 20}\ntitle:", ["line 2", "version"]),
        ("title:", f"version: {'1:' * 5000}1\ntitle:", ["line 2", "number is too long"]),
        ("title:", "version: !!timestamp x\ntitle:", ["not YAML"]),
        ("title:", "archives: [{file: ..}]\ntitle:", ["archives.0.file"]),
        ("title:", 'archives: [{file: "a\\nb.zip"}]\ntitle:', ["archives.0.file"]),
        ("title:", "archives: [{file: a.zip, aliases: ../b.zip}]\ntitle:", ["archives.0.aliases"]),
        ("title:", "archives: [{file: a.zip}, {file: A.ZIP}]\ntitle:", ["two archives", "a.zip"]),
        ("title:", f"archives: [{{file: a.zip, about: '{'9' * 40}GB'}}]\ntitle:", ["no size"]),
        ("My streets", '"\\e[31mMine"', ["line 2", "control character"]),
        ("My streets", "[" * 1000 + "]" * 1000, ["line 2"]),
        ("My streets", "[" * 60 + "]" * 60, ["line 2", "levels deep"]),
        ("My streets", "&a [*a]", ["line 2", "not defined"]),
        (CARD, LAUGHS, ["more than 200,000 values"]),
        (CARD, CHAIN, ["levels deep"]),
    ],
)
def test_a_card_is_refused_that_leads_elsewhere_or_takes_too_much(tmp_path, old, new, expected):
    path = tmp_path / "mine.yaml"
    assert CARD.count(old) == 1
    path.write_text(CARD.replace(old, new))
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        read_card(path)
    assert time.monotonic() - started < 5
    assert all(part in caught.value.message for part in [str(path), *expected]), (
        caught.value.message
    )
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("expression", ["[0-9]+", "(?:a|b)?[^/]+(?<!_x)", r"\\d+\\(+", "[)*+]+"])
def test_a_field_may_repeat_characters(tmp_path, expression):
    text = CARD.replace("images/{frame}.png", f"images/{{frame:{expression}}}.png")
    (tmp_path / "mine.yaml").write_text(text)
    assert "frame" in read_card(tmp_path / "mine.yaml").layouts[0].image


def test_aliases_and_merges_stay_usable(tmp_path):
    text = CARD.replace("label_maps: ids", "label_maps: &maps [ids]").replace(
        "road: 0", "<<: &w {road: 0}"
    )
    other = '{name: other, image: "x/{n}.png", label: "y/{n}.png", label_maps: *maps, id: "{n}"}'
    (tmp_path / "mine.yaml").write_text(f"{text}  - {other}\n")
    card = read_card(tmp_path / "mine.yaml")
    assert [layout.label_maps for layout in card.layouts] == [("ids",), ("ids",)]
    assert card.label_map("ids").entries == {0: 0, 1: 13}


def test_a_card_and_its_lists_are_regular_files_of_a_moderate_size(tmp_path):
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(2**40)
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "mine.txt").symlink_to("/etc/passwd")
    linking = CARD + "split_lists: {train: lists/mine.txt}\n"
    (tmp_path / "linking.yaml").write_text(linking)
    for name, expected in (
        ("huge", "larger than"),
        ("pipe", "not a regular file"),
        ("linking", "leads out"),
    ):
        with pytest.raises(ConfigError, match=expected):
            read_card(tmp_path / f"{name}.yaml")
    for device in ("/dev/zero", "/dev/stdin", str(tmp_path)):
        with pytest.raises(ConfigError):
            read_card(Path(device))


@pytest.fixture
def bad_card_of_ones_own(home):
    for name, text in (
        ("mine", CARD),
        ("torn", CARD[:40]),
        ("other", CARD),
        ("bytes", "\0"),
    ):
        (home / "datasets" / name).mkdir(parents=True)
        (home / "datasets" / name / "card.yaml").write_text(text)


def test_one_bad_card_of_ones_own_stands_in_nobodys_way(bad_card_of_ones_own):
    assert get_card("mine").title == "My streets" and get_card("gtav").name == "gtav"
    assert "mine" in cards() and not {"torn", "other", "bytes"} & set(cards())
    assert set(damaged_cards()) == {"torn", "other", "bytes"}
    assert "is the card of 'mine'" in damaged_cards()["other"].message
    with pytest.raises(ConfigError, match=r"torn/card\.yaml") as caught:
        get_card("torn")
    assert "Other datasets" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="unknown dataset"):
        get_card("../datasets/mine")


def test_list_goes_on_and_names_the_bad_cards(bad_card_of_ones_own):
    listed = Result("data", "list", "--json")
    assert listed.code == 0 and "'torn' is left out" in listed.err
    assert {"mine", "gtav"} <= {entry["name"] for entry in listed.json["datasets"]}
    assert [entry["name"] for entry in listed.json["damaged_cards"]] == ["bytes", "other", "torn"]
    assert Result("data", "info", "torn").code == 2 and Result("data", "info", "mine").code == 0


# ---- the tables in this repository against the report that they were taken from ----


def _facts(file: str) -> dict:
    if not (FACTS / file).is_file():
        pytest.skip(f"no {file} in {FACTS.resolve()} (next to PINMEM_REFERENCE)")
    return json.loads((FACTS / file).read_text(encoding="utf-8"))


def _column(labels: list[dict], column: str) -> dict[str, int]:
    return {str(label["id"]): label[column] for label in labels if label["id"] >= 0}


@pytest.mark.reference
def test_the_tables_are_those_of_the_report():
    facts = _facts("datasets.json")
    labels = {name: about.get("labels") for name, about in facts.items()}
    vistas = facts["mapillary"]
    colors = TABLES["camvid"]["colors"]  # their trainIds are pinmem's own
    assert [_packed(raw) for raw in colors] == [
        _packed(",".join(map(str, label["color"]))) for label in facts["camvid"]["labels32"]
    ]
    assert {
        "gtav": {
            "ids": _column(labels["gtav"], "trainId"),
            "pinmem": _column(labels["gtav"], "pinmem_official_colour_lookup"),
        },
        "synthia": {"ids": _column(labels["synthia"], "trainId")},
        "cityscapes": {"cityscapes-ids": _column(labels["cityscapes"], "trainId")},
        "bdd100k": {"trainids": {str(i): i for i in [*range(19), facts["_meta"]["ignore"]]}},
        "mapillary": {
            "pinmem": _column(vistas["labels_v12"], "robustnet_pinmem_hrda"),
            "rein": _column(vistas["labels_v12"], "rein_ddb_openseg"),
            "v2.0": _column(vistas["labels_v20"], "derived_from_v12_protocol"),
        },
        "idd": {
            "ids": _column(labels["idd"], "trainId"),
            "idd-26": _column(labels["idd"], "level3Id"),
            "idd-level1": _column(labels["idd"], "level1Id"),
        },
        "wilddash2": {"ids": _column(labels["wilddash2"], "trainId")},
        "camvid": {"segnet": _column(labels["camvid"], "suggested_trainId"), "colors": colors},
    } == TABLES


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "label_map", "table"),
    [
        ("synthia", "ids", "labels"),
        ("mapillary", "pinmem", "labels_v12"),
        ("mapillary", "v2.0", "labels_v20"),
        ("idd", "ids", "labels"),
        ("wilddash2", "ids", "labels"),
        ("camvid", "segnet", "labels"),
    ],
)
def test_raw_values_are_called_as_in_the_report(name, label_map, table):
    labels = _facts("datasets.json")[name][table]
    ids = CARDS[name].label_map(label_map).ids
    assert all(ids[label["name"]] == label["id"] for label in labels)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("space", "name", "table"),
    [
        ("mapillary-66", "mapillary", "labels_v12"),
        ("mapillary-124", "mapillary", "labels_v20"),
        ("camvid-11", "camvid", "labels"),
        ("cityscapes-19", "cityscapes", "labels"),
    ],
)
def test_colours_are_those_of_the_report(space, name, table):
    labels = [x for x in _facts("datasets.json")[name][table] if x["id"] >= 0]
    if space == "cityscapes-19":
        labels = [label for label in labels if label["trainId"] != 255]
    colors = [tuple(label["color"]) for label in labels if label["name"] != "Void"]
    assert list(label_space(space).classes.values()) == colors


@pytest.mark.reference
def test_counts_are_those_of_the_report():
    facts = _facts("datasets.json")
    published = {
        "gtav": facts["gtav"]["splits"]["pinmem"],
        "synthia": facts["synthia"]["splits"]["pinmem"],
        "idd": facts["idd"]["counts"]["total"],
        "dark-zurich": facts["dark_zurich"]["counts"],
    }
    for name, card in REPORTED.items():
        counts = published.get(name) or facts.get(name, {}).get("counts", {})
        assert {split: counts[split] for split in card.counts} == card.counts


@pytest.mark.reference
@pytest.mark.parametrize("name", ["gtav", "synthia"])
def test_split_lists_are_those_of_the_report(name):
    lists = _facts("splits.json")[name]
    for split, entries in CARDS[name].split_lists.items():
        runs = [run if isinstance(run, list) else [run, run] for run in lists[split]]
        expected = [lists["pattern"] % n for first, last in runs for n in range(first, last + 1)]
        assert [f"{i}.png" for i in expand(entries)] == expected


@pytest.mark.reference
@pytest.mark.parametrize("name", REPORTED)
def test_archives_are_those_of_the_report(name):
    facts = _facts("datasets.json")
    about = next(v for key, v in facts.items() if key.replace("_", "-").startswith(name))
    for archive in CARDS[name].archives:
        listed = [d for d in about["downloads"] if d["file"] == archive.file]
        packages = {f"{CITYSCAPES}/file-handling/?packageID={d.get('packageID')}" for d in listed}
        assert {*archive.url} <= {d.get("url") for d in listed} | packages
        for key in ("bytes", "md5"):
            assert getattr(archive, key) == next((d[key] for d in listed if d.get(key)), None)
        # left out where a single third party gives it: a wrong one would refuse a right file
        assert archive.sha256 in {None, *(d.get("sha256") for d in listed)}
