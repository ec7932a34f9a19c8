"""Augmentation of training crops (docs/method.md, 5)."""

import math
from collections.abc import Sequence
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


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, for images in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_JITTER = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.5)
_DISTORTION = v2.Compose(  # without SSD's swapped channels, as in recipes for segmentation
    [
        v2.RandomApply([v2.ColorJitter(brightness=32 / 255)], p=0.5),
        v2.RandomApply([v2.ColorJitter(contrast=0.5)], p=0.5),
        v2.RandomApply([v2.ColorJitter(saturation=0.5)], p=0.5),
        v2.RandomApply([v2.ColorJitter(hue=18 / 360)], p=0.5),
    ]
)
_STRONG_JITTER = v2.ColorJitter(0.8, 0.8, 0.8, 0.3)
_BLUR = v2.GaussianBlur(11, sigma=(0.15, 1.3))  # 11 pixels cover +-4 of the largest sigma


class Appearance(NamedTuple):
    """Parameters of a crop's photometric augmentation.

    Attributes:
        seed: Seed of colour jitter and blur.
        strong: Whether to use the paper's strong colour jitter, meant for meta-test domains.
        distort: Whether to use SSD's photometric distortion in place of the paper's weak jitter.
    """

    seed: int
    strong: bool
    distort: bool = False


def augment_photometric(
    images: Tensor, appearances: Sequence[Appearance], normalization: Normalization = IMAGENET
) -> Tensor:
    """Jitter, blur and normalise uint8 RGB crops; return float32 (N, 3, H, W).

    Args:
        images: Crops, (N, 3, H, W) uint8, on any device; random numbers are the same on all.
        appearances: Augmentation parameters of the N crops.
        normalization: Mean and standard deviation that the network expects.
    """
    changed = [_changed(image, how) for image, how in zip(images, appearances, strict=True)]
    return normalize(torch.stack(changed), normalization)


def normalize(images: Tensor, by: Normalization = IMAGENET) -> Tensor:
    """Normalise uint8 RGB images (..., 3, H, W) to float32 by mean and standard deviation."""
    scaled = v2.functional.to_dtype(images, torch.float32, scale=True)
    return v2.functional.normalize(scaled, list(by.mean), list(by.std))


def strong_view(images: Tensor, by: Normalization) -> Tensor:
    """Return normalised images (N, 3, H, W) with strong colour jitter and blur.

    The parameters are drawn by torch's global generator of the CPU.
    """
    mean, std = (images.new_tensor(values)[:, None, None] for values in by)
    colours = torch.addcmul(mean, images, std).clamp(0, 1)
    return (torch.stack([_BLUR(_STRONG_JITTER(image)) for image in colours]) - mean) / std


def _changed(image: Tensor, appearance: Appearance) -> Tensor:
    weak = _DISTORTION if appearance.distort else _JITTER
    jitter = _STRONG_JITTER if appearance.strong else weak
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(appearance.seed)
        return _BLUR(jitter(image))
