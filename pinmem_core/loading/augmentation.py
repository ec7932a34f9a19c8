"""Photometric augmentation of training crops: jitter, blur, normalisation (docs/method.md, 5).

This is the most expensive part of loading, so it runs on the device of the network.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_JITTER = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.5)
_STRONG_JITTER = v2.ColorJitter(0.8, 0.8, 0.8, 0.3)
_BLUR = v2.GaussianBlur(11, sigma=(0.15, 1.3))  # 11 pixels cover +-4 of the largest sigma


class Appearance(NamedTuple):
    """Parameters of a crop's photometric augmentation.

    Attributes:
        seed: Seed of colour jitter and blur.
        strong: Whether to use the paper's strong colour jitter, meant for meta-test domains.
    """

    seed: int
    strong: bool


def appear(images: Tensor, appearances: Sequence[Appearance]) -> Tensor:
    """Jitter, blur and normalise uint8 RGB crops; return float32 (N, 3, H, W).

    Args:
        images: Crops, (N, 3, H, W) uint8, on any device; random numbers are the same on all.
        appearances: Augmentation parameters of the N crops.
    """
    changed = [_changed(image, how) for image, how in zip(images, appearances, strict=True)]
    return normalize(torch.stack(changed))


def normalize(images: Tensor) -> Tensor:
    """Normalise uint8 RGB images (..., 3, H, W) to float32 by ImageNet's mean and deviation."""
    scaled = v2.functional.to_dtype(images, torch.float32, scale=True)
    return v2.functional.normalize(scaled, list(IMAGENET_MEAN), list(IMAGENET_STD))


def _changed(image: Tensor, appearance: Appearance) -> Tensor:
    jitter = _STRONG_JITTER if appearance.strong else _JITTER
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(appearance.seed)
        return _BLUR(jitter(image))
