"""Sliding-window prediction: windows, their summed scores, and resizing to the image."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pinmem_core.inference.protocols import window_stride

Window = tuple[slice, slice]
"""Rows and columns of a window."""
Forward = Callable[[NDArray[np.uint8]], Tensor]
"""Function from RGB windows (N, h, w, 3) to their scores (N, K, h, w)."""

STEP = 32
"""Step between window sides chosen by memory, in pixels. Sides are a multiple of it plus 1, so that
the corner-aligned coarse feature maps of a window have the same grid as those of the image."""
SMALLEST = 8 * STEP + 1
"""Smallest window side in pixels; it is used even if the memory does not suffice."""
CHUNK = 2**20
"""Scores per chunk; a chunk fits into a processor's cache."""


def windows(height: int, width: int, crop: int | tuple[int, int], overlap: float) -> list[Window]:
    """Return rows and columns of every window; the last windows are shifted inside the image.

    Args:
        height: Height of the image.
        width: Width of the image.
        crop: Side of square windows, or the height and the width of windows.
        overlap: Fraction of a window that overlaps with its neighbour, in [0, 1).
    """
    rows, columns = (crop, crop) if isinstance(crop, int) else crop

    def starts(length: int, side: int) -> list[int]:
        stride = window_stride(side, overlap)
        count = math.ceil(max(length - side, 0) / stride) + 1
        return [max(0, min(i * stride, length - side)) for i in range(count)]

    return [
        (slice(top, min(top + rows, height)), slice(left, min(left + columns, width)))
        for left in starts(width, columns)
        for top in starts(height, rows)
    ]


def window_counts(
    places: Sequence[Window], shape: tuple[int, ...], count: str, band: slice = slice(None)
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
    rows = max(1, CHUNK // (width * classes))
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

    def scores(self, forward: Forward) -> Iterator[Tensor]:
        """Yield mean scores over windows in bands (V, K, h, W), from top to bottom."""
        height = len(self.pixels)
        tops = sorted({rows.start for rows, _ in self.places})
        total: Tensor | None = None
        for top, following in pairwise([*tops, height]):
            total = self._added(total, top, forward)
            yield from self._finished(total, slice(top, following))
            if following < height:
                _move_up(total, following - top)

    def _added(self, total: Tensor | None, top: int, forward: Forward) -> Tensor:
        """Add the scores of the row of windows at `top` to the sums (V, K, h, W) of its rows."""
        row = [place for place in self.places if place[0].start == top]
        views = [self.pixels, self.pixels[:, ::-1]] if self.flip else [self.pixels]
        if len(views) == len(self.places) == 1:
            return forward(np.stack(views))
        jobs = [(view, place) for place in row for view in range(len(views))]
        for start in range(0, len(jobs), self.batch):
            several = jobs[start : start + self.batch]
            scores = forward(np.stack([views[view][place] for view, place in several]))
            if total is None:
                shape = len(views), *scores.shape[1:3], self.pixels.shape[1]
                total = torch.empty(
                    shape,
                    dtype=scores.dtype,
                    device=scores.device,
                    memory_format=torch.channels_last,
                ).zero_()
            for (view, (_, columns)), values in zip(several, scores, strict=True):
                total[view, ..., columns] += values
            del scores, values  # free them before the next forward pass
        assert total is not None
        return total

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


class RowResampler:
    """Resize scores bilinearly while they arrive from top to bottom.

    Args:
        parts: Bands of scores, (V, K, h, w), with h rows each.
        height: Total number of rows of all bands.
        size: Height and width of the image to resize to.
    """

    def __init__(self, parts: Iterator[Tensor], height: int, size: tuple[int, int]) -> None:
        self._parts = parts
        self._height, self._size = height, size
        self._held: list[Tensor] = []
        self._start = self._stop = 0

    def take(self, rows: slice) -> Tensor:
        """Return the scores (V, K, h, W) of `rows`; later calls must not ask for rows above."""
        if self._height == self._size[0]:
            return self._widened(self._source(rows))
        above, below, share = self._neighbours(rows)
        source = self._widened(self._source(slice(int(above[0]), int(below[-1]) + 1)))
        pixels = source.permute(0, 2, 3, 1)  # (V, h, W, K), the memory layout of the scores
        seen = ((places - above[0]).to(source.device) for places in (above, below))
        upper, lower = (pixels.index_select(1, places) for places in seen)
        return upper.lerp_(lower, share.to(source)[:, None, None]).permute(0, 3, 1, 2)

    def _neighbours(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the source rows above and below each row, and the weight of the lower one."""
        centres = torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5
        places = (centres * (self._height / self._size[0]) - 0.5).clamp(min=0)
        above = places.long()
        return above, (above + 1).clamp(max=self._height - 1), places - above

    def _widened(self, scores: Tensor) -> Tensor:
        size = scores.shape[2], self._size[1]
        if scores.shape[-2:] == size:
            return scores
        return F.interpolate(scores, size, mode="bilinear", align_corners=False)

    def _source(self, rows: slice) -> Tensor:
        while self._held and self._start + self._held[0].shape[2] <= rows.start:
            self._start += self._held.pop(0).shape[2]
        while self._stop < rows.stop:
            self._held.append(next(self._parts))
            self._stop += self._held[-1].shape[2]
        held = self._held[0] if len(self._held) == 1 else torch.cat(self._held, dim=2)
        return held[:, :, rows.start - self._start : rows.stop - self._start]
