"""How a training crop looks: colours, blur and normalisation (docs/method.md, section 5).

This is most of the work, and tensors' work: it is done where the network is.
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
_BLUR = v2.GaussianBlur(11, sigma=(0.15, 1.3))  # four standard deviations of the widest


class Appearance(NamedTuple):
    """What decides how a crop looks.

    Attributes:
        seed: Of its colours and blur.
        strong: The paper's strong colour jitter, meant for meta-test domains.
    """

    seed: int
    strong: bool


def appear(images: Tensor, appearances: Sequence[Appearance]) -> Tensor:
    """Return uint8 RGB crops (N, 3, H, W) as the network gets them: jittered, blurred, normalised.

    Args:
        images: On any device; the random numbers are the same on all.
        appearances: N of them.
    """
    changed = [_changed(image, how) for image, how in zip(images, appearances, strict=True)]
    return normalize(torch.stack(changed))


def normalize(images: Tensor) -> Tensor:
    """Return uint8 RGB images (..., 3, H, W) as the normalised float32 that networks expect."""
    scaled = v2.functional.to_dtype(images, torch.float32, scale=True)
    return v2.functional.normalize(scaled, list(IMAGENET_MEAN), list(IMAGENET_STD))


def _changed(image: Tensor, appearance: Appearance) -> Tensor:
    jitter = _STRONG_JITTER if appearance.strong else _JITTER
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(appearance.seed)
        return _BLUR(jitter(image))
