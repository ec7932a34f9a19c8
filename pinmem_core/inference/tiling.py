"""Showing an image to a network window by window, and finishing its scores from top to bottom.

Shapes: V views (the image, and its mirror image), K classes, (H, W) the image. No more is kept than
the rows that a row of windows covers.
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
"""Rows and columns."""
Look = Callable[[NDArray[np.uint8]], Tensor]
"""Takes RGB windows (N, h, w, 3); gives their scores (N, K, h, w)."""

STEP = 32
"""Windows chosen by memory are a multiple of this, and one, high and wide, so that the corners of
the network's coarse maps, which it aligns with the window's, lie where those of the image do."""
SMALLEST = 8 * STEP + 1
"""Side of the windows that are shown however little memory there is, in pixels."""
_VALUES = 2**20
"""Scores that are handed out at once: few enough to stay in a processor's cache."""


@dataclass(frozen=True)
class Appetite:
    """The memory that predicting takes, in bytes.

    Attributes:
        pixel: For a pixel of a window, in the network.
        kept: For a pixel of the image, in the scores that are not finished, of all views.
        views: How many the image has.
    """

    pixel: float
    kept: float
    views: int = 1

    def of(self, height: int, width: int, side: int) -> float:
        """Return what an image takes in square windows, one at a time."""
        rows, columns = min(side, height), min(side, width)
        alone = self.views == 1 and (rows, columns) == (height, width)
        return self.pixel * rows * columns + (0 if alone else self.kept * rows * width)


def largest_crop(height: int, width: int, appetite: Appetite, memory: float) -> int:
    """Return the side of the image where it fits into `memory` whole, else of smaller windows.

    They take half of the memory: a large image has large masks, too.
    """
    whole = max(height, width)
    if appetite.of(height, width, whole) <= memory:
        return whole
    sides = range(SMALLEST, whole, STEP)
    fitting = bisect_right(sides, memory / 2, key=lambda side: appetite.of(height, width, side))
    return min(whole, SMALLEST + STEP * max(0, fitting - 1))


def chunks(height: int, width: int, classes: int) -> Iterator[slice]:
    """Yield the rows of an image in parts that a cache holds the scores of."""
    rows = max(1, _VALUES // (width * classes))
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


@dataclass(frozen=True)
class Tiles:
    """An image in windows.

    Attributes:
        pixels: (H, W, 3) RGB.
        places: The windows: all of one size, each row of them with the same columns.
        flip: Whether the mirrored image is a second view.
        batch: How many windows the network sees at once.
        count: How windows are counted (`Protocol.count`).
    """

    pixels: NDArray[np.uint8]
    places: Sequence[Window]
    flip: bool
    batch: int
    count: str

    def scores(self, look: Look) -> Iterator[Tensor]:
        """Yield the mean scores over windows, (V, K, h, W) of h rows each, from top to bottom."""
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
            del scores, values  # before the next are computed
        assert total is not None
        return total

    def _zeros(self, scores: Tensor, views: int) -> Tensor:
        shape = views, *scores.shape[1:3], self.pixels.shape[1]
        layout = torch.channels_last
        return torch.empty(
            shape, dtype=scores.dtype, device=scores.device, memory_format=layout
        ).zero_()

    def _finished(self, total: Tensor, rows: slice) -> Iterator[Tensor]:
        """Yield the first rows of the sums, divided and turned as the image is."""
        classes, width = total.shape[1], total.shape[3]
        shape = classes, len(self.pixels), width
        for part in chunks(rows.stop - rows.start, width, len(total) * classes):
            band = slice(rows.start + part.start, rows.start + part.stop)
            means = total[:, :, part]
            if len(self.places) > 1:
                means = means / window_counts(self.places, shape, self.count, band).to(total)
            yield torch.stack([means[0], means[1].flip(-1)]) if self.flip else means


def _move_up(total: Tensor, rows: int) -> None:
    """Drop the first rows of the sums; those that come in below are 0."""
    height = total.shape[2]
    for start in range(0, height - rows, rows):
        stop = min(start + rows, height - rows)
        total[:, :, start:stop] = total[:, :, start + rows : stop + rows]
    total[:, :, max(0, height - rows) :] = 0
