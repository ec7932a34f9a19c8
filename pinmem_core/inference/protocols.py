"""Inference protocols: windows, scales and flips with which an image is predicted.

The original implementation has three (docs/eval.md). It is not known which of them the paper's
tables use, so every reported metric must name its protocol.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError

from pinmem_core.errors import CheckpointError, ConfigError, unknown_name

SIDE = 1536
"""Side of the square that the original cuts from Mapillary images, in pixels."""


def mapillary_original(
    image: NDArray[np.uint8], label: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the centred square of a Mapillary image and its label that the original scores.

    Image (bicubic) and label (nearest) are resized to a height of 1536 pixels and cropped left and
    right. Narrower ones are padded: the image with black, the label with trainId 0 (road).

    Args:
        image: RGB image, (H, W, 3).
        label: TrainIds, (H, W).

    Returns:
        Image, (1536, 1536, 3), and label, (1536, 1536).
    """
    size = max(1, int(label.shape[1] * SIDE / label.shape[0])), SIDE
    shown = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    truth = Image.fromarray(label).resize(size, Image.Resampling.NEAREST)
    return _centred(shown), _centred(truth)


def _centred(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the central square of a picture, padded with zeros where it is too narrow."""
    square = Image.new(picture.mode, (SIDE, SIDE))
    square.paste(picture, ((SIDE - picture.width) // 2, 0))
    return np.asarray(square)


def half_size(
    image: NDArray[np.uint8], label: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image (bicubic) and its label (nearest) at half their size."""
    size = max(1, label.shape[1] // 2), max(1, label.shape[0] // 2)
    shown = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    truth = Image.fromarray(label).resize(size, Image.Resampling.NEAREST)
    return np.asarray(shown), np.asarray(truth)


def window_stride(crop: int, overlap: float) -> int:
    """Return the stride between two windows in pixels."""
    return math.ceil(crop * (1 - overlap))


_Pixels = Annotated[int, Field(ge=1)]
_Scale = Annotated[float, Field(gt=0, le=16)]


@dataclass(frozen=True)
class Protocol:
    """An inference protocol.

    Attributes:
        crop: Side of the square windows in pixels. None predicts the whole image at once;
            "largest" does so if it fits into memory, and else uses the largest windows that do.
        overlap: Fraction of a window that overlaps with its neighbour, in [0, 1).
        scales: Factors, in (0, 16], by which the image and the crop are resized before prediction.
        longest: Upper limit of the longer side of an image in pixels; larger images are shrunk.
            None keeps all sizes.
        flip: Whether to predict the mirrored image, too.
        fuse: Quantity that is averaged over windows, scales and flips.
        resample: Interpolation for resizing the image.
        count: Divisor of the sum over windows: "windows" for the number of windows that cover a
            pixel; "original" for the count of the original implementation (`window_counts`), which
            weights windows unequally.
        view: What is evaluated: the image, the square that the original uses for Mapillary, or the
            image at half its size. Evaluation applies it by `view_of`; a predictor ignores it.
    """

    crop: _Pixels | Literal["largest"] | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] = 1 / 3
    scales: Annotated[tuple[_Scale, ...], Field(min_length=1)] = (1.0,)
    longest: _Pixels | None = None
    flip: bool = False
    fuse: Literal["logits", "probabilities"] = "logits"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    count: Literal["windows", "original"] = "windows"
    view: Literal["native", "mapillary-original", "half"] = "native"

    def describe(self) -> str:
        """Return a description of the protocol for reports."""
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        scales += f" ({self.resample})" if self.scales != (1,) else ""
        flip = "with flip" if self.flip else "no flip"
        slip = ", windows counted as the original does" if self.count == "original" else ""
        seen = f"{self._windows_in_words()}, scale {scales}, {flip}, mean of {self.fuse}{slip}"
        if self.longest:
            seen += f", larger images shrunk to a longer side of {self.longest}"
        if self.view == "half":
            return f"{seen}; images and labels at half their size"
        if self.view == "native":
            return seen
        return f"{seen}; of an image {SIDE} high, its centre {SIDE}x{SIDE}, padding scored as road"

    def _windows_in_words(self) -> str:
        if self.crop is None:
            return "whole image"
        if self.crop == "largest":
            share = Fraction(self.overlap).limit_denominator(100)
            return f"whole image, or the largest windows that fit into memory (overlap {share})"
        stride = window_stride(self.crop, self.overlap)
        return f"sliding {self.crop}x{self.crop} (stride {stride})"

    def scales_of(self, height: int, width: int) -> tuple[float, ...]:
        """Return the resize factors for an image of the given size."""
        shrunk = min(1.0, self.longest / max(height, width)) if self.longest else 1.0
        return tuple(scale * shrunk for scale in self.scales)

    def view_of(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the image to predict and the label to score it with.

        Args:
            image: RGB image at its native size, (H, W, 3).
            label: TrainIds, (H, W).
        """
        if self.view == "half":
            return half_size(image, label)
        return (image, label) if self.view == "native" else mapillary_original(image, label)


PROTOCOLS: dict[str, Protocol] = {
    "fast": Protocol(crop="largest", overlap=1 / 8),
    "photo": Protocol(crop="largest", overlap=1 / 8, longest=640),
    "paper-train": Protocol(),
    "paper-mapillary": Protocol(view="mapillary-original"),
    "paper-eval": Protocol(crop=768, flip=True, count="original"),
    "paper-pool": Protocol(flip=True, fuse="probabilities", resample="bicubic"),
    "rein-cityscapes": Protocol(crop=1024, overlap=171 / 512, scales=(0.5,)),
    "rein-mapillary": Protocol(crop=512, overlap=171 / 512, view="half"),
    "soma": Protocol(crop=512, overlap=171 / 512),
}
"""Protocols by name.

`fast` is the fastest. `photo` also shrinks photos of any camera to about the size of small training
images. `rein-cityscapes` (windows of 512 pixels of an image of 1024x512) and `rein-mapillary` (with
labels of the map `rein`) are Rein's; `soma` slides the same windows over the image at its own size,
as SoMA does for Cityscapes and both do for BDD100K. The others are the original's: `paper-train`
during training, `paper-mapillary` for Mapillary, `paper-eval` with sliding windows, `paper-pool`
with pooling (the original also ran it at several scales).
"""


def get_protocol(text: str) -> Protocol:
    """Parse a protocol.

    Args:
        text: Name, optionally followed by changed fields of `Protocol`: `+field=value`, or `+field`
            to switch it on. Examples: `paper-pool`, `paper-train+flip`,
            `fast+scales=0.5,1+crop=512`.

    Raises:
        ConfigError: The name or a field does not exist, or a value is not allowed.
    """
    name, *changes = text.split("+")
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    fields = asdict(PROTOCOLS[name])
    for change in changes:
        field, equals, value = change.partition("=")
        if field not in fields:
            raise unknown_name("field of a protocol", field, fields)
        usual = getattr(PROTOCOLS[name], field)
        fields[field] = _value(value, usual) if equals else _on(field, usual)
    try:
        return TypeAdapter(Protocol).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise ConfigError(f"protocol '{text}': {first['loc'][0]}: {reason}.") from None


def name_of(protocol: Protocol) -> str:
    """Return the name of a protocol, or the description of one with changes."""
    names = (name for name, known in PROTOCOLS.items() if known == protocol)
    return next(names, protocol.describe())


def protocol_of(config: Mapping[str, Any], otherwise: str) -> str:
    """Return the name of a checkpoint's protocol.

    Args:
        config: Content of the checkpoint's `config.json`; its optional `protocol` is a string for
            `get_protocol`.
        otherwise: Name for a checkpoint without a protocol.

    Raises:
        CheckpointError: This version of pinmem does not know the protocol.
    """
    name = config.get("protocol", otherwise)
    try:
        if not isinstance(name, str):
            raise ConfigError("the name is not a text.")
        get_protocol(name)
    except ConfigError as error:
        raise CheckpointError(
            f"the checkpoint asks for the protocol {name!r}: {error.message}",
            "Name another one with --protocol.",
        ) from None
    return name


def _value(text: str, now: object) -> object:
    """Convert a field's text to the type of its current value."""
    if isinstance(now, tuple):
        return tuple(text.split(","))
    return None if text == "none" else text


def _on(field: str, now: object) -> bool:
    if not isinstance(now, bool):
        raise ConfigError(f"a protocol's '{field}' needs a value.", f"Write {field}=VALUE.")
    return True
