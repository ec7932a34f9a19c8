"""Own data in the formats of labelling tools, from `new-card` to training."""

import json
import sys
from pathlib import Path

import annotated
import numpy as np
import pytest
from annotated import FORMATS, NAMES, SIZE, image_bytes, prepared, put
from conftest import small_config
from PIL import Image

from pinmem_core.data.catalog import read_card
from pinmem_core.data.locate import locate_raw_files
from pinmem_core.data.new_card import new_card
from pinmem_core.data.prepare import prepare, survey
from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import Notice
from pinmem_core.label_files import read_label
from pinmem_core.training import train


@pytest.mark.parametrize("form", FORMATS)
def test_the_drafted_card_of_each_format_prepares_every_label_exactly(tmp_path, form):
    scenes = FORMATS[form](tmp_path / "data")
    dataset = prepared(tmp_path / "data")
    assert dataset.summary["excluded"] == []
    assert {sample.id for sample in dataset.samples} == set(scenes)
    names = dataset.label_space.names
    assert {*names} - {"none"} == {*NAMES}
    for sample in dataset.samples:
        expected = np.array([names.index(name) for name in NAMES] + [255])[scenes[sample.id].ids]
        assert np.array_equal(read_label(sample.label), expected)


@pytest.mark.parametrize("form", ["labelme", "COCO", "YOLO", "parquet"])
def test_folders_are_domains_and_an_unseen_one_is_scored_whole(tmp_path, form):
    FORMATS[form](tmp_path / "data")
    dataset = prepared(tmp_path / "data")
    assert {*dataset.domains} == {"campus", "yard"}
    assert read_card(tmp_path / "mine.yaml").evaluate == "all"


def test_the_splits_of_several_json_files_are_those_of_the_card(tmp_path):
    annotated.coco_splits(tmp_path / "data")
    dataset = prepared(tmp_path / "data")
    assert dataset.counts == {"train": 8, "val": 2}
    assert {s.id for s in dataset.samples if s.split == "val"} == {"c_004", "y_004"}


def test_annotated_images_that_are_missing_are_counted_in_the_draft(tmp_path):
    annotated.coco(tmp_path / "data")
    (tmp_path / "data" / "images" / "campus" / "c_000.png").unlink()
    assert "# Annotated images that are not in the folder: 1." in new_card(
        tmp_path / "data", "mine"
    )
    assert len(prepared(tmp_path / "data").samples) == 9


def test_annotated_images_that_are_missing_are_named_once(tmp_path):
    annotated.coco_splits(tmp_path / "data")
    put(tmp_path / "mine.yaml", new_card(tmp_path / "data", "mine"))
    for image in sorted((tmp_path / "data").rglob("y_00?.png")):
        image.unlink()
    sent = []
    card = read_card(tmp_path / "mine.yaml")
    assert prepare(card, [tmp_path / "data"], on_event=sent.append).counts == {"train": 4, "val": 1}
    (message,) = (event.message for event in sent if isinstance(event, Notice))
    assert message.endswith("lacks: 5 (y_000.png, y_001.png, y_002.png, ...)")


def test_a_changed_panoptic_png_is_converted_again(tmp_path):
    annotated.panoptic(tmp_path / "data")
    first = prepared(tmp_path / "data")
    png = tmp_path / "data" / "panoptic_train" / "c_000.png"
    pixels = np.asarray(Image.open(png)).copy()
    pixels[:, :50] = 0
    put(png, image_bytes(pixels))
    second = prepared(tmp_path / "data")
    assert first.summary["digest"] != second.summary["digest"]
    assert (read_label(second.samples[0].label)[:, :50] == 255).all()


# Names


def shapes(folder: Path, *names: str) -> Path:
    """Write three images with a rectangle of labelme for each name."""
    for number in range(3):
        put(folder / f"{number}.png", image_bytes(annotated.scene(number).image))
        rectangles = [
            {"label": name, "points": [[9 * n, 0], [9 * n + 8, 40]], "shape_type": "rectangle"}
            for n, name in enumerate(names)
        ]
        put(folder / f"{number}.json", {"shapes": rectangles})
    return folder


def first_row(dataset) -> list[int]:
    return read_label(dataset.samples[0].label)[0, ::9].tolist()


def test_names_of_cityscapes_in_any_spelling_are_its_classes(tmp_path):
    names = ("Road", "traffic_light", " Sky", "parking")
    dataset = prepared(shapes(tmp_path / "data", *names))
    assert dataset.label_space.name == "cityscapes-19"
    assert first_row(dataset)[:5] == [0, 6, 10, 255, 255]


def test_names_of_nothing_are_no_classes(tmp_path):
    names = ("void", "grass", "__ignore__", "Unlabelled", "soil", "ignored")
    dataset = prepared(shapes(tmp_path / "data", *names))
    assert dataset.label_space.names == ("grass", "soil")
    assert first_row(dataset)[:7] == [255, 0, 255, 255, 1, 255, 255]


def test_a_single_class_of_shapes_has_a_background(tmp_path):
    dataset = prepared(shapes(tmp_path / "data", "car"))
    assert dataset.label_space.names == ("background", "car")
    assert first_row(dataset)[:3] == [1, 0, 0]


def test_names_may_hold_anything(tmp_path):
    names = (
        'a: "b" # c',
        "{{ x }}",
        "no",
        "3",
        "\u00e4\u0308\u2028\t\n",
        "x" * 300,
        "- [1, 2]",
        "'",
    )
    dataset = prepared(shapes(tmp_path / "data", *names))
    assert len(dataset.label_space.names) == len(names)
    assert first_row(dataset)[: len(names)] == [*range(len(names))]


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("dataset.yml", "names: [a, b, c, d, e]", "abcde"),
        ("data.yaml", "nc: 5\nnames:\n  0: a\n  1: b\n  2: c\n  3: d\n  4: e\n", "abcde"),
        ("labels/classes.txt", "a\nb\nc\nd\ne\n", "abcde"),
        ("data.yaml", "names: [", [f"class {number}" for number in range(5)]),
        ("data.yaml", "names: {a: b}", [f"class {number}" for number in range(5)]),
        ("data.yaml", "- names", [f"class {number}" for number in range(5)]),
    ],
)
def test_the_names_of_yolo_are_in_a_yaml_or_in_a_list(tmp_path, file, text, names):
    annotated.yolo(tmp_path / "data")
    (tmp_path / "data" / "data.yaml").unlink()
    put(tmp_path / "data" / file, text)
    assert prepared(tmp_path / "data").label_space.names == tuple(names)


def test_colours_that_the_labelmap_does_not_name_are_ignored(tmp_path):
    annotated.voc(tmp_path / "data")
    mask = tmp_path / "data" / "SegmentationClass" / "c_000.png"
    pixels = np.asarray(Image.open(mask).convert("RGB")).copy()
    pixels[:3] = 224, 224, 192
    Image.fromarray(pixels).save(mask)
    dataset = prepared(tmp_path / "data")
    assert dataset.summary["excluded"] == []
    label = read_label(next(s.label for s in dataset.samples if s.id == "c_000"))
    assert (label[:3] == 255).all() and set(np.unique(label[3:])) > {0, 1, 2}


def test_the_background_of_cvat_is_ignored(tmp_path):
    annotated.voc(tmp_path / "data")
    labelmap = tmp_path / "data" / "labelmap.txt"
    put(labelmap, labelmap.read_text().replace("void:", "background:"))
    dataset = prepared(tmp_path / "data")
    assert dataset.label_space.names == NAMES
    assert 255 in read_label(dataset.samples[0].label)


def test_masks_of_ids_take_the_names_of_the_labelmap_in_order(tmp_path):
    scenes = annotated.voc(tmp_path / "data")
    for name, one in scenes.items():
        mask = image_bytes((one.ids + 1).astype(np.uint8))
        put(tmp_path / "data" / "SegmentationClass" / f"{name}.png", mask)
    dataset = prepared(tmp_path / "data")
    assert dataset.label_space.names == NAMES
    assert np.array_equal(
        read_label(dataset.samples[0].label),
        np.where(scenes["c_000"].ids < 0, 255, scenes["c_000"].ids),
    )


def test_masks_of_ids_take_the_names_of_a_list(tmp_path):
    scenes = annotated.voc(tmp_path / "data")
    (tmp_path / "data" / "labelmap.txt").unlink()
    for name, one in scenes.items():
        ids = np.where(one.ids < 0, 255, one.ids).astype(np.uint8)
        put(tmp_path / "data" / "SegmentationClass" / f"{name}.png", image_bytes(ids))
    put(tmp_path / "data" / "classes.txt", "\n".join(NAMES) + "\n\n")
    assert prepared(tmp_path / "data").label_space.names == NAMES


def test_names_count_more_than_the_colours_of_cityscapes(tmp_path):
    colors = {"track": (128, 64, 128), "grass": (107, 142, 35), "air": (70, 130, 180)}
    pixels = np.array([*colors.values()], np.uint8).repeat(8, axis=0)[None].repeat(24, axis=0)
    for number in range(5):
        name = f"c_{number:03}.png"
        put(tmp_path / "data" / "JPEGImages" / name, image_bytes(pixels // (number + 2)))
        put(tmp_path / "data" / "SegmentationClass" / name, image_bytes(pixels))
    lines = (f"{name}:{','.join(map(str, color))}::" for name, color in colors.items())
    put(tmp_path / "data" / "labelmap.txt", "\n".join(lines))
    assert prepared(tmp_path / "data").label_space.names == tuple(colors)


# What is wrong


def change(path: Path, function) -> None:
    """Change the content of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    function(content)
    put(path, content)


def spoil_coco(folder: Path, wrong: dict) -> None:
    change(
        folder / "annotations" / "instances_default.json",
        lambda content: content["annotations"][0].update(wrong),
    )


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"category_id": 999}, "category 999 is not among"),
        ({"category_id": None}, "category None is not among"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "odd number"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e12]]}, "reaches beyond"),
        ({"segmentation": {"size": [64, 96], "counts": [1, 2]}}, "do not fill"),
        ({"segmentation": {"size": [64, 96], "counts": [10**12]}}, "do not fill"),
        ({"segmentation": {"size": [9**9, 9**9], "counts": "0" * 99}}, "another size"),
        ({"segmentation": 7}, "cannot be read for c_000.png"),
    ],
)
def test_a_wrong_annotation_leaves_out_its_image_and_no_other(tmp_path, wrong, reason):
    annotated.coco(tmp_path / "data")
    spoil_coco(tmp_path / "data", wrong)
    dataset = prepared(tmp_path / "data")
    (excluded,) = dataset.summary["excluded"]
    assert reason in excluded["reason"] and "c_000.png" in excluded["reason"]
    assert len(dataset.samples) == 9


def _of_another_size(folder: Path) -> None:
    put(folder / "images" / "campus" / "c_000.png", image_bytes(np.zeros((9, 9, 3), np.uint8)))


def _without_image(folder: Path) -> None:
    (folder / "campus" / "c_000.JPG").unlink()


def _without_label(folder: Path) -> None:
    (folder / "labels" / "campus" / "c_000.txt").unlink()


def _cut(path: str):
    def cut(folder: Path) -> None:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: len(content) // 2])

    return cut


def _text(path: str, text: object):
    return lambda folder: put(folder / path, text)


@pytest.mark.parametrize(
    ("form", "spoil", "rule", "reason"),
    [
        ("COCO", _of_another_size, "unreadable", "it is of an image of"),
        ("labelme", _without_image, "missing partner", "its image is missing"),
        ("labelme", _cut("campus/c_000.json"), "unreadable", "cannot be read"),
        ("labelme", _text("campus/c_000.json", b"\xff\xfe"), "unreadable", "not UTF-8"),
        ("labelme", _text("campus/c_000.json", {"shapes": []}), "single value", "single value"),
        ("YOLO", _without_label, "missing partner", "its label is missing"),
        ("YOLO", _text("labels/campus/c_000.txt", "0 nan 1 0 0 1 1"), "unreadable", "beyond"),
        ("YOLO", _text("labels/campus/c_000.txt", "0 1 2 3"), "unreadable", "odd number"),
        ("YOLO", _text("labels/campus/c_000.txt", "0 .5 .5 .1 .1"), "unreadable", "is a box"),
        ("YOLO", _text("labels/campus/c_000.txt", b"\xe9\xff"), "unreadable", "not UTF-8"),
        ("COCO panoptic", _cut("panoptic_train/c_000.png"), "unreadable", "c_000.png"),
        ("VOC masks", _cut("SegmentationClass/c_000.png"), "unreadable", "cannot be read"),
        (
            "VOC masks",
            _text("SegmentationClass/c_000.png", image_bytes(np.zeros((9, 9, 3), np.uint8))),
            "other size",
            f"is 9x9, but its image is {SIZE[0]}x{SIZE[1]}",
        ),
    ],
)
def test_one_wrong_file_leaves_out_its_sample(tmp_path, form, spoil, rule, reason):
    FORMATS[form](tmp_path / "data")
    spoil(tmp_path / "data")
    dataset = prepared(tmp_path / "data")
    (excluded,) = dataset.summary["excluded"]
    assert excluded["rule"] == rule and reason in excluded["reason"]
    assert len(dataset.samples) == 9


def test_a_class_that_the_card_does_not_know_is_not_drawn_as_another(tmp_path):
    annotated.yolo(tmp_path / "data")
    path = tmp_path / "mine.yaml"
    path.write_text(new_card(tmp_path / "data", "mine"), encoding="utf-8")
    label = tmp_path / "data" / "labels" / "campus" / "c_000.txt"
    put(label, label.read_text(encoding="utf-8").replace("4 ", "261 ", 1))
    dataset = prepare(read_card(path), [tmp_path / "data"])
    assert "the class 261 is not one" in dataset.summary["excluded"][0]["reason"]


@pytest.mark.parametrize(
    ("form", "spoil", "reason"),
    [
        ("COCO", _cut("annotations/instances_default.json"), "cannot be read"),
        ("COCO", _text("annotations/instances_default.json", '{"images": []}'), "no 'categories'"),
        ("COCO", _text("annotations/instances_default.json", b'{"images": [\xff'), "not UTF-8"),
        ("COCO", lambda folder: (folder / "images").rename(folder.parent / "x"), "has no images"),
    ],
)
def test_a_folder_without_any_readable_label_is_one_sentence(tmp_path, form, spoil, reason):
    FORMATS[form](tmp_path / "data")
    spoil(tmp_path / "data")
    with pytest.raises(DataError, match=reason):
        new_card(tmp_path / "data", "mine")


def test_boxes_of_yolo_are_no_masks(tmp_path):
    annotated.yolo(tmp_path / "data")
    for path in (tmp_path / "data" / "labels").rglob("*.txt"):
        put(path, "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.2 0.2\n")
    with pytest.raises(DataError, match="line 1 is a box, not a polygon"):
        new_card(tmp_path / "data", "mine")


def test_boxes_of_coco_are_no_masks(tmp_path):
    annotated.coco(tmp_path / "data")
    change(
        tmp_path / "data" / "annotations" / "instances_default.json",
        lambda content: [
            a.update(segmentation=[], bbox=[1, 2, 3, 4]) for a in content["annotations"]
        ],
    )
    with pytest.raises(DataError, match="hold no shapes"):
        new_card(tmp_path / "data", "mine")


# parquet


def parquet(folder: Path, columns: dict) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "train.parquet")
    return folder


def rows(count: int = 4) -> dict[str, list]:
    scenes = [annotated.scene(number) for number in range(count)]
    return {
        "image": [image_bytes(one.image) for one in scenes],
        "mask": [image_bytes((one.ids + 1).astype(np.uint8)) for one in scenes],
    }


def test_a_row_without_a_mask_or_with_a_damaged_one_is_left_out(tmp_path):
    columns = rows()
    columns["mask"][1:3] = None, b"damaged"
    dataset = prepared(parquet(tmp_path / "data", columns))
    rules = [excluded["rule"] for excluded in dataset.summary["excluded"]]
    assert sorted(rules) == ["missing partner", "unreadable"] and len(dataset.samples) == 2


def test_parquet_is_unpacked_once_and_again_when_it_changes(tmp_path):
    folder = parquet(tmp_path / "data", rows())
    first = prepared(folder)
    states = {s.image: s.image.stat().st_mtime_ns for s in first.samples}
    again = prepared(folder)
    assert {s.image: s.image.stat().st_mtime_ns for s in again.samples} == states
    (folder / "train.parquet").unlink()
    folder.rmdir()
    assert len(prepared(parquet(tmp_path / "data", rows(3))).samples) == 3


def test_a_dry_run_counts_the_rows_of_parquet(tmp_path):
    annotated.parquet(tmp_path / "data")
    path = tmp_path / "mine.yaml"
    path.write_text(new_card(tmp_path / "data", "mine"), encoding="utf-8")
    assert survey(read_card(path), [tmp_path / "data"]).counts == {"train": 8, "val": 2}


def test_a_prepared_parquet_needs_no_source_the_next_time(tmp_path):
    prepared(parquet(tmp_path / "data", rows()))
    card = read_card(tmp_path / "mine.yaml")
    assert len(prepare(card, locate_raw_files(card)).samples) == 4


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"text": ["a"], "label": [1]}, "has no columns of images and masks: it has text, label"),
        ({"image": [b"x"], "depth": [b"x"]}, "has no columns of images and masks"),
        (
            {"image": [{"bytes": None, "path": "a.png"}], "mask": [b"x"]},
            "has no columns|holds paths",
        ),
    ],
)
def test_parquet_without_images_and_masks_is_one_sentence(tmp_path, columns, reason):
    with pytest.raises(DataError, match=reason):
        new_card(parquet(tmp_path / "data", columns), "mine")


def test_parquet_whose_columns_are_not_those_of_the_card(tmp_path):
    prepared(parquet(tmp_path / "data", rows()))
    card = read_card(tmp_path / "mine.yaml")
    columns = rows()
    other = parquet(tmp_path / "other", {"image": columns["image"], "label": columns["mask"]})
    with pytest.raises(DataError, match="has no column 'mask': it has image, label"):
        locate_raw_files(card, [other])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 200 + b"PAR1"])
def test_a_damaged_parquet_is_one_sentence(tmp_path, content):
    put(tmp_path / "data" / "train.parquet", content)
    with pytest.raises(DataError, match="cannot be read as parquet"):
        new_card(tmp_path / "data", "mine")


def test_parquet_without_its_package_names_the_extra(tmp_path, monkeypatch):
    folder = parquet(tmp_path / "data", rows())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MachineError, match="pyarrow") as error:
        new_card(folder, "mine")
    assert error.value.hint == "pip install 'pinmem[parquet]'"


@pytest.mark.slow
def test_parquet_that_swells_is_refused(tmp_path):
    blank = image_bytes(np.zeros((64, 64, 3), np.uint8)) + b"\0" * (1 << 20)
    folder = parquet(tmp_path / "data", {"image": [blank] * 80, "mask": [blank] * 80})
    with pytest.raises(DataError, match="would grow to more than 50 times its size"):
        prepared(folder)


# Training


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_data_of_each_format_train_a_model_of_their_classes(tmp_path, form):
    FORMATS[form](tmp_path / "data")
    dataset = prepared(tmp_path / "data")
    domains = [f"mine:{name}" for name in dataset.domains]
    target = {"targets": domains[1:]} if len(domains) > 1 else {}
    config = small_config(sources=domains[:1], iterations=2, augmentation__crop=48, **target)
    result = train(config, tmp_path / "run")
    scores = json.loads((result.run / "scores.json").read_text(encoding="utf-8"))
    saved = json.loads((result.run / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    assert saved["classes"]["names"] == [*dataset.label_space.names]
    for domain in domains[1:]:
        assert scores["target"][domain]["images"] == dataset.domains[domain[5:]]
