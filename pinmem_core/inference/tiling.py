"""Predict an image window by window and yield its scores from top to bottom.

Shapes: V views (the image and its mirror image), K classes, image (H, W). Only the rows covered by
one row of windows are kept in memory.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinmem_core.inference.protocol import window_counts

Window = tuple[slice, slice]
"""Rows and columns of a window."""
Look = Callable[[NDArray[np.uint8]], Tensor]
"""Function from RGB windows (N, h, w, 3) to their scores (N, K, h, w)."""

STEP = 32
"""Step between window sides chosen by memory, in pixels. Sides are a multiple of it plus 1, so that
the corner-aligned coarse feature maps of a window have the same grid as those of the image."""
SMALLEST = 8 * STEP + 1
"""Smallest window side in pixels; it is used even if the memory does not suffice."""
_VALUES = 2**20
"""Scores per chunk; a chunk fits into a processor's cache."""


@dataclass(frozen=True)
class MemoryModel:
    """Memory that a prediction needs.

    Attributes:
        pixel: Bytes per pixel of a window, in the network.
        kept: Bytes per pixel of the image, in the unfinished scores of all views.
        views: Number of views of the image, V.
    """

    pixel: float
    kept: float
    views: int = 1

    def of(self, height: int, width: int, side: int) -> float:
        """Return the bytes that an image needs in square windows, one window at a time."""
        rows, columns = min(side, height), min(side, width)
        alone = self.views == 1 and (rows, columns) == (height, width)
        return self.pixel * rows * columns + (0 if alone else self.kept * rows * width)


def largest_crop(height: int, width: int, model: MemoryModel, memory: float) -> int:
    """Return the longer side of the image if it fits into `memory`, else the side of windows.

    Windows use half of the memory, because the masks of a large image need memory, too.
    """
    whole = max(height, width)
    if model.of(height, width, whole) <= memory:
        return whole
    sides = range(SMALLEST, whole, STEP)
    fitting = bisect_right(sides, memory / 2, key=lambda side: model.of(height, width, side))
    return min(whole, SMALLEST + STEP * max(0, fitting - 1))


def chunks(height: int, width: int, classes: int) -> Iterator[slice]:
    """Yield row ranges whose scores fit into a processor's cache."""
    rows = max(1, _VALUES // (width * classes))
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


@dataclass(frozen=True)
class Tiles:
    """An image split into windows.

    Attributes:
        pixels: RGB image, (H, W, 3).
        places: Windows, all of one size, each row of windows with the same columns.
        flip: Whether the mirrored image is a second view.
        batch: Number of windows per forward pass.
        count: Divisor of sums over windows (`Protocol.count`).
    """

    pixels: NDArray[np.uint8]
    places: Sequence[Window]
    flip: bool
    batch: int
    count: str

    def scores(self, look: Look) -> Iterator[Tensor]:
        """Yield mean scores over windows in bands (V, K, h, W), from top to bottom."""
        height = len(self.pixels)
        tops = sorted({rows.start for rows, _ in self.places})
        total: Tensor | None = None
        for top, following in pairwise([*tops, height]):
            total = self._added(total, top, look)
            yield from self._finished(total, slice(top, following))
            if following < height:
                _move_up(total, following - top)

    def _added(self, total: Tensor | None, top: int, look: Look) -> Tensor:
        """Add the scores of the row of windows at `top` to the sums (V, K, h, W) of its rows."""
        row = [place for place in self.places if place[0].start == top]
        views = [self.pixels, self.pixels[:, ::-1]] if self.flip else [self.pixels]
        if len(views) == len(self.places) == 1:
            return look(np.stack(views))
        jobs = [(view, place) for place in row for view in range(len(views))]
        for start in range(0, len(jobs), self.batch):
            several = jobs[start : start + self.batch]
            scores = look(np.stack([views[view][place] for view, place in several]))
            total = self._zeros(scores, len(views)) if total is None else total
            for (view, (_, columns)), values in zip(several, scores, strict=True):
                total[view, ..., columns] += values
            del scores, values  # free them before the next forward pass
        assert total is not None
        return total

    def _zeros(self, scores: Tensor, views: int) -> Tensor:
        shape = views, *scores.shape[1:3], self.pixels.shape[1]
        layout = torch.channels_last
        return torch.empty(
            shape, dtype=scores.dtype, device=scores.device, memory_format=layout
        ).zero_()

    def _finished(self, total: Tensor, rows: slice) -> Iterator[Tensor]:
        """Yield the finished rows of the sums as means, with the mirrored view flipped back."""
        classes, width = total.shape[1], total.shape[3]
        shape = classes, len(self.pixels), width
        for part in chunks(rows.stop - rows.start, width, len(total) * classes):
            band = slice(rows.start + part.start, rows.start + part.stop)
            means = total[:, :, part]
            if len(self.places) > 1:
                means = means / window_counts(self.places, shape, self.count, band).to(total)
            yield torch.stack([means[0], means[1].flip(-1)]) if self.flip else means


def _move_up(total: Tensor, rows: int) -> None:
    """Shift the sums up by `rows` in place and fill the freed rows at the bottom with 0."""
    height = total.shape[2]
    for start in range(0, height - rows, rows):
        stop = min(start + rows, height - rows)
        total[:, :, start:stop] = total[:, :, start + rows : stop + rows]
    total[:, :, max(0, height - rows) :] = 0
