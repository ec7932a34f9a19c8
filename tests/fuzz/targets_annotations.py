"""Annotation files of labelling tools: labelme, COCO, YOLO, and parquet."""

import json
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random

import annotated
import numpy as np

from fuzz.cases import ACCEPTED, INTACT_SHARE, RIGHT, Case, Target, require
from fuzz.mutators import mutated_bytes, mutated_json
from pinmem_core.data.card import ParquetColumns
from pinmem_core.data.encodings import ENCODINGS
from pinmem_core.data.label_maps import LabelMap
from pinmem_core.data.parquet import unpack_parquet

_OUTSIDE = 255
_COLUMNS = ParquetColumns(image="image", label="mask")


@cache
def _label_map() -> LabelMap:
    names = {**dict(enumerate(annotated.NAMES)), _OUTSIDE: "unlabeled"}
    return LabelMap.from_ids(dict.fromkeys(names, 255), names=names)


def _case(rng: Random, name: str, content: object, one: annotated.Scene) -> Case:
    """Return an image and its annotation file, which may be damaged."""
    is_text = isinstance(content, str)
    data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    intact = rng.random() < INTACT_SHARE
    if not intact:
        data = mutated_bytes(rng, data) if is_text else mutated_json(rng, content)
    ids = np.where(one.ids < 0, _OUTSIDE, one.ids)
    files = {name: data, "a.png": annotated.image_bytes(one.image)}
    return Case(files, intact=intact, known=ids)


def _make_labelme(rng: Random) -> Case:
    one = annotated.scene(rng.randrange(100))
    return _case(rng, "labelme.json", annotated.labelme_of(one), one)


def _make_coco(rng: Random) -> Case:
    one = annotated.scene(rng.randrange(100))
    content = annotated.coco_of({"a": one}, ".png", rle=rng.random() < 0.5)
    segments = {}
    if rng.random() < 0.3:
        png, info = annotated.segments_of(one, 1)
        segments["coco/a.png"] = png
        content["annotations"] = [{"image_id": 1, "file_name": "a.png", "segments_info": info}]
    case = _case(rng, "coco.json", content, one)
    return Case({**case.files, **segments}, intact=case.intact, known=case.known)


def _make_yolo(rng: Random) -> Case:
    one = annotated.scene(rng.randrange(100))
    return _case(rng, "yolo.txt", annotated.yolo_of(one), one)


def _read(case: Case, folder: Path) -> str:
    name = next(iter(case.files))
    decode = ENCODINGS.get(name.partition(".")[0])
    ids = decode(folder / name, _label_map(), folder / "a.png")
    require(ids.shape == case.known.shape, "the label is not as large as the image")
    require(np.isin(ids, [*_label_map().entries]).all(), "the label holds other values")
    if not case.intact:
        return ACCEPTED
    require(np.array_equal(ids, case.known), "a pixel has another class")
    return RIGHT


def _make_parquet(rng: Random) -> Case:
    import pyarrow as pa
    import pyarrow.parquet as pq

    one = annotated.scene(rng.randrange(100))
    table = {"image": [annotated.image_bytes(one.image)], "mask": [b"mask"]}
    data = BytesIO()
    pq.write_table(pa.table(table), data)
    intact = rng.random() < INTACT_SHARE
    content = data.getvalue() if intact else mutated_bytes(rng, data.getvalue())
    return Case({"a.parquet": content}, intact=intact, known=table)


def _read_parquet(case: Case, folder: Path) -> str:
    unpacked = unpack_parquet(folder / "a.parquet", folder, _COLUMNS)
    if not case.intact:
        return ACCEPTED
    for kind, column in (("images", "image"), ("labels", "mask")):
        (file,) = (unpacked / kind).iterdir()
        require(file.read_bytes() == case.known[column][0], "a file differs from its row")
    return RIGHT


TARGETS = (
    Target("labelme JSON", _make_labelme, _read),
    Target("COCO JSON", _make_coco, _read, 8),
    Target("YOLO text", _make_yolo, _read),
    Target("parquet", _make_parquet, _read_parquet),
)
