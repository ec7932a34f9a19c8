"""Own data in odd variants: every label is right, or is left out with the reason."""

from pathlib import Path

import annotated
import numpy as np
import pytest
from annotated import NAMES, Scene, image_bytes, prepared, put, scene

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
