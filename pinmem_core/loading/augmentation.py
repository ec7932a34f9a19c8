"""What happens to a training image before the network sees it (docs/method.md, section 5)."""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from pinmem_core.config import AugmentationConfig
from pinmem_core.labels import IGNORE_INDEX

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BLUR_KERNEL = 11  # covers four standard deviations of the widest blur


class RandomScale(v2.Transform):
    """Resize by a factor drawn uniformly; images bicubic, label masks nearest.

    Args:
        scale: Lowest and highest factor.
    """

    def __init__(self, scale: tuple[float, float]) -> None:
        super().__init__()
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size of this call."""
        height, width = v2.functional.get_size(flat_inputs[0])
        factor = float(torch.empty(()).uniform_(*self.scale))
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one image or mask."""
        return self._call_kernel(
            v2.functional.resize,
            inpt,
            params["size"],
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        )


def training_transform(config: AugmentationConfig, *, strong: bool) -> v2.Compose:
    """Return the transform of (image, mask) for training.

    Args:
        config: Crop and scale range.
        strong: The paper's strong colour jitter, meant for meta-test domains.

    Returns:
        Takes a uint8 (3, H, W) `tv_tensors.Image` and an (H, W) `tv_tensors.Mask`; gives the
        normalised float32 image and the mask, both `config.crop` pixels wide and high.
    """
    jitter: v2.Transform = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.5)
    if strong:
        jitter = v2.ColorJitter(0.8, 0.8, 0.8, 0.3)
    return v2.Compose(
        [
            RandomScale(config.scale),
            v2.RandomCrop(
                config.crop,
                pad_if_needed=True,
                fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORE_INDEX},
            ),
            v2.RandomHorizontalFlip(),
            jitter,
            v2.GaussianBlur(_BLUR_KERNEL, sigma=(0.15, 1.3)),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def normalize(images: Tensor) -> Tensor:
    """Return uint8 RGB images (..., 3, H, W) as the normalised float32 that networks expect."""
    scaled = v2.functional.to_dtype(images, torch.float32, scale=True)
    return v2.functional.normalize(scaled, list(IMAGENET_MEAN), list(IMAGENET_STD))
