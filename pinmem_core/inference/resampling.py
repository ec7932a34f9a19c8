"""Resize a stream of score rows to the size of the image."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


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
