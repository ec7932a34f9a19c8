"""`isw`: whiten the feature covariances that photometric changes move (RobustNet, CVPR 2021).

Three early maps pass an instance norm without scale and shift. The loss is the size of elements of
their covariances: of those that differ most between an image and the same image with other colours.
"""

from functools import partial
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pinmem_core.config import Settings
from pinmem_core.data.transforms import strong_view
from pinmem_core.distributed import all_reduce_sum
from pinmem_core.methods.aggregate import Aggregate
from pinmem_core.methods.base import StepContext
from pinmem_core.methods.losses import Losses
from pinmem_core.models import Segmenter
from pinmem_core.models.adapters.ibn import InstanceNorm

_EPS = 1e-5


def covariance(maps: Tensor) -> Tensor:
    """Return X Xᵀ / (HW - 1) + 1e-5·I, (N, C, C), of normalised maps (N, C, H, W)."""
    values = maps.flatten(2).to(torch.promote_types(maps.dtype, torch.float32))
    positions = max(1, values.shape[2] - 1)
    return values @ values.mT / positions + _EPS * torch.eye(values.shape[1]).to(values)


def whitening_loss(maps: Tensor, mask: Tensor, margin: float = 0.0) -> Tensor:
    """Return the mean over images of max(0, Σ|Σ∘mask| / #mask - margin), with Σ = `covariance`.

    Args:
        maps: Normalised maps, (N, C, H, W).
        mask: 1 for the elements of the covariance that count, 0 for the others, (C, C).
        margin: Mean size of an element that costs nothing.
    """
    sizes = (covariance(maps) * mask).abs().sum(dim=(1, 2)) / mask.sum().clamp(min=1)
    return (sizes - margin).clamp(min=0).mean()


def above_lowest_cluster(values: Tensor, clusters: int) -> Tensor:
    """Return which values are outside the lowest cluster of k-means, (n,) bool.

    Lloyd's iterations begin with evenly spaced centres, so that the result is deterministic. If a
    value is not finite, all are outside; the loss of such a network stops the run.

    Args:
        values: Values, (n,).
        clusters: Number of clusters.
    """
    known = values.detach().cpu().double()
    if not known.isfinite().all():
        return torch.ones_like(values, dtype=torch.bool)
    low, high = (float(value) for value in known.aminmax())
    centres = torch.linspace(low, high, clusters, dtype=torch.float64)
    while True:
        nearest = torch.bucketize(known, (centres[1:] + centres[:-1]) / 2)
        counts = nearest.bincount(minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, nearest, known)
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        if torch.equal(moved, centres):
            return (nearest > 0).to(values.device)
        centres = moved


class ISW(Aggregate):
    """Instance selective whitening (ISW), and its controls IW and IRW."""

    cuda_graph = False

    class Config(Settings):
        """Settings of the method."""

        loss: Literal["isw", "irw", "iw"] = "isw"
        """"isw" whitens the sensitive elements. "iw" whitens all from the first iteration; "irw" as
        well, but up to a margin of half of the elements."""
        weight: float = Field(0.6, ge=0)
        """Weight of the loss."""
        start: float = Field(0.12, ge=0, le=1)
        """Share of the iterations before the loss of "isw" begins; in the paper 6 of 52 epochs."""
        trials: int = Field(10, ge=1)
        """Number of masks of sensitive elements; their intersection is used."""
        trial_batches: int = Field(10, ge=1)
        """Number of batches of a mask; those of all trials are the last ones before `start`."""
        clusters: int = Field(3, ge=2)
        """Number of clusters of the elements by variance; all but the lowest are sensitive."""
        placebo: bool = False
        """Use a random mask with as many elements as that of the sensitive ones."""

        @model_validator(mode="after")
        def _placebo_has_an_effect(self) -> Self:
            if self.placebo and self.loss != "isw":
                raise ValueError(f"'placebo' has no effect with loss={self.loss}")
            return self

    maps: dict[int, Tensor]
    masks: list[Tensor]
    variances: list[Tensor]

    @classmethod
    def adapters(cls, settings: Any) -> dict[str, dict[str, Any]]:
        """Return instance norm without scale and shift."""
        return {"ibn": {"variant": "b", "affine": False}}

    def setup(self, segmenter: Segmenter) -> None:
        """Keep the maps after each instance norm; let all elements above the diagonal count."""
        norms = [part for part in segmenter.backbone.modules() if isinstance(part, InstanceNorm)]
        for number, norm in enumerate(norms):
            norm.register_forward_hook(partial(self._keep, number))
        like = next(segmenter.parameters())
        self.maps = {}
        self.masks = [like.new_ones([norm.num_channels] * 2).triu(diagonal=1) for norm in norms]
        self.variances = [torch.zeros_like(mask) for mask in self.masks]
        settings = self.settings
        self._begin = max(2, round(settings.start * self.config.iterations))
        available = self._begin - 1  # the first iteration is left out: estimates of cost repeat it
        self._trials = min(settings.trials, available)
        self._batches = min(settings.trial_batches, available // self._trials)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _keep(self, number: int, norm: nn.Module, inputs: Any, output: Tensor) -> None:
        self.maps[number] = output

    def losses(self, context: StepContext) -> Losses:
        """Return the losses of `aggregate`, and the whitening loss."""
        losses = super().losses(context)
        kind = self.settings.loss
        margin = 0.5 if kind == "irw" else 0.0
        terms = [whitening_loss(self.maps[i], mask, margin) for i, mask in enumerate(self.masks)]
        self.maps.clear()
        whitening = torch.stack(terms).mean()
        on = kind != "isw" or context.iteration >= self._begin
        total = losses.total + self.settings.weight * whitening if on else losses.total
        return Losses({**losses.terms, kind: whitening}, total, losses.written)

    def refresh(self, context: StepContext) -> None:
        """Measure the variances of the elements, in the iterations before the loss begins."""
        super().refresh(context)
        done = context.iteration + 1 - (self._begin - self._trials * self._batches)
        if self.settings.loss != "isw" or not 0 < done <= self._trials * self._batches:
            return
        self._measure(context)
        if done % self._batches == 0:
            self._intersect(last=done == self._trials * self._batches)

    @torch.no_grad()
    def _measure(self, context: StepContext) -> None:
        """Add the variances between each image and a strong view of it, by the mean over images."""
        segmenter, images = context.segmenter, context.batch.all()[0]
        segmenter.eval()
        both = []
        for view in (images, strong_view(images, segmenter.normalization)):
            segmenter.encode(view)
            both.append([covariance(self.maps[number]) for number in range(len(self.masks))])
            self.maps.clear()
        for variances, first, second in zip(self.variances, *both, strict=True):
            variances += all_reduce_sum(((first - second) / 2).square().mean(dim=0))

    def _intersect(self, *, last: bool) -> None:
        """Keep the elements that this trial calls sensitive, and begin the next trial."""
        for mask, variances in zip(self.masks, self.variances, strict=True):
            rows, columns = torch.triu_indices(len(mask), len(mask), 1, device=mask.device)
            sensitive = above_lowest_cluster(variances[rows, columns], self.settings.clusters)
            kept = mask[rows, columns] * sensitive
            if last and self.settings.placebo:
                generator = torch.Generator().manual_seed(self.config.seed)
                kept = kept[torch.randperm(len(kept), generator=generator).to(kept.device)]
            mask[rows, columns] = kept
            variances.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the masks, and the variances of the trial that has begun."""
        return {
            f"{name}.{number}": value
            for name, values in (("mask", self.masks), ("variance", self.variances))
            for number, value in enumerate(values)
        }

    def load_state_dict(self, state: Any) -> None:
        """Load the result of `state_dict`."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])


METHODS = {"isw": ISW}
