"""`mixstyle`: mix the styles of images in early feature maps (Zhou et al., ICLR 2021)."""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pinmem_core.config import Settings
from pinmem_core.data.batches import step_seed
from pinmem_core.distributed import rank
from pinmem_core.methods.aggregate import Aggregate
from pinmem_core.methods.base import StepContext
from pinmem_core.methods.losses import Losses
from pinmem_core.methods.style import Places, Style, restyle, style_of
from pinmem_core.models import Segmenter


def mix_styles(maps: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """Return maps whose style is λ·own + (1 - λ)·partner's; styles have no gradient.

    Args:
        maps: Maps, (N, C, H, W).
        partners: Index of the partner of each image, (N,).
        shares: λ of each image, (N, 1, 1, 1).
    """
    own = style_of(maps).map(Tensor.detach)
    mixed = Style(*(value + (1 - shares) * (value[partners] - value) for value in own))
    return restyle(maps, own, mixed)


class MixStyle(Aggregate):
    """MixStyle: the step of `aggregate`, with mixed styles at some places of the backbone."""

    cuda_graph = False

    class Config(Settings):
        """Settings of the method."""

        p: float = Field(0.5, ge=0, le=1)
        """Probability that a forward pass mixes the styles at a place."""
        alpha: float = Field(0.1, gt=0)
        """Parameter of Beta(alpha, alpha), from which the share λ of each image is drawn."""
        places: tuple[int, ...] = Field((0, 1), min_length=1)
        """Places: 0 is the stem, i the end of stage i. The paper has (1, 2) or (1, 2, 3)."""
        placebo: bool = False
        """Set λ to 1, so that nothing is mixed."""

    def setup(self, segmenter: Segmenter) -> None:
        """Find the places."""
        self.places = Places(segmenter, self.settings.places)

    def losses(self, context: StepContext) -> Losses:
        """Return the losses of a forward pass with mixed styles."""
        rng = np.random.default_rng(step_seed(self.config.seed, context.iteration, rank()))

        def mix(place: int, maps: Tensor) -> Tensor:
            if rng.random() >= self.settings.p:
                return maps
            count, alpha = len(maps), self.settings.alpha
            partners = torch.tensor(rng.permutation(count), device=maps.device)
            drawn = np.ones(count) if self.settings.placebo else rng.beta(alpha, alpha, count)
            shares = torch.tensor(drawn, device=maps.device)[:, None, None, None].to(maps)
            return mix_styles(maps, partners, shares)

        with self.places.changing(mix):
            return super().losses(context)


METHODS = {"mixstyle": MixStyle}
