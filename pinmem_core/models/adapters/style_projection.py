"""Style projection (SPC-Net, Huang et al., CVPR 2023): give each image a mixture of known styles.

The style of a feature map is the mean and the standard deviation of each channel over its
positions. A basis is the average style of a source domain. In training and in prediction, the maps
of every image lose their own style and get a mixture of the bases, by similarity.
"""

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pinmem_core.distributed import all_reduce_mean
from pinmem_core.errors import ConfigError
from pinmem_core.models.adapters.base import Adapter
from pinmem_core.models.backbones.base import Backbone, blocks_of

_EPS = 1e-5
"""Added to variances."""


class Projection(nn.Module):
    """Replace the style of an image by the sum of λ_m p_m over the styles p_m of the domains.

    With d_m = ‖mean - mean_m‖² + ‖std - std_m‖², λ is the softmax of 1 / (1 + d_m) over m.

    Args:
        channels: Channels of the maps, C.
        domains: Number of domains, M.
        momentum: Weight of the old basis in an update.
        uniform: Whether λ is 1 / M instead.

    Attributes:
        means: Means of the bases, (M, C), 0 before the first update.
        stds: Standard deviations of the bases, (M, C), 1 before the first update.
        updated: Whether a basis was updated, (M,).
        styles: Means and standard deviations of the last training images, (N, 2, C).
    """

    means: Tensor
    stds: Tensor
    updated: Tensor

    def __init__(self, channels: int, domains: int, momentum: float, *, uniform: bool) -> None:
        super().__init__()
        self.momentum, self.uniform = momentum, uniform
        self.register_buffer("means", torch.zeros(domains, channels))
        self.register_buffer("stds", torch.ones(domains, channels))
        self.register_buffer("updated", torch.zeros(domains, dtype=torch.bool))
        self.styles: Tensor | None = None

    def forward(self, maps: Tensor) -> Tensor:
        """Return the restyled maps (N, C, H, W)."""
        values, means, variances = _moments(maps)
        stds = (variances + _EPS).sqrt()
        if self.training:
            self.styles = torch.stack([means, stds], dim=1).detach()
        bases = self.means.to(values), self.stds.to(values)
        weights = self.weights(means, stds, *bases)
        mean, std = ((weights @ basis)[..., None, None] for basis in bases)
        normalised = (values - means[..., None, None]) / stds[..., None, None]
        return (std * normalised + mean).to(maps)

    def weights(self, means: Tensor, stds: Tensor, of_means: Tensor, of_stds: Tensor) -> Tensor:
        """Return λ (N, M) for styles (N, C) and bases (M, C)."""
        apart = (means[:, None] - of_means).square() + (stds[:, None] - of_stds).square()
        closeness = 1 / (1 + apart.sum(dim=2))
        return (0 * closeness if self.uniform else closeness).softmax(dim=1)

    @torch.no_grad()
    def update(self, domains: int) -> None:
        """Move the bases to the mean styles of the last training images, over all processes.

        Args:
            domains: Number of domains M; image i belongs to the domain i % M.
        """
        assert self.styles is not None
        styles = self.styles.unflatten(0, (-1, domains)).mean(dim=0)
        all_reduce_mean([styles])
        momentum = self.momentum * self.updated[:, None].to(styles)
        for bases, new in zip((self.means, self.stds), styles.unbind(dim=1), strict=True):
            bases.copy_(momentum * bases + (1 - momentum) * new)
        self.updated.fill_(True)
        self.styles = None


class InstanceNorm(nn.Module):
    """Remove the style of each image; the control of a projection."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return (x - mean) / std of maps (N, C, H, W)."""
        values, means, variances = _moments(maps)
        normalised = (values - means[..., None, None]) * (variances + _EPS).rsqrt()[..., None, None]
        return normalised.to(maps)


class StyleProjection(Adapter):
    """Projections after the first stages; a method that knows the domains updates their bases."""

    kind: Literal["project", "instance_norm"] = "project"
    """"instance_norm" only removes the styles: the control."""
    domains: int = Field(2, ge=1)
    """Number of source domains."""
    stages: int = Field(2, ge=1)
    """Number of stages, from the first, that a projection follows."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Weight of the old basis in an update."""
    uniform: bool = False
    """Mix all bases equally, whatever the image: a placebo for the weights."""

    def insert(self, backbone: Backbone) -> None:
        """Add the modules as `backbone.style_projection`, and change the maps of the stages."""
        modules = nn.ModuleList(self._module(channels) for channels in backbone.channels)
        modules = modules[: self.stages].to(next(backbone.parameters()))
        backbone.add_module("style_projection", modules)
        blocks = [blocks_of(stage)[-1] for stage in backbone.stages()[: self.stages]]
        if len(blocks) < self.stages or not _return_features(blocks, backbone):
            raise ConfigError(
                f"style projection needs {self.stages} stages of feature maps, which the backbone "
                f"'{backbone.name}' does not have.",
                "Use a convolutional one, such as '--set model.backbone=resnet50'.",
            )
        for block, module in zip(blocks, modules, strict=True):
            block.register_forward_hook(partial(_replace, by=module))

    def _module(self, channels: int) -> nn.Module:
        if self.kind == "instance_norm":
            return InstanceNorm()
        return Projection(channels, self.domains, self.momentum, uniform=self.uniform)


def _moments(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps as float32 or better, and mean and variance (N, C) over the positions.

    Rows are averaged first: other runtimes than torch sum all values one by one.
    """
    values = maps.to(torch.promote_types(maps.dtype, torch.float32))
    means = values.mean(dim=3).mean(dim=2)
    variances = (values - means[..., None, None]).square().mean(dim=3).mean(dim=2)
    return values, means, variances


def _replace(block: nn.Module, inputs: Any, output: Tensor, *, by: nn.Module) -> Tensor:
    replaced: Tensor = by(output)
    return replaced


def _return_features(blocks: list[nn.Module], backbone: Backbone) -> bool:
    """Return whether `blocks` return the first features of the backbone, maps (N, C, H, W)."""
    features = backbone.probe()[: len(blocks)]
    return backbone.output_shapes(blocks) == [feature.shape for feature in features]


ADAPTERS = {"style_projection": StyleProjection}
