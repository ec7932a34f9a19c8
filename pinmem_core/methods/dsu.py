"""`dsu`: perturb the styles of early feature maps by their own uncertainty (Li et al., ICLR 2022).

Mean and standard deviation of each channel become Gaussians: their centres are the values of the
image, their variances those over the images of the batch.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pinmem_core.config import Settings
from pinmem_core.distributed import all_reduce_sum, world_size
from pinmem_core.methods.aggregate import Aggregate
from pinmem_core.methods.base import StepContext
from pinmem_core.methods.losses import Losses
from pinmem_core.methods.style import EPS, Places, Style, restyle, style_of
from pinmem_core.models import Segmenter

_STREAM = 101
"""Random stream of the decisions whether to perturb, which all processes make alike."""


def uncertainty(values: Tensor) -> Tensor:
    """Return the standard deviation of each channel, (1, C, 1, 1), over all images.

    The images are those of all processes, and the deviation is that of `style_of`.

    Args:
        values: Means or standard deviations of each image, (N, C, 1, 1).
    """
    count = len(values) * world_size()
    mean = all_reduce_sum(values.sum(dim=0, keepdim=True)) / count
    variance = all_reduce_sum((values - mean).square().sum(dim=0, keepdim=True)) / count
    return (variance + EPS).sqrt()


def perturb_styles(maps: Tensor, noise: Tensor, *, placebo: bool = False) -> Tensor:
    """Return maps whose style is that of each image plus noise times its `uncertainty`.

    Args:
        maps: Maps, (N, C, H, W).
        noise: Standard Gaussian noise of means and standard deviations, (2, N, C, 1, 1).
        placebo: Whether all channels have the same uncertainty, its mean over the channels.
    """
    own = style_of(maps)
    scales = own.map(uncertainty)
    if placebo:
        scales = scales.map(lambda scale: scale.mean(dim=1, keepdim=True))
    moved = (value + e * scale for value, e, scale in zip(own, noise, scales, strict=True))
    return restyle(maps, own, Style(*moved))


class DSU(Aggregate):
    """DSU: the step of `aggregate`, with perturbed styles at some places of the backbone."""

    cuda_graph = False

    class Config(Settings):
        """Settings of the method."""

        p: float = Field(0.5, ge=0, le=1)
        """Probability that an iteration perturbs the styles at a place."""
        places: tuple[int, ...] | None = Field(None, min_length=1)
        """Places: 0 is the stem, i the end of stage i; None: all, as in the paper."""
        placebo: bool = False
        """Perturb all channels alike, by the mean uncertainty."""

    def setup(self, segmenter: Segmenter) -> None:
        """Find the places."""
        self.places = Places(segmenter, self.settings.places)

    def losses(self, context: StepContext) -> Losses:
        """Return the losses of a forward pass with perturbed styles."""

        def perturb(place: int, maps: Tensor) -> Tensor:
            seed = [self.config.seed, _STREAM, context.iteration, place]
            if np.random.default_rng(seed).random() >= self.settings.p:
                return maps
            noise = torch.randn(2, *maps.shape[:2], 1, 1).to(maps.device)
            return perturb_styles(maps, noise, placebo=self.settings.placebo)

        with self.places.changing(perturb):
            return super().losses(context)


METHODS = {"dsu": DSU}
