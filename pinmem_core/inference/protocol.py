"""Inference protocols: windows, scales and flips with which an image is predicted."""

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

from pinmem_core.inference.mapillary_view import SIDE, mapillary_original

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
        view: Part of an image that is evaluated: all of it, or the square that the original uses
            for Mapillary. Evaluation applies it by `view_of`; a predictor ignores it.
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
        """Return a description of the protocol for reports."""
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
        return (image, label) if self.view == "native" else mapillary_original(image, label)


def window_stride(crop: int, overlap: float) -> int:
    """Return the stride between two windows in pixels."""
    return math.ceil(crop * (1 - overlap))


def windows(height: int, width: int, crop: int, overlap: float) -> list[tuple[slice, slice]]:
    """Return rows and columns of every window; the last windows are shifted inside the image."""
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
    """Return the divisors that turn a sum of scores over windows into a mean.

    Args:
        places: Rows and columns of the windows, each row of windows with the same columns.
        shape: Shape (K, H, W) of the sum.
        count: "windows" for the number of windows that cover each pixel. "original" for the
            indexing error of the original implementation: it counts windows by rows along the
            class axis and by columns along the row axis. The result is the same for all columns,
            and nearly always for all classes.
        band: Rows of the image to return.

    Returns:
        Divisors (K, h, W) for the h rows of `band`, at least 1, as an expanded view.
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
    """Return how many distinct `slices` cover each of `length` positions."""
    times = torch.zeros(length)
    for start, stop in {(s.start, s.stop) for s in slices}:
        times[start:stop] += 1
    return times
