"""Label files: PNG of every depth and colour type, PGM, TIFF, BMP, GIF, WebP, JPEG, polygons."""

import json
import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odd_images import png
from PIL import Image

from fuzz.cases import ACCEPTED, INTACT_SHARE, RIGHT, Case, Target, require
from fuzz.mutators import mutated_bytes, mutated_json
from fuzz.readers import DamageError, json_of_accepted, read_png
from pinmem_core.data.encodings import ENCODINGS
from pinmem_core.data.label_maps import LabelMap
from pinmem_core.images import read_image
from pinmem_core.label_files import read_label

_DEPTHS = ((0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (3, 1), (3, 2), (3, 4), (3, 8))
_KINDS = (*_DEPTHS, (2, 16), (4, 8), (6, 8), (4, 16), (6, 16))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _png(rng: Random) -> bytes:
    kind, depth = rng.choice(_KINDS)
    shape = (rng.randint(1, 12), rng.randint(1, 20), _CHANNELS[kind])
    most = min(2**depth, rng.choice((20, 256, 65536)))
    samples = np.random.default_rng(rng.randrange(2**32)).integers(0, most, shape, np.uint16)
    if kind in (4, 6) and rng.random() < 0.8:
        samples[..., -1] = 2**depth - 1
    chunks = [(b"PLTE", rng.randbytes(3 << depth))] if kind == 3 else []
    if depth <= 8:
        samples = samples.astype(np.uint8)
    samples = samples[..., 0] if shape[2] == 1 else samples
    return png(samples, depth, *chunks, kind=kind, interlaced=rng.random() < 0.3)


def _with_chunks_changed(rng: Random, data: bytes) -> bytes:
    """Change chunks of a PNG and mend their checksums, so that damage gets past them."""
    chunks, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = rng.randrange(len(chunks))
    kind, body = chunks[place]
    match rng.randrange(7):
        case 0:
            del chunks[place]
        case 1:
            chunks.insert(rng.randrange(len(chunks)), (kind, body))
        case 2:
            other = rng.randrange(len(chunks))
            chunks[place], chunks[other] = chunks[other], chunks[place]
        case 3:
            half = len(body) // 2
            chunks[place : place + 1] = [(kind, body[:half]), (kind, body[half:])]
        case 4:
            extra = rng.choice((b"tRNS", b"eXIf", b"gAMA", b"acTL", b"zzZz", b"IHDR", b"tEXt"))
            chunks.insert(rng.randrange(1, len(chunks)), (extra, rng.randbytes(rng.randint(0, 13))))
        case 5 if kind == b"IDAT":
            raw = zlib.decompress(body)
            raw = rng.choice((raw[:-1], raw[: len(raw) // 2], raw + b"\0", mutated_bytes(rng, raw)))
            chunks[place] = (kind, zlib.compress(raw))
        case _:
            chunks[place] = (kind, mutated_bytes(rng, body))
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:8] + b"".join(parts)


def _make_png(rng: Random) -> Case:
    data = _png(rng)
    if rng.random() < INTACT_SHARE:
        found = read_png(data)
        plain = found.depth == 8 or found.kind in (0, 3)
        opaque = found.kind < 4 or bool((found.samples[..., -1] == 255).all())
        return Case({"a.png": data}, plain and opaque)
    mutate = _with_chunks_changed if rng.random() < 0.5 else mutated_bytes
    return Case({"a.png": mutate(rng, data)})


def _read_png(case: Case, folder: Path) -> str:
    path = folder / "a.png"
    pixels = read_label(path)
    try:
        stored = read_png(case.files["a.png"])
    except DamageError as error:
        require(not case.files["a.png"].startswith(b"\x89PNG"), f"damage was missed: {error}")
        return ACCEPTED  # what is no PNG any more, whatever its name
    if b"eXIf" in stored.chunks:
        return ACCEPTED
    samples = stored.samples
    if stored.kind in (4, 6):
        require((samples[..., -1] == 2**stored.depth - 1).all(), "a pixel is not opaque")
        samples = samples[..., :-1]
        samples = samples[..., 0] if samples.shape[-1] == 1 else samples
    require(pixels.shape == samples.shape, f"{pixels.shape} instead of {samples.shape}")
    require(np.array_equal(pixels, samples), "the values are not those that are stored")
    if pixels.ndim == 2:
        ids = ENCODINGS.get("ids")(path, LabelMap.from_ids({0: 0}))
        require(np.array_equal(ids, samples), "the ids are not those that are stored")
    return RIGHT


def _make_pgm(rng: Random) -> Case:
    height, width = rng.randint(1, 9), rng.randint(1, 9)
    largest = rng.choice((1, 2, 5, 18, 33, 254, 255, 256, 1000, 65534, 65535))
    values = [rng.randint(0, largest) for _ in range(height * width)]
    if rng.random() < 0.5:
        head, body = "P2", " ".join(map(str, values)).encode()
    else:
        size = 1 if largest < 256 else 2
        head, body = "P5", b"".join(value.to_bytes(size, "big") for value in values)
    data = f"{head}\n# a comment\n{width} {height}\n{largest}\n".encode() + body
    if rng.random() < INTACT_SHARE:
        return Case({"a.pgm": data}, intact=True)
    return Case({"a.pgm": mutated_bytes(rng, data)})


def _pgm(data: bytes) -> NDArray[Any] | None:
    """Return the values of a PGM; None where it is none, or not as this short reader knows it."""
    head, *lines = data.split(b"\n", 4)
    if head not in (b"P2", b"P5") or len(lines) < 4 or lines[0] != b"# a comment":
        return None
    if head == b"P2" and b"#" in lines[3]:
        return None
    try:
        if any(not token.isdigit() for line in lines[1:3] for token in line.split(b" ")):
            return None
        (width, height), largest = map(int, lines[1].split(b" ")), int(lines[2])
    except ValueError:
        return None
    if head == b"P2":
        values = [int(token) if token.isdigit() else -1 for token in lines[3].split()]
        found = np.array(values[: width * height], np.int64)
    else:
        kind = np.dtype(np.uint8 if largest < 256 else ">u2")
        end = len(lines[3]) // kind.itemsize * kind.itemsize
        found = np.frombuffer(lines[3][:end], kind)[: width * height].astype(np.int64)
    if len(found) < width * height or (found > largest).any() or (found < 0).any():
        raise DamageError("values")
    return found.reshape(height, width)


def _read_pgm(case: Case, folder: Path) -> str:
    pixels = read_label(folder / "a.pgm")
    try:
        stored = _pgm(case.files["a.pgm"])
    except DamageError:
        stored = np.empty(0)
    if stored is None:
        return ACCEPTED
    require(pixels.shape == stored.shape, f"{pixels.shape} instead of {stored.shape}")
    require(np.array_equal(pixels, stored), "the values are not those that are stored")
    return RIGHT


_LOSSLESS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("BMP", "bmp", {}),
    ("GIF", "gif", {"optimize": False}),
    ("TIFF", "tif", {}),
    ("TIFF", "tif", {"compression": "tiff_lzw"}),
    ("TIFF", "tif", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "tif", {"compression": "packbits"}),
    ("WEBP", "webp", {"lossless": True}),
)
_LOSSY: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", "jpg", {"quality": 100}),
    ("JPEG", "png", {"progressive": True}),
    ("WEBP", "webp", {"quality": 100}),
    ("JPEG2000", "jp2", {}),
    ("TIFF", "tif", {"compression": "jpeg"}),
)


def _saved(ids: NDArray[np.uint8], form: str, options: dict[str, Any]) -> bytes:
    file = BytesIO()
    triple = form == "WEBP" or options.get("compression") == "jpeg"
    Image.fromarray(np.dstack([ids] * 3) if triple else ids).save(file, form, **options)
    return file.getvalue()


def _ids(rng: Random) -> NDArray[np.uint8]:
    shape = (rng.randint(1, 12), rng.randint(1, 20))
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 19, shape, np.uint8)


def _make_lossless(rng: Random) -> Case:
    ids = _ids(rng)
    form, suffix, options = rng.choice(_LOSSLESS)
    data = _saved(ids, form, options)
    if rng.random() < INTACT_SHARE:
        return Case({f"a.{suffix}": data}, intact=True, known=ids)
    return Case({f"a.{suffix}": mutated_bytes(rng, data)})


def _read_lossless(case: Case, folder: Path) -> str:
    name = next(iter(case.files))
    label = read_label(folder / name)
    if not case.intact:
        require(label.ndim in (2, 3) and label.dtype in (np.uint8, np.uint16), "no label")
        return ACCEPTED
    label = label if label.ndim == 2 else label[..., 0]
    require(np.array_equal(label, case.known), "the values are not those that are stored")
    return RIGHT


def _make_lossy(rng: Random) -> Case:
    form, suffix, options = rng.choice(_LOSSY)
    data = _saved(_ids(rng), form, options)
    return Case({f"a.{suffix}": data if rng.random() < 0.2 else mutated_bytes(rng, data)})


def _read_lossy(case: Case, folder: Path) -> str:
    name = next(iter(case.files))
    read_label(folder / name)
    read_image(folder / name)  # what damage has made of it is an image of some lossless kind
    data = case.files[name]
    require(not data.startswith(b"\xff\xd8"), "a lossy file was taken for ids")
    require(b"VP8 " not in data[:40], "a lossy file was taken for ids")
    return ACCEPTED


_NAMES = {"unlabeled": 255, "road": 7, "sky": 23, "car": 26}


@cache
def _label_map() -> LabelMap:
    names = {value: name for name, value in _NAMES.items()}
    return LabelMap.from_ids({255: 255, 7: 0, 23: 10, 26: 13}, names=names)


def _make_polygons(rng: Random) -> Case:
    width, height = rng.randint(3, 40), rng.randint(3, 40)
    objects = []
    for _ in range(rng.randint(0, 5)):
        points = [
            [rng.randint(-3, width + 3), rng.randint(-3, height + 3)]
            for _ in range(rng.randint(3, 5))
        ]
        label = rng.choice(("road", "sky", "car", "cargroup", "unlabeled"))
        objects.append({"label": label, "polygon": points, "deleted": 0})
    scene = {"imgWidth": width, "imgHeight": height, "objects": objects}
    if rng.random() < INTACT_SHARE:
        return Case({"a.json": json.dumps(scene).encode()}, intact=True)
    return Case({"a.json": mutated_json(rng, scene)})


def _read_polygons(case: Case, folder: Path) -> str:
    found = ENCODINGS.get("polygons")(folder / "a.json", _label_map())
    scene = json_of_accepted(case.files["a.json"])
    height, width = scene["imgHeight"], scene["imgWidth"]
    require(found.shape == (height, width), f"{found.shape} instead of {(height, width)}")
    if height * width > 10_000:
        return ACCEPTED
    expected, near = np.full(found.shape, 255), np.zeros(found.shape, bool)
    y, x = np.mgrid[:height, :width].astype(float)
    for shape in scene["objects"]:
        if shape.get("deleted") or len(shape["polygon"]) < 3:
            continue
        points = np.array(shape["polygon"], float)
        inside = np.zeros(found.shape, bool)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            crosses = (y0 > y) != (y1 > y)
            slope = (x1 - x0) / (y1 - y0) if y1 != y0 else 0.0
            inside ^= crosses & (x < x0 + (y - y0) * slope)
            along = np.clip(
                ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0))
                / max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-9),
                *(0, 1),
            )
            distance = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
            near |= distance < 1.5
        name = shape["label"]
        expected[inside] = _NAMES[name if name in _NAMES else name.removesuffix("group")]
    require((found == expected)[~near].all(), "a pixel far from every edge has another class")
    return RIGHT


TARGETS = (
    Target("label PNG", _make_png, _read_png, 16),
    Target("label PGM", _make_pgm, _read_pgm),
    Target("label TIFF, BMP, GIF, WebP", _make_lossless, _read_lossless, 8),
    Target("label JPEG and other lossy files", _make_lossy, _read_lossy),
    Target("polygon JSON", _make_polygons, _read_polygons, 8),
)
