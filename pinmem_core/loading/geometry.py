"""Geometric augmentation of training crops: scale, position and flip (docs/method.md, section 5).

The image is resized (bicubic; its label nearest), padded where it is smaller than the crop, and
cropped at random. Only the pixels inside the crop are computed; they are bit-equal to those of the
full computation.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from pinmem_core.config import AugmentationConfig
from pinmem_core.label_space import IGNORE_INDEX


class Axis(NamedTuple):
    """Mapping from the rows (or columns) of an image to those of a crop; all in pixels.

    Attributes:
        source: Length of the image.
        scaled: Length of the resized image.
        start: Position of the crop in the resized image; negative positions are padding.
        crop: Length of the crop; positions beyond `scaled` are padding.
    """

    source: int
    scaled: int
    start: int
    crop: int

    @property
    def kept(self) -> slice:
        """Range of the resized image inside the crop."""
        return slice(max(0, self.start), min(self.scaled, self.start + self.crop))

    @property
    def shown(self) -> slice:
        """Range of the crop covered by the resized image; the rest is padding."""
        return slice(self.kept.start - self.start, self.kept.stop - self.start)

    @property
    def needed(self) -> slice:
        """Range of the image from which bicubic resizing computes the kept range."""
        step = self.source / self.scaled
        reach = 2 * max(1.0, step) + 1
        first, last = self.kept.start * step - reach, self.kept.stop * step + reach
        return slice(max(0, math.floor(first)), min(self.source, math.ceil(last)))

    @property
    def nearest(self) -> NDArray[np.intp]:
        """Indices in the image from which nearest resizing takes the kept range."""
        kept = np.arange(self.kept.start, self.kept.stop, dtype=np.float32)
        step = np.float32(self.source / self.scaled)  # float32, as in torch
        return np.minimum((kept * step).astype(np.intp), self.source - 1)


class Geometry(NamedTuple):
    """Position of a crop in its image.

    Attributes:
        rows: Mapping along y.
        columns: Mapping along x.
        flip: Whether the crop is flipped horizontally at the end.
    """

    rows: Axis
    columns: Axis
    flip: bool

    def cut_image(self, image: NDArray[np.uint8]) -> Tensor:
        """Return the crop (3, crop, crop) of an RGB image (H, W, 3); padding is 0."""
        crop = torch.zeros((3, self.rows.crop, self.columns.crop), dtype=torch.uint8)
        crop[:, self.rows.shown, self.columns.shown] = _resized(image, self.rows, self.columns)
        return v2.functional.horizontal_flip(crop) if self.flip else crop

    def cut_label(self, label: NDArray[np.uint8]) -> Tensor:
        """Return the crop (crop, crop) of trainIds (H, W) as uint8; padding is 255."""
        crop = np.full((self.rows.crop, self.columns.crop), IGNORE_INDEX, np.uint8)
        kept = label[self.rows.nearest][:, self.columns.nearest]
        crop[self.rows.shown, self.columns.shown] = kept
        mask = torch.from_numpy(crop)
        return v2.functional.horizontal_flip(mask) if self.flip else mask


def draw_geometry(
    rng: np.random.Generator, size: tuple[int, int], config: AugmentationConfig
) -> Geometry:
    """Draw a scale factor, then a position in the resized image, then a flip.

    Args:
        rng: Random generator.
        size: Height and width of the image.
        config: Augmentation settings with the side of the crop and the range of the factor.
    """
    factor = rng.uniform(*config.scale)
    rows, columns = (_draw_axis(rng, length, factor, config.crop) for length in size)
    return Geometry(rows, columns, bool(rng.random() < 0.5))


def _draw_axis(rng: np.random.Generator, source: int, factor: float, crop: int) -> Axis:
    """Draw the start of the crop; the shorter of crop and resized image lies inside the longer."""
    scaled = max(1, round(source * factor))
    first, last = sorted((0, scaled - crop))
    return Axis(source, scaled, int(rng.integers(first, last, endpoint=True)), crop)


def _resized(image: NDArray[np.uint8], rows: Axis, columns: Axis) -> Tensor:
    """Return the kept part (3, h, w) of the resized `image` (H, W, 3).

    torch resizes along x, then along y, and rounds in between. The first step therefore skips rows
    that no kept row depends on, and the second step skips columns that are not kept.
    """
    needed = torch.from_numpy(image[rows.needed].copy()).permute(2, 0, 1)[None]
    wide = _bicubic(needed, needed.shape[2], columns.scaled)[..., columns.kept]
    shape = (1, 3, rows.source, wide.shape[3])
    tall = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
    tall[:, :, rows.needed] = wide
    return _bicubic(tall, rows.scaled, wide.shape[3])[0, :, rows.kept]


def _bicubic(images: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True)
