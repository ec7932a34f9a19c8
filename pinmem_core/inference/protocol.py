"""How an image is shown to the network: whole or in windows, at which scales, flipped or not."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pinmem_core.inference.views import SIDE, mapillary_original

_Pixels = Annotated[int, Field(ge=1)]
_Scale = Annotated[float, Field(gt=0, le=16)]


@dataclass(frozen=True)
class Protocol:
    """A way of predicting one image.

    Attributes:
        crop: Side of the square windows in pixels; None shows the whole image at once; "largest"
            shows it whole, too, or else in the largest windows that memory allows.
        overlap: Share of a window that its neighbour sees again.
        scales: Factors by which the image, and with it the crop, is resized before.
        longest: An image with a longer side than this, in pixels, is seen shrunk to it; None shows
            all at their own size.
        flip: Also predict the mirrored image.
        fuse: What is averaged over windows, scales and flips.
        resample: How the image is resized.
        count: What a sum over windows is divided by: "windows", how many see a pixel; "original",
            what the original counts instead (`window_counts`), so that its views weigh unequally.
        view: What is shown and scored of an image: all of it, at its own size, or what the original
            shows of Mapillary's. An evaluation asks `view_of`; a predictor takes what it is given.
    """

    crop: _Pixels | Literal["largest"] | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] = 1 / 3
    scales: Annotated[tuple[_Scale, ...], Field(min_length=1)] = (1.0,)
    longest: _Pixels | None = None
    flip: bool = False
    fuse: Literal["logits", "probabilities"] = "logits"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    count: Literal["windows", "original"] = "windows"
    view: Literal["native", "mapillary-original"] = "native"

    def describe(self) -> str:
        """Return the protocol in words, for reports."""
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        scales += f" ({self.resample})" if self.scales != (1,) else ""
        flip = "with flip" if self.flip else "no flip"
        slip = ", windows counted as the original does" if self.count == "original" else ""
        seen = f"{self._windows_in_words()}, scale {scales}, {flip}, mean of {self.fuse}{slip}"
        if self.longest:
            seen += f", larger images shrunk to a longer side of {self.longest}"
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
        """Return the factors by which an image of a size is resized."""
        shrunk = min(1.0, self.longest / max(height, width)) if self.longest else 1.0
        return tuple(scale * shrunk for scale in self.scales)

    def view_of(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the image (H, W, 3) that is to be predicted and the label (H, W) to score it by.

        Args:
            image: RGB, at its own size.
            label: trainIds, of the same size.
        """
        return (image, label) if self.view == "native" else mapillary_original(image, label)


def window_stride(crop: int, overlap: float) -> int:
    """Return the step between two windows."""
    return math.ceil(crop * (1 - overlap))


def windows(height: int, width: int, crop: int, overlap: float) -> list[tuple[slice, slice]]:
    """Return rows and columns of every window; the last ones are moved inside the border."""
    stride = window_stride(crop, overlap)

    def starts(length: int) -> list[int]:
        count = math.ceil(max(length - crop, 0) / stride) + 1
        return [max(0, min(i * stride, length - crop)) for i in range(count)]

    return [
        (slice(top, min(top + crop, height)), slice(left, min(left + crop, width)))
        for left in starts(width)
        for top in starts(height)
    ]


def window_counts(
    places: Sequence[tuple[slice, slice]],
    shape: tuple[int, ...],
    count: str,
    band: slice = slice(None),
) -> Tensor:
    """Return by what a sum of scores over windows is divided.

    Args:
        places: Rows and columns of the windows, each row of windows with the same columns.
        shape: (K, H, W) of the sum.
        count: "windows" for how often each pixel is seen. "original" for the original's slip of an
            index: it counts windows by rows among the classes and by columns among the rows. That
            is the same for all columns, and nearly always for all classes.
        band: Rows of the image that are wanted.

    Returns:
        (K, h, W) for the h rows of `band`, at least 1; the memory of equal values is shared.
    """
    classes, height, width = shape
    rows, columns = ([place[axis] for place in places] for axis in (0, 1))
    if count == "original":
        by_class, by_row = _covering(rows, classes), _covering(columns, height)[band]
        times = (by_class[:, None] * by_row)[:, :, None]
    else:
        times = (_covering(rows, height)[band, None] * _covering(columns, width))[None]
    return times.clamp(min=1).expand(classes, -1, width)


def _covering(slices: Iterable[slice], length: int) -> Tensor:
    """Return how many of the different `slices` hold each of `length` places."""
    times = torch.zeros(length)
    for start, stop in {(s.start, s.stop) for s in slices}:
        times[start:stop] += 1
    return times
