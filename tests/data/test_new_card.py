import json
import os
import struct
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import yaml
from PIL import Image

from pinmem_core.data.catalog import read_card
from pinmem_core.data.layout_guess import best_pairing, candidates
from pinmem_core.data.layouts import find_samples
from pinmem_core.data.new_card import new_card
from pinmem_core.data.prepare import prepare, survey
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Notice
from pinmem_core.images import write_png
from pinmem_core.label_files import read_label
from pinmem_core.label_space import CITYSCAPES

TRAIN_IDS = (*range(19), 255)
CITYSCAPES_IDS = CITYSCAPES.label_ids
SIZE = (12, 16)
NUMBERS = ["001", "002", "003"]


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path.name))).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(noise).save(path)


def label(path: Path, values=TRAIN_IDS) -> None:
    pixels = np.resize(np.array(values, np.uint8), (*SIZE, *np.shape(values)[1:]))
    write_png(path, pixels)


def pairs(root: Path, images: str, labels: str, values=TRAIN_IDS, **fields: list[str]) -> Path:
    """Write a pair for every way to fill the fields of two paths; {n} is 1, 2, 3."""
    for filled in _filled({**fields, "n": NUMBERS}):
        image(root / images.format(**filled))
        label(root / labels.format(**filled), values)
    return root


def _filled(fields: dict[str, list[str]]) -> list[dict[str, str]]:
    ways: list[dict[str, str]] = [{}]
    for name, values in fields.items():
        ways = [{**way, name: value} for way in ways for value in values]
    return ways


def drafted(folder: Path, name: str = "mycity"):
    path = folder.parent / f"{name}.yaml"
    path.write_text(new_card(folder, name), encoding="utf-8")
    return read_card(path)


SHAPES = {
    "flat": ("images/{n}.jpg", "labels/{n}.png", {}),
    "same suffix": ("img/{n}.png", "gt/{n}.png", {}),
    "one folder": ("{n}.png", "{n}_gt.png", {}),
    "one folder, prefixes": ("img_{n}.png", "label_{n}.png", {}),
    "bare images": ("{n}.png", "masks/{n}.png", {}),
    "splits inside": ("images/{s}/{n}.jpg", "labels/{s}/{n}.png", {"s": ["train", "val"]}),
    "splits outside": ("{s}/rgb/{n}.jpg", "{s}/mask/{n}.png", {"s": ["training", "testing"]}),
    "splits in names": ("{s}_images/{n}.png", "{s}_labels/{n}.png", {"s": ["train", "val"]}),
    "SegNet": ("{s}/{n}.png", "{s}annot/{n}.png", {"s": ["train", "val", "test"]}),
    "domains": ("{d}/images/{n}.jpg", "{d}/labels/{n}.png", {"d": ["fog", "rain"]}),
    "bare domains": ("{d}/{n}.png", "labels/{d}/{n}.png", {"d": ["a", "b"]}),
    "Cityscapes": (
        "leftImg8bit/{s}/{d}/{d}_{n}_leftImg8bit.png",
        "gtFine/{s}/{d}/{d}_{n}_gtFine_labelTrainIds.png",
        {"s": ["train", "val"], "d": ["bonn", "ulm"]},
    ),
    "ACDC": (
        "rgb_anon/{d}/{s}/GOPR01/GOPR01_frame_{n}_rgb_anon.png",
        "gt/{d}/{s}/GOPR01/GOPR01_frame_{n}_gt_labelTrainIds.png",
        {"d": ["fog", "night"], "s": ["train", "val"]},
    ),
    "BDD": (
        "bdd/images/10k/{s}/{n}.jpg",
        "bdd/labels/sem_seg/masks/{s}/{n}.png",
        {"s": ["train", "val"]},
    ),
    "left camera": ("images/{n}_L.png", "labels/{n}_L.png", {}),
    "names of labels": ("imgs/mask_{n}.png", "masks/mask_{n}.png", {}),
    "COCO-Stuff": (
        "images/{s}2017/{n}.jpg",
        "stuffthingmaps/{s}2017/{n}.png",
        {"s": ["train", "val"]},
    ),
    "labels below images": ("{d}/{n}.png", "{d}/annotations/{n}_L.png", {"d": ["x", "y"]}),
}


@pytest.mark.parametrize(("images", "labels", "fields"), SHAPES.values(), ids=SHAPES)
def test_the_card_of_any_shape_prepares_every_pair_unchanged(tmp_path, images, labels, fields):
    folder = pairs(tmp_path / "data", images, labels, **fields)
    dataset = prepare(drafted(folder), [folder], strict=True)
    filled = _filled({**fields, "n": NUMBERS})
    assert {s.image for s in dataset.samples} == {folder / images.format(**f) for f in filled}
    assert dataset.summary["excluded"] == []
    assert dataset.summary["label_map"]["name"] == "trainids"
    splits = {{"training": "train", "testing": "test"}.get(s, s) for s in fields.get("s", [])}
    assert set(dataset.counts) == (splits or {"train"})
    assert set(dataset.domains) == set(fields.get("d", ["mycity"]))


def test_of_several_labels_for_an_image_the_likeliest_are_taken(tmp_path):
    def label_of(*others: str) -> str:
        root = tmp_path / str(len(others))
        for ending in ("labelIds.png", *others):
            images, labels = (
                "leftImg8bit/{d}/{n}_leftImg8bit.png",
                f"gtFine/{{d}}/{{n}}_gtFine_{ending}",
            )
            pairs(root, images, labels, d=["bonn", "ulm"])
        return drafted(root).layouts[0].label

    common = ("color.png", "instanceIds.png", "polygons.json")
    assert label_of(*common).endswith("gtFine/{domain}/{name}_gtFine_labelIds.png")
    assert label_of(*common, "labelTrainIds.png").endswith("{name}_gtFine_labelTrainIds.png")


def test_the_likeliest_are_taken_from_many_files(tmp_path):
    frames = [f"ulm_{number:04}" for number in range(600)]
    endings = ("leftImg8bit/{}_leftImg8bit.png", "gt/{}_gt_color.png", "gt/{}_gt_labelIds.png")
    paths = [PurePosixPath(end.format(frame)) for frame in frames for end in endings]
    pairing = best_pairing(candidates(paths))
    assert pairing is not None
    assert (len(pairing.pairs), pairing.label) == (600, ("", "_gt_labelIds"))


def test_the_label_kind_of_most_images_is_taken(tmp_path):
    pairs(tmp_path, "images/{n}.png", "labels/{n}.png")
    label(tmp_path / "labels" / "001_labelTrainIds.png")
    assert drafted(tmp_path).layouts[0].label == "labels/{name}.png"


def test_images_of_several_suffixes(tmp_path):
    pairs(tmp_path, "images/{n}.jpg", "labels/{n}.png")
    (tmp_path / "images" / "001.jpg").rename(tmp_path / "images" / "001.JPEG")
    assert len(find_samples(drafted(tmp_path), [tmp_path]).samples) == 3


FORMS = {
    **dict.fromkeys(("JPG", "Jpeg", "jfif"), "JPEG"),
    **dict.fromkeys(("ppm", "pgm"), "PPM"),
    **dict.fromkeys(("tif", "TIFF"), "TIFF"),
    **{"PNG": "PNG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF"},
    **{"jp2": "JPEG2000", "avif": "AVIF"},
}


@pytest.mark.parametrize(
    ("suffix", "annotated"), [*((suffix, False) for suffix in FORMS), ("JPG", True)]
)
def test_images_may_have_any_suffix_that_prepare_reads(tmp_path, suffix, annotated):
    folder = pairs(tmp_path / "data", "images/{n}.png", "labels/{n}.png")
    for path in [*(folder / "images").iterdir()]:
        with Image.open(path) as picture:
            kept = picture.convert("L" if suffix == "pgm" else "RGB")
        path.unlink()
        kept.save(path.with_suffix(f".{suffix}"), FORMS[suffix])
    for path in [*(folder / "labels").iterdir()] if annotated else []:
        path.unlink()
        shapes = [
            {"label": name, "points": [[n, 0], [n + 2, 9]], "shape_type": "rectangle"}
            for n, name in enumerate(("lawn", "path"))
        ]
        path.with_suffix(".json").write_text(json.dumps({"shapes": shapes}), encoding="utf-8")
    assert len(prepare(drafted(folder), [folder], strict=True).samples) == 3


def test_images_without_a_label_do_not_mislead(tmp_path):
    folder = pairs(tmp_path / "data", "images/{s}/{n}.jpg", "labels/{s}/{n}.png", s=["train"])
    image(folder / "images" / "train" / "009.jpg")
    image(folder / "docs" / "pictures" / "overview.png")
    result = survey(drafted(folder), [folder])
    assert (result.counts, len(result.defects)) == ({"train": 3}, 1)


def test_no_label_is_given_to_a_namesake_of_its_image(tmp_path):
    folder = pairs(tmp_path / "data", "training/image_2/{n}.png", "training/semantic/{n}.png")
    for namesake in NUMBERS:
        image(folder / "testing" / "image_2" / f"{namesake}.png")
        image(folder / "unlabelled" / "image_2" / f"{namesake}.png")
    samples = find_samples(drafted(folder), [folder]).samples
    assert {sample.image.parts[-3] for sample in samples} == {"training"}


def test_outer_folders_are_left_away(tmp_path):
    folder = pairs(tmp_path / "data", "mycity/v1/images/{n}.jpg", "mycity/v1/labels/{n}.png")
    assert drafted(folder).layouts[0].image == "images/{name}.jpg"


def test_a_split_may_be_told_twice(tmp_path):
    images, labels = "{s}_images/{s}/{n}.jpg", "all_labels/{s}/{n}.png"
    folder = pairs(tmp_path / "data", images, labels, s=["train", "val"])
    card = drafted(folder)
    assert survey(card, [folder]).counts == {"train": 3, "val": 3}
    assert set(card.domains) == {"mycity"}


def test_a_split_without_labels_is_left_out(tmp_path):
    images, labels = "images/{s}/{n}.jpg", "labels/{s}/{n}.png"
    folder = pairs(tmp_path / "data", images, labels, s=["train", "val"])
    image(folder / "images" / "test" / "001.jpg")
    assert survey(drafted(folder), [folder]).defects == []


def test_pairs_that_lie_deeper_than_most_do_not_count_and_are_reported(tmp_path):
    folder = pairs(tmp_path / "data", "images/{n}.jpg", "labels/{n}.png")
    pairs(folder, "images/0/old-{n}.jpg", "labels/0/old-{n}.png")
    (folder / "images" / "0" / "old-003.jpg").unlink()
    assert find_samples(drafted(folder), [folder]).pairs == 3
    sent = []
    reason = "2 of 5 images, such as images/0/old-001.jpg, have no label where the others have one"
    assert f"# {reason}." in new_card(folder, "mycity", sent.append)
    assert sent[-1] == Notice(reason, warning=True)


def test_folders_that_vary_too_much_are_no_domains(tmp_path):
    drives = [f"drive_{number}" for number in range(33)]
    folder = pairs(tmp_path / "data", "images/{d}/{n}.jpg", "labels/{d}/{n}.png", d=drives)
    card = drafted(folder)
    assert set(card.domains) == {"mycity"}
    assert find_samples(card, [folder]).pairs == 99


def test_ids_of_cityscapes_are_recognized(tmp_path):
    folder = pairs(tmp_path / "data", "images/{n}.jpg", "labels/{n}.png", (0, *CITYSCAPES_IDS))
    dataset = prepare(drafted(folder), [folder])
    assert dataset.summary["label_map"]["name"] == "cityscapes-ids"
    assert read_label(dataset.samples[0].label).ravel()[:20].tolist() == [255, *range(19)]


@pytest.mark.parametrize(
    ("ids", "label_map"),
    [(range(12), "own"), (range(18), "own"), (range(30), "own"), (range(34), "cityscapes-ids")],
)
def test_small_ids_alone_prove_nothing(tmp_path, ids, label_map):
    """CamVid's ids are 0 to 11, too, and mean something else."""
    folder = pairs(tmp_path / "data", "images/{n}.jpg", "labels/{n}.png", tuple(ids))
    assert [layout.label_maps for layout in drafted(folder).layouts] == [(label_map,)]


def test_other_ids_are_listed_with_their_shares_and_are_classes_of_the_card(tmp_path):
    folder = pairs(tmp_path / "data", "images/{n}.jpg", "labels/{n}.png", (3, 40, 40, 200))
    text = new_card(folder, "mycity")
    assert '      40: "class 40"  # 50.00%\n      200: "class 200"  # 25.00%\n' in text
    dataset = prepare(drafted(folder), [folder], strict=True)
    assert dataset.label_space.names == ("class 3", "class 40", "class 200")
    assert read_label(dataset.samples[0].label).ravel()[:4].tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("ids", "classes"), [((0, 255), 2), ((0, 1, 255), 2), ((0, 128, 255), 3), ((253, 254, 255), 2)]
)
def test_255_is_ignored_unless_the_values_are_levels_of_grey(tmp_path, ids, classes):
    folder = pairs(tmp_path / "data", "images/{n}.jpg", "labels/{n}.png", tuple(ids))
    assert drafted(folder).space.names == tuple(f"class {value}" for value in ids[:classes])


def test_classes_may_be_renamed_and_joined_in_the_draft(tmp_path):
    folder = pairs(tmp_path / "data", "images/{n}.jpg", "labels/{n}.png", (3, 40, 200))
    path = tmp_path / "mycity.yaml"
    text = new_card(folder, "mycity").replace('    "class 200": [128, 128, 0]\n', "")
    text = text.replace('      "class 200": [200]\n', "").replace("[40]", "[40, 200]")
    path.write_text(text.replace("class 3", "lawn"))
    dataset = prepare(read_card(path), [folder], strict=True)
    assert dataset.label_space.names == ("lawn", "class 40")
    assert read_label(dataset.samples[0].label).ravel()[:3].tolist() == [0, 1, 1]


def test_colours_are_listed_and_are_the_colours_of_the_classes(tmp_path):
    colors = ((128, 64, 128), (4, 5, 6), (4, 5, 6))  # the first is that of roads in Cityscapes
    folder = pairs(tmp_path / "data", "images/{n}.jpg", "labels/{n}.png", colors)
    text = new_card(folder, "mycity")
    assert '"4,5,6": "#040506"  # 66.67%\n      "128,64,128": "#804080"  # 33.33%' in text
    dataset = prepare(drafted(folder), [folder], strict=True)
    assert dict(dataset.label_space.classes) == {"#040506": (4, 5, 6), "#804080": (128, 64, 128)}
    assert read_label(dataset.samples[0].label).ravel()[:3].tolist() == [1, 0, 0]


@pytest.mark.parametrize("values", [(7,), range(255)])
def test_labels_of_one_value_or_of_instances_are_no_classes(tmp_path, values):
    folder = pairs(tmp_path / "data", "images/{n}.jpg", "labels/{n}.png")
    for path in (folder / "labels").iterdir():
        write_png(path, np.resize(np.array(values, np.uint8), (16, 16)))
    with pytest.raises(DataError, match="and 2 to 254 are needed"):
        new_card(folder, "mycity")


def test_the_colours_of_cityscapes_bring_their_classes(tmp_path):
    colors = ((0, 0, 0), *CITYSCAPES.classes.values())
    folder = pairs(tmp_path / "data", "images/{n}.jpg", "labels/{n}.png", colors)
    dataset = prepare(drafted(folder), [folder], strict=True)
    assert read_label(dataset.samples[0].label).ravel()[:20].tolist() == [255, *range(19)]


def test_of_too_many_colours_the_rarest_are_left_out(tmp_path):
    colors = [(1, 1, 1)] * 50 + [(7, 7, shade) for shade in range(100)]
    folder = pairs(tmp_path / "data", "images/{n}.jpg", "labels/{n}.png", colors)
    text = new_card(folder, "mycity")
    assert len(yaml.safe_load(text)["label_maps"]["own"]["values"]) == 64
    assert "37 rarer" in text


def _rgb16(ids: list[list[int]], blue: int = 0) -> bytes:
    """Return a 16-bit RGB PNG with ids in its first channel."""
    pixels = np.zeros((len(ids), len(ids[0]), 3), ">u2")
    pixels[..., 0], pixels[..., 2] = ids, blue
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", len(ids[0]), len(ids), 16, 2, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def test_ids_in_16_bits(tmp_path):
    folder = pairs(tmp_path / "data", "RGB/{n}.png", "GT/LABELS/{n}.png")
    for path in (folder / "GT" / "LABELS").iterdir():
        path.write_bytes(_rgb16([[0, 300], [7, 7]]))
    card = drafted(folder)
    assert card.layouts[0].encoding == "ids16"
    assert card.label_map("own").entries == {0: 0, 7: 1, 300: 2}


def test_colours_in_16_bits_are_no_ids(tmp_path):
    folder = pairs(tmp_path / "data", "RGB/{n}.png", "GT/LABELS/{n}.png")
    for path in (folder / "GT" / "LABELS").iterdir():
        path.write_bytes(_rgb16([[0, 65535], [0, 65535]], blue=65535))
    with pytest.raises(DataError, match="cannot read exactly"):
        new_card(folder, "mycity")


def polygons(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    box = [[0, 0], [SIZE[1], 0], [SIZE[1], 5], [0, 5]]
    objects = [{"label": name, "polygon": box} for name in names]
    scene = {"imgWidth": SIZE[1], "imgHeight": SIZE[0], "objects": objects}
    path.write_text(json.dumps(scene), encoding="utf-8")


@pytest.mark.parametrize(
    ("names", "label_map", "classes"),
    [
        (("sky", "cargroup"), "cityscapes-ids", CITYSCAPES.names),
        (("tuk-tuk", "sky", "cargroup"), "own", ("tuk-tuk", "sky", "car")),
    ],
)
def test_polygons_bring_the_classes_that_they_name(tmp_path, names, label_map, classes):
    for number in NUMBERS:
        image(tmp_path / "data" / "images" / f"{number}.jpg")
        polygons(tmp_path / "data" / "annotations" / f"{number}_polygons.json", *names)
    dataset = prepare(drafted(tmp_path / "data"), [tmp_path / "data"], strict=True)
    assert dataset.summary["label_map"]["name"] == label_map
    assert dataset.label_space.names == classes
    column = read_label(dataset.samples[0].label)[:, 0].tolist()
    assert column == [classes.index("car")] * 6 + [255] * 6


def test_labels_that_cannot_be_read_do_not_keep_the_others_from_being_listed(tmp_path):
    pairs(tmp_path, "images/{n}.jpg", "labels/{n}.png")
    (tmp_path / "labels" / "001.png").write_bytes(b"torn")
    assert "in 2 label files" in new_card(tmp_path, "mycity")
    for path in (tmp_path / "labels").iterdir():
        path.write_bytes(b"torn")
    with pytest.raises(DataError, match="not a supported image"):
        new_card(tmp_path, "mycity")


def test_what_was_seen_is_told_where_nothing_pairs(tmp_path):
    image(tmp_path / "images" / "a.jpg")
    label(tmp_path / "masks" / "b.png")
    with pytest.raises(DataError) as error:
        new_card(tmp_path, "mycity")
    assert "1 possible images, e.g. images/a.jpg" in error.value.message
    assert "1 possible labels, e.g. masks/b.png" in error.value.message


def test_labels_whose_folders_no_image_tells_do_not_pair(tmp_path):
    for number, images, labels in (("1", "a", "b"), ("2", "b", "a"), ("3", "a", "a")):
        image(tmp_path / "images" / images / f"{number}.jpg")
        label(tmp_path / "labels" / labels / f"{number}.png")
    with pytest.raises(DataError, match=r"differ: images/a/1.jpg and labels/b/1.png"):
        new_card(tmp_path, "mycity")


@pytest.mark.parametrize(("name", "message"), [("My City", "cannot be"), ("camvid", "knows")])
def test_a_name_that_no_dataset_may_have(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        new_card(tmp_path, name)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        new_card(tmp_path / "nowhere", "mycity")


# Folders and suffixes in any case


@pytest.mark.parametrize(
    ("images", "labels", "splits"),
    [
        ("{s}/Images/{n}.png", "{s}/Labels/{n}.png", ["Train", "Val"]),
        ("images/{s}/{n}.JPG", "labels/{s}/{n}.PNG", ["TRAIN", "VAL"]),
        ("{s}_images/{n}.png", "{s}_labels/{n}.png", ["Training", "Validation"]),
    ],
)
def test_splits_and_suffixes_are_seen_in_any_case(tmp_path, images, labels, splits):
    folder = pairs(tmp_path / "data", images, labels, s=splits)
    dataset = prepare(drafted(folder), [folder], strict=True)
    assert (dataset.counts, set(dataset.domains)) == ({"train": 3, "val": 3}, {"mycity"})


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("1_train", "2_val"), ("train", "val")),
        (("01-Training", "02-Test"), ("test", "train")),
        (("train", "eval"), ("train", "val")),
        (("train", "evaluation"), ("train", "val")),
        (("trn", "dev"), ("train", "val")),
        (("TRN", "TST"), ("test", "train")),
    ],
)
def test_splits_are_seen_behind_numbers_and_by_other_names(tmp_path, folders, splits):
    pairs(tmp_path, "{s}/images/{n}{s}.jpg", "{s}/masks/{n}{s}.png", s=list(folders))
    card = drafted(tmp_path)
    assert set(card.domains) == {"mycity"}
    assert sorted(prepare(card, [tmp_path]).counts) == sorted(splits)


def test_folders_that_only_contain_short_names_of_splits_are_no_splits(tmp_path):
    pairs(tmp_path, "{s}/images/{n}{s}.jpg", "{s}/masks/{n}{s}.png", s=["device1", "device2"])
    assert set(drafted(tmp_path).domains) == {"device1", "device2"}


def test_splits_whose_labels_are_written_in_another_case(tmp_path):
    for split in ("Train", "Val"):
        pairs(tmp_path, f"images/{split}/{{n}}.png", f"labels/{split.lower()}/{{n}}.png")
    assert prepare(drafted(tmp_path), [tmp_path], strict=True).counts == {"train": 3, "val": 3}


def test_suffixes_of_several_cases_are_one(tmp_path):
    pairs(tmp_path, "images/{n}.jpg", "labels/{n}.png")
    (tmp_path / "images" / "001.jpg").rename(tmp_path / "images" / "001.JPG")
    (tmp_path / "labels" / "002.png").rename(tmp_path / "labels" / "002.PNG")
    card = drafted(tmp_path)
    assert card.layouts[0].image == "images/{name}.jpg"
    assert len(prepare(card, [tmp_path], strict=True).samples) == 3


def test_hidden_files_are_neither_images_nor_labels(tmp_path):
    pairs(tmp_path, "images/{n}.jpg", "labels/{n}.png")
    for path in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.png")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    card = drafted(tmp_path)
    assert (card.layouts[0].image, card.layouts[0].label) == (
        "images/{name}.jpg",
        "labels/{name}.png",
    )


# Folders that there is only one of


def test_a_lone_split_is_a_split_and_the_other_may_come_later(tmp_path):
    pairs(tmp_path, "images/train/{n}.jpg", "labels/train/{n}.png")
    card = drafted(tmp_path)
    assert prepare(card, [tmp_path], strict=True).counts == {"train": 3}
    pairs(tmp_path, "images/val/{n}b.jpg", "labels/val/{n}b.png")
    assert prepare(card, [tmp_path], strict=True).counts == {"train": 3, "val": 3}


def test_a_lone_split_around_everything_is_a_split(tmp_path):
    folder = pairs(tmp_path / "data", "mine/Val/images/{n}.jpg", "mine/Val/labels/{n}.png")
    assert prepare(drafted(folder), [folder], strict=True).counts == {"val": 3}


@pytest.mark.parametrize("name", ["latest", "test-drives", "contest"])
def test_a_lone_folder_around_everything_is_no_split_for_what_its_name_contains(tmp_path, name):
    folder = pairs(tmp_path / "data", f"{name}/images/{{n}}.jpg", f"{name}/labels/{{n}}.png")
    assert drafted(folder).layouts[0].split is None


def test_a_lone_folder_stays_as_it_is(tmp_path):
    pairs(tmp_path, "images/ulm/{n}.jpg", "labels/ulm/{n}.png")
    card = drafted(tmp_path)
    assert card.layouts[0].image == "images/ulm/{name}.jpg"
    assert set(card.domains) == {"mycity"}


def test_folders_that_vary_are_the_domains_rather_than_a_lone_one(tmp_path):
    folder = pairs(tmp_path, "images/front/{d}/{n}.jpg", "labels/front/{d}/{n}.png", d=["a", "b"])
    assert prepare(drafted(folder), [folder], strict=True).domains == {"a": 3, "b": 3}


def test_domains_can_be_selected_whatever_their_folders_are_called(tmp_path):
    folder = pairs(tmp_path, "{d}/images/{n}.jpg", "{d}/labels/{n}.png", d=["rain, day", "cam@2"])
    card = drafted(folder)
    assert set(card.domains) == {"rain- day", "cam-2"}
    assert prepare(card, [folder], strict=True).domains == {"rain- day": 3, "cam-2": 3}


def test_a_lone_folder_next_to_images_without_labels_stays_as_it_is(tmp_path):
    pairs(tmp_path, "images/left/{n}.jpg", "labels/left/{n}.png")
    image(tmp_path / "images" / "right" / "001.jpg")
    card = drafted(tmp_path)
    assert card.layouts[0].image == "images/left/{name}.jpg"
    assert survey(card, [tmp_path]).defects == []


# Names


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/run {{1}}/{n}.png", "labels/run {{1}}/{n}.png"),
        ("b/images/{{x}}/{n}.png", "b/labels/{{x}}/{n}.png"),
        ("images{{/{n}.jpg", "labels}}/{n}.png"),
        ("{{domain}}/{d}/rgb/{n}.png", "{{domain}}/{d}/gt/{n}.png"),
        ("images/{{{d}}}/{n}.png", "labels/{{{d}}}/{n}.png"),
        ("{{a}}{d}/{n}.png", "gt/{{a}}{d}/{n}.png"),
        ("{{0}}_{n}.png", "{{0}}_{n}_gt{{x}}.png"),
        ('images/a"b\\c:d#e\n\x1b\u0301/{n}.png', 'labels/a"b\\c:d#e\n\x1b\u0301/{n}.png'),
    ],
)
def test_any_folder_can_be_written_into_a_pattern(tmp_path, images, labels):
    domains = {"d": ["x", "y"]} if "{d}" in images else {}
    folder = pairs(tmp_path / "data", images, labels, **domains)
    dataset = prepare(drafted(folder), [folder], strict=True)
    assert len(dataset.samples) == 3 * len(domains.get("d", "1"))


def test_names_that_are_not_utf_8_or_differ_in_how_accents_are_encoded(tmp_path):
    folders = [os.fsdecode(b"d\xe9"), "e"]
    pairs(tmp_path, "images/{d}/e\u0301_{n}.jpg", "labels/{d}/\xe9_{n}.png", d=folders)
    card = drafted(tmp_path)
    assert prepare(card, [tmp_path], strict=True).samples[0].id == "d%E9_\xe9_001"


# Kinds of labels


@pytest.mark.parametrize("suffix", ["tif", "TIFF", "bmp", "webp", "pgm"])
def test_labels_may_have_any_suffix_that_keeps_their_values(tmp_path, suffix):
    pairs(tmp_path, "images/{n}.jpg", "labels/{n}.png")
    for path in [*(tmp_path / "labels").iterdir()]:
        with Image.open(path) as picture:
            options = {"lossless": True} if suffix == "webp" else {}
            form = {"tif": "TIFF", "pgm": "PPM"}.get(suffix, suffix.upper())
            picture.save(path.with_suffix(f".{suffix}"), form, **options)
        path.unlink()
    assert drafted(tmp_path).layouts[0].label == f"labels/{{name}}.{suffix}"


def test_labels_in_jpeg_files_are_named_as_what_they_are(tmp_path):
    for number in NUMBERS:
        image(tmp_path / "images" / f"{number}.jpg")
        image(tmp_path / "labels" / f"{number}.jpg")
    with pytest.raises(DataError, match=r"no labels but JPEG files, such as labels/001\.jpg"):
        new_card(tmp_path, "mycity")


@pytest.mark.parametrize(
    ("ids", "label_map"),
    [
        (range(19), "trainids"),
        ((0, 1, 2, 8, 10, 13), "trainids"),
        ((0, 1, 2, 8, 10, 13, 255), "trainids"),
        (range(14), "own"),
        ((0, 1, 255), "own"),
        ((0, 2, 8, 10, 13, 19), "own"),
    ],
)
def test_train_ids_are_recognized_without_255(tmp_path, ids, label_map):
    folder = pairs(tmp_path / "data", "images/{n}.jpg", "labels/{n}.png", tuple(ids))
    assert drafted(folder).layouts[0].label_maps == (label_map,)
    sent = []
    new_card(folder, "mycity", sent.append)
    warned = ["the labels are taken for 'trainids'"] if label_map == "trainids" else []
    assert [event.message.partition(" of Cityscapes")[0] for event in sent] == warned


def test_files_that_are_called_train_ids_are_and_others_may_be(tmp_path):
    pairs(tmp_path / "a", "{n}.jpg", "{n}_labelTrainIds.png", (0, 1, 2))
    pairs(tmp_path / "b", "images/{n}.jpg", "labels/{n}.png", (0, 1, 2))
    pairs(tmp_path / "c", "images/{n}.jpg", "labels/{n}.png", (0, 1, 200))
    assert drafted(tmp_path / "a").layouts[0].label_maps == ("trainids",)
    assert "If these are the trainIds" in new_card(tmp_path / "b", "mycity")
    assert "If these are the trainIds" not in new_card(tmp_path / "c", "mycity")


# Split lists that come with the data


def voc(root: Path, **lists: str) -> Path:
    pairs(root, "JPEGImages/2007_{n}.jpg", "SegmentationClass/2007_{n}.png")
    for name, text in lists.items():
        path = root / "ImageSets" / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_the_image_sets_of_voc_divide_the_samples(tmp_path):
    lists = {
        "Segmentation__train": "2007_003\n",
        "Segmentation__val": "2007_001\r\n",
        "Segmentation__trainval": "2007_001\n2007_003\n",
        "Main__train": "2007_001\n" + "\n".join(f"1999_{n}" for n in range(9)),
        "Main__val": "2007_003\n" + "\n".join(f"1999_{n}" for n in range(9)),
    }
    folder = voc(tmp_path / "VOC2012", **lists)
    card = drafted(folder)
    assert card.split_lists == {"train": ("2007_003",), "val": ("2007_001",)}
    dataset = prepare(card, [folder])
    assert {s.id: s.split for s in dataset.samples} == {"2007_001": "val", "2007_003": "train"}
    assert [defect["rule"] for defect in dataset.summary["excluded"]] == ["not listed"]


def test_lists_may_hold_paths_and_two_columns(tmp_path):
    line = "JPEGImages/2007_{0}.jpg SegmentationClass/2007_{0}.png\n"
    voc(tmp_path, train=line.format("001") + line.format("002"), validation=line.format("003"))
    card = drafted(tmp_path)
    assert card.split_lists == {"train": ("2007_001", "2007_002"), "val": ("2007_003",)}


@pytest.mark.parametrize("names", ["{}_list", "city_{}", "{}2017", "VOC_{}_ids"])
def test_lists_may_be_called_by_more_than_the_split(tmp_path, names):
    lists = {names.format("Train"): "2007_001\n2007_002\n", names.format("Val"): "2007_003\n"}
    voc(tmp_path, **lists, **{names.format("trainval"): "2007_001\n2007_002\n2007_003\n"})
    card = drafted(tmp_path)
    assert card.split_lists == {"train": ("2007_001", "2007_002"), "val": ("2007_003",)}


def test_lists_may_be_tables_separated_by_commas(tmp_path):
    voc(tmp_path)
    (tmp_path / "train.csv").write_text("image,label\n2007_001.jpg,2007_001.png\n2007_002,x\n")
    (tmp_path / "eval.csv").write_text('image,label\n"2007_003.jpg","2007_003.png"\n')
    card = drafted(tmp_path)
    assert card.split_lists == {"train": ("2007_001", "2007_002"), "val": ("2007_003",)}


@pytest.mark.parametrize(
    "lists",
    [
        {"train": "2007_001\n"},
        {"train": "cat\ndog\ncow\n2007_001\n", "val": "cat\ndog\ncow\n"},
        {"train": "", "val": "\n\n"},
        {"classes": "2007_001", "notes": "2007_002"},
    ],
)
def test_other_texts_are_no_lists(tmp_path, lists):
    assert drafted(voc(tmp_path, **lists)).split_lists == {}


def test_folders_that_tell_splits_come_before_lists(tmp_path):
    pairs(tmp_path, "images/{s}/{n}{s}.jpg", "labels/{s}/{n}{s}.png", s=["train", "val"])
    voc(tmp_path / "lists", train="001train\n", val="001val\n")
    for path in [*(tmp_path / "lists").rglob("*.*g")]:
        path.unlink()
    card = drafted(tmp_path)
    assert (card.split_lists, card.layouts[0].split) == ({}, "{split}")
