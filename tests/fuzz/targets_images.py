"""Images of every form that is read."""

from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from odd_images import Odd, odd_images
from PIL import Image

from fuzz.cases import ACCEPTED, INTACT_SHARE, RIGHT, Case, Target, WrongError, require
from fuzz.mutators import mutated_bytes
from fuzz.readers import DamageError, read_png, shown
from fuzz.targets_labels import _png, _with_chunks_changed
from pinmem_core.images import check_image, decode_image, image_size

_PLAIN = ("1", "L", "RGB", "P", "CMYK", "YCbCr")


@cache
def _seeds() -> Mapping[str, Odd]:
    return {name: odd for name, odd in odd_images().items() if odd.pixels is not None}


def _make_png(rng: Random) -> Case:
    data = _png(rng)
    if rng.random() < INTACT_SHARE:
        return Case({"a.png": data}, intact=True)
    mutate = _with_chunks_changed if rng.random() < 0.5 else mutated_bytes
    return Case({"a.png": mutate(rng, data)})


def _read_png(case: Case, folder: Path) -> str:
    path = folder / "a.png"
    picture = decode_image(path)
    _check_size(path, picture.pixels.shape)
    try:
        expected = shown(read_png(case.files["a.png"]))
    except DamageError as error:
        return _accepted_though(case, folder, str(error))
    if expected is None:
        return ACCEPTED
    require(picture.pixels.shape == expected.shape, f"{picture.pixels.shape}")
    difference = np.abs(picture.pixels.astype(int) - expected).max()
    require(difference <= 1, f"a value differs by {difference}")
    return RIGHT


def _accepted_though(case: Case, folder: Path, damage: str) -> str:
    """Check that `prepare` finds damage that leaves the pixels whole."""
    if not case.files["a.png"].startswith(b"\x89PNG"):
        return ACCEPTED
    try:
        check_image(folder / "a.png")
    except Exception:
        return ACCEPTED
    raise WrongError(f"damage was missed: {damage}")


def _check_size(path: Path, shape: tuple[int, ...]) -> None:
    width, height = image_size(path)
    require(shape == (height, width, 3), f"the size is {width}x{height}, the pixels {shape}")


def _make(rng: Random) -> Case:
    name = rng.choice([*_seeds()])
    odd = _seeds()[name]
    suffix = Path(name).suffix
    if rng.random() < INTACT_SHARE:
        return Case({f"a{suffix}": odd.content}, intact=True, known=(odd.pixels, odd.tolerance))
    others = [_seeds()[rng.choice([*_seeds()])].content]
    return Case({f"a{suffix}": mutated_bytes(rng, odd.content, others)})


def _read(case: Case, folder: Path) -> str:
    name = next(iter(case.files))
    pixels = decode_image(folder / name).pixels
    _check_size(folder / name, pixels.shape)
    if case.intact:
        known, tolerance = case.known
        require(pixels.shape == known.shape, f"{pixels.shape} instead of {known.shape}")
        require(np.abs(pixels.astype(int) - known).max() <= tolerance, "the pixels differ")
        return RIGHT
    with Image.open(BytesIO(case.files[name])) as image:
        if image.mode not in _PLAIN or image.has_transparency_data or image.format == "PNG":
            return ACCEPTED
        if image.getexif().get(0x0112, 1) != 1:
            return ACCEPTED
        expected = np.asarray(image.convert("RGB"))
    require(np.array_equal(pixels, expected), "the pixels are not those that Pillow reads")
    return RIGHT


TARGETS = (
    Target("image PNG", _make_png, _read_png, 8),
    Target("images of 9 forms", _make, _read, 16),
)
