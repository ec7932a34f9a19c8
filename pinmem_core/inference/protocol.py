"""How an image is shown to the network: whole or in windows, at which scales, flipped or not.

The original has three protocols (method, section 5); which of them made the paper's tables is not
known, so every figure must say which made it.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Protocol:
    """A way of predicting one image.

    Attributes:
        crop: Side of the square windows in pixels; None shows the whole image at once.
        overlap: Share of a window that its neighbour sees again.
        scales: Factors by which the image is resized before.
        flip: Also predict the mirrored image.
        fuse: What is averaged over windows, scales and flips.
    """

    crop: int | None = None
    overlap: float = 1 / 3
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fuse: Literal["logits", "probabilities"] = "logits"

    def describe(self) -> str:
        """Return the protocol in words, for reports."""
        view = "whole image" if self.crop is None else f"sliding {self.crop}x{self.crop}"
        if self.crop is not None:
            view += f" (stride {window_stride(self.crop, self.overlap)})"
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        flip = "with flip" if self.flip else "no flip"
        return f"{view}, scale {scales}, {flip}, mean of {self.fuse}"


PROTOCOLS: dict[str, Protocol] = {
    "paper-train": Protocol(),
    "paper-eval": Protocol(crop=768, flip=True),
    "paper-pool": Protocol(flip=True, fuse="probabilities"),
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
