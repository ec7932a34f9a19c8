"""How an image is shown to the network: whole or in windows, at which scales, flipped or not.

The original has three protocols (docs/eval.md); which of them made the paper's tables is not known,
so every figure must say which made it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Protocol:
    """A way of predicting one image.

    Attributes:
        crop: Side of the square windows in pixels; None shows the whole image at once.
        overlap: Share of a window that its neighbour sees again.
        scales: Factors by which the image, and with it the crop, is resized before.
        flip: Also predict the mirrored image.
        fuse: What is averaged over windows, scales and flips.
        resample: How the image is resized.
        count: What a sum over windows is divided by: "windows", how many see a pixel; "original",
            what the original counts instead (`window_counts`), so that its views weigh unequally.
    """

    crop: int | None = None
    overlap: float = 1 / 3
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fuse: Literal["logits", "probabilities"] = "logits"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    count: Literal["windows", "original"] = "windows"

    def describe(self) -> str:
        """Return the protocol in words, for reports."""
        view = "whole image" if self.crop is None else f"sliding {self.crop}x{self.crop}"
        if self.crop is not None:
            view += f" (stride {window_stride(self.crop, self.overlap)})"
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        flip = "with flip" if self.flip else "no flip"
        slip = ", windows counted as the original does" if self.count == "original" else ""
        return f"{view}, scale {scales}, {flip}, mean of {self.fuse}{slip}"


PROTOCOLS: dict[str, Protocol] = {
    "paper-train": Protocol(),
    "paper-eval": Protocol(crop=768, flip=True, count="original"),
    "paper-pool": Protocol(flip=True, fuse="probabilities", resample="bicubic"),
}
"""The original's: during training, sliding, and pooling (which it also ran at several scales)."""


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
    places: Sequence[tuple[slice, slice]], shape: tuple[int, ...], count: str
) -> Tensor:
    """Return by what a sum of scores over windows is divided.

    Args:
        places: Rows and columns of the windows.
        shape: (K, H, W) of the sum.
        count: "windows" for how often each pixel is seen. "original" for the original's slip of an
            index: it counts windows by rows among the classes and by columns among the rows. That
            is the same for all columns, and nearly always for all classes.

    Returns:
        (K, H, W), at least 1.
    """
    times = torch.zeros(shape)
    for rows, columns in places:
        if count == "original":
            times[rows, columns] += 1
        else:
            times[:, rows, columns] += 1
    return times.clamp(min=1)
