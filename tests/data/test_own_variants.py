"""Own data in odd variants: every label is right, or is left out with the reason."""

from pathlib import Path

import annotated
import numpy as np
import pytest
from annotated import NAMES, Scene, image_bytes, prepared, put, scene
from PIL import Image

from pinmem_core.data.catalog import read_card
from pinmem_core.data.new_card import new_card
from pinmem_core.errors import DataError
from pinmem_core.label_files import read_label


def check(dataset, scenes: dict[Path, Scene]) -> None:
    """Check the class of every pixel, by the image of each sample."""
    names = dataset.label_space.names
    assert {sample.image for sample in dataset.samples} == set(scenes)
    for sample in dataset.samples:
        expected = np.array([names.index(name) for name in NAMES] + [255])[scenes[sample.image].ids]
        assert np.array_equal(read_label(sample.label), expected)


# COCO


def batches(folder: Path, images: str, annotations: str, listed: str) -> dict[Path, Scene]:
    """Write two JSON files whose images have the same names."""
    written = {}
    for number, place in enumerate(("train", "val")):
        entries = {}
        for n in range(4):
            one = written[folder / images.format(place=place, n=n)] = scene(10 * number + n)
            put(folder / images.format(place=place, n=n), image_bytes(one.image))
            entries[listed.format(place=place, n=n)] = one
        put(folder / annotations.format(place=place, n=number), annotated.coco_of(entries, ""))
    return written


@pytest.mark.parametrize(
    ("images", "annotations", "listed"),
    [
        ("images/{place}/{n}.png", "annotations/{place}.json", "{n}.png"),
        ("{place}/{n}.png", "{place}.json", "{n}.png"),
        ("images/{place}/{n}.png", "annotations/{n}.json", "{place}/{n}.png"),
        ("images/{place}/{n}.png", "annotations/{n}.json", "data/{place}/{n}.png"),
        ("{place}/images/{n}.png", "{place}/annotations/default.json", "{n}.png"),
    ],
)
def test_images_of_one_name_have_their_own_annotations(tmp_path, images, annotations, listed):
    scenes = batches(tmp_path / "data", images, annotations, listed)
    dataset = prepared(tmp_path / "data")
    check(dataset, scenes)
    assert dataset.counts == {"train": 4, "val": 4}


def test_annotations_that_may_be_those_of_several_images_are_of_none(tmp_path):
    layout = "images/{place}/{n}.png", "annotations/{n}.json"
    batches(tmp_path / "data", *layout, "{n}.png")
    with pytest.raises(DataError, match=r"8 of 8 samples .* may be those of another image"):
        prepared(tmp_path / "data")


def test_an_image_without_annotations_does_not_take_those_of_its_namesake(tmp_path):
    scenes = batches(
        tmp_path / "data", "images/{place}/{n}.png", "annotations/{n}.json", "{place}/{n}.png"
    )
    card = new_card(tmp_path / "data", "mine")
    (tmp_path / "data" / "annotations" / "1.json").unlink()
    put(tmp_path / "mine.yaml", card)
    dataset = annotated.prepared_by(tmp_path / "mine.yaml", tmp_path / "data")
    check(dataset, {path: one for path, one in scenes.items() if path.parent.name == "train"})


def test_copies_of_the_images_do_not_make_the_annotations_unclear(tmp_path):
    scenes = batches(tmp_path / "data", "{place}/{n}.png", "{place}.json", "{n}.png")
    for path in scenes:
        copy = tmp_path / "data" / "old" / path.relative_to(tmp_path / "data")
        put(copy, path.read_bytes())
    check(prepared(tmp_path / "data"), scenes)


# Label images

COLORS = np.array([(0, 0, 0), (255, 0, 0), (128, 128, 128), (0, 0, 255), (90, 60, 0)], np.uint8)


def masks(folder: Path, write) -> list[np.ndarray]:
    """Write images, and masks as `write` makes them of the number of the image and its classes."""
    drawn = [scene(number).ids.clip(0) for number in range(5)]
    for number, ids in enumerate(drawn):
        put(folder / "images" / f"{number}.png", image_bytes(scene(number).image))
        write(number, ids).save(folder / "images" / f"{number}_mask.png")
    return drawn


def check_colors(folder: Path, drawn: list[np.ndarray]) -> None:
    dataset = prepared(folder)
    palette = np.array([*dataset.label_space.classes.values()])
    assert len(dataset.samples) == len(drawn)
    for sample, ids in zip(dataset.samples, drawn, strict=True):
        assert np.array_equal(palette[read_label(sample.label)], COLORS[ids])


def test_palettes_that_differ_between_masks_are_colours(tmp_path):
    def write(number, ids):
        order = np.random.default_rng(number).permutation(len(COLORS))
        mask = Image.fromarray(order.argsort()[ids].astype(np.uint8))
        mask.putpalette(COLORS[order].ravel().tolist())
        return mask

    check_colors(tmp_path / "data", masks(tmp_path / "data", write))


def test_masks_of_grey_and_red_next_to_others_are_colours(tmp_path):
    drawn = []

    def write(number, ids):
        drawn.append(ids if number == 3 else np.minimum(ids, 1 + number % 2))
        return Image.fromarray(COLORS[drawn[-1]])

    masks(tmp_path / "data", write)
    check_colors(tmp_path / "data", drawn)


def test_the_other_image_of_a_stereo_camera_is_no_image_of_a_label(tmp_path):
    folder = tmp_path / "data" / "images"
    masks(tmp_path / "data", lambda _, ids: Image.fromarray(ids.astype(np.uint8)))
    (tmp_path / "data" / "labels").mkdir()
    for number in range(5):
        put(folder / f"{number}_R.png", image_bytes(scene(9 + number).image))
        (folder / f"{number}.png").rename(folder / f"{number}_L.png")
        labels = tmp_path / "data" / "labels"
        (folder / f"{number}_mask.png").rename(labels / f"{number}_L.png")
    assert {s.image.name[1:] for s in prepared(tmp_path / "data").samples} == {"_L.png"}


def test_changed_copies_that_lie_deeper_are_not_taken_for_the_images(tmp_path):
    masks(tmp_path / "data", lambda _, ids: Image.fromarray(ids.astype(np.uint8)))
    for number in range(5):
        copy = tmp_path / "data" / "blurred" / "images" / f"{number}.png"
        put(copy, image_bytes(scene(number).image // 2))
    dataset = prepared(tmp_path / "data")
    assert {s.image.parent for s in dataset.samples} == {tmp_path / "data" / "images"}
    assert [d["rule"] for d in dataset.summary["excluded"]] == ["double"] * 5


def test_unpadded_numbers_are_held_out_in_their_order(tmp_path):
    for number in range(15):
        put(tmp_path / "data" / "images" / f"{number}.png", image_bytes(scene(number).image))
        mask = image_bytes((scene(number).ids + 1).astype(np.uint8))
        put(tmp_path / "data" / "masks" / f"{number}.png", mask)
    held_out = {
        sample.id for sample in prepared(tmp_path / "data").samples if sample.split == "val"
    }
    assert held_out == {"12", "13", "14"}


# Texts and tables


def test_texts_of_windows_are_read(tmp_path):
    annotated.yolo(tmp_path / "data")
    for text in [*(tmp_path / "data").rglob("*.txt"), tmp_path / "data" / "data.yaml"]:
        text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes().replace(b"\n", b"\r\n"))
    dataset = prepared(tmp_path / "data")
    assert len(dataset.samples) == 10 and dataset.label_space.names == NAMES


def test_lists_next_to_texts_of_yolo_are_no_lonely_labels(tmp_path):
    annotated.yolo(tmp_path / "data")
    for name in ("classes", "train", "Val", "c_999"):
        put(tmp_path / "data" / "labels" / "campus" / f"{name}.txt", "\n".join(NAMES))
    (excluded,) = prepared(tmp_path / "data").summary["excluded"]
    assert excluded["file"].endswith("c_999.txt")


def test_names_of_classes_that_cannot_be_read_are_not_left_away(tmp_path):
    annotated.yolo(tmp_path / "data")
    (tmp_path / "data" / "data.yaml").unlink()
    put(tmp_path / "data" / "classes.txt", "Straße\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes.txt cannot be read: it is not UTF-8"):
        new_card(tmp_path / "data", "mine")


def test_names_may_be_numbers(tmp_path):
    annotated.yolo(tmp_path / "data")
    put(tmp_path / "data" / "data.yaml", "names: [7, 8, 9, 10, 11]")
    assert prepared(tmp_path / "data").label_space.names == ("7", "8", "9", "10", "11")


def test_the_split_of_a_parquet_file_may_end_with_any_separator(tmp_path):
    annotated.parquet(tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.parquet"):
        path.rename(path.with_name(path.name.replace("-0", "_0", 1)))
    assert prepared(tmp_path / "data").counts == {"train": 8, "val": 2}
    assert read_card(tmp_path / "mine.yaml").layouts[0].split == "{split}"
