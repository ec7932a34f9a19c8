"""Mistakes that people make with the files of published datasets."""

from pathlib import Path

import numpy as np
import pytest
from published import grey, picture

from pinmem_core.data.catalog import get_card
from pinmem_core.data.prepare import prepare
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
