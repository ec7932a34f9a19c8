"""`spc`: style projection and semantic clustering (SPC-Net, Huang et al., CVPR 2023).

The maps after the first stages get a mixture of the styles of the source domains, and pixels are
classified by the nearest basis of a class (`style_projection.py` and `class_bases.py` in
`models/adapters/`). Both are a part of the network that predicts.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from pinmem_core.config import Settings, TrainConfig
from pinmem_core.distributed import all_reduce_sum, world_size
from pinmem_core.methods.base import Method, StepContext, StepResult
from pinmem_core.methods.losses import Losses, training_losses
from pinmem_core.models import Segmenter
from pinmem_core.models.adapters.class_bases import ClassBases
from pinmem_core.models.adapters.style_projection import Projection


class SPCNet(Method):
    """SPC-Net: mix the styles of the sources, and classify pixels by the nearest basis.

    L = CE + auxiliary loss + weighted compactness and contrast; bases are moving averages.
    """

    memory = "none"
    meta = False

    class Config(Settings):
        """Settings of the method. The paper's text names no weights; the defaults are pinmem's."""

        projection: Literal["project", "instance_norm"] = "project"
        """"instance_norm" removes the styles and projects on none: the control."""
        clustering: bool = True
        """Classify by class bases; false keeps the decoder's linear classifier."""
        placebo: bool = False
        """Mix the styles of all domains equally, whatever the image."""
        stages: int = Field(2, ge=1)
        """Number of stages, from the first, that a projection follows."""
        momentum: float = Field(0.9, ge=0, lt=1)
        """Weight of the old basis in an update, of styles and of classes."""
        temperature: float = Field(1.0, gt=0)
        """Divisor of the cosines of pixels and class bases; the paper's text has none."""
        compactness: float = Field(1.0, ge=0)
        """Weight of the mean of (1 - cosine)² of a pixel and the basis of its class and domain."""
        contrast: float = Field(0.1, ge=0)
        """Weight of the InfoNCE loss of the class centres of a batch and all bases."""
        contrast_temperature: float = Field(0.1, gt=0)
        """Divisor of the cosines in the InfoNCE loss."""
        domains: int = Field(2, ge=1)
        """Number of source domains; it follows from `sources` and `pseudo_domains`."""

        @model_validator(mode="after")
        def _placebo_has_an_effect(self) -> Self:
            if self.placebo and self.projection != "project":
                raise ValueError(f"'placebo' has no effect with projection={self.projection}")
            return self

    @classmethod
    def read_settings(cls, config: TrainConfig) -> Settings:
        """Return the settings with the number of domains of the run."""
        domains = len(config.sources) if len(config.sources) > 1 else config.pseudo_domains
        return super().read_settings(config).model_copy(update={"domains": domains})

    @classmethod
    def adapters(cls, settings: Any) -> Mapping[str, Mapping[str, Any]]:
        """Return style projection, and class bases if `clustering` is on."""
        common = {"domains": settings.domains, "momentum": settings.momentum}
        kind, stages, uniform = settings.projection, settings.stages, settings.placebo
        projection = {"kind": kind, "stages": stages, "uniform": uniform, **common}
        bases = {"temperature": settings.temperature, **common}
        return {"style_projection": projection} | (
            {"class_bases": bases} if settings.clustering else {}
        )

    def setup(self, segmenter: Segmenter) -> None:
        """Find the modules with bases."""
        parts = [*segmenter.modules()]
        self.projections = [part for part in parts if isinstance(part, Projection)]
        self.class_bases = next((part for part in parts if isinstance(part, ClassBases)), None)

    def step(self, context: StepContext) -> StepResult:
        """Accumulate the gradient of the losses into `.grad`, and update the bases afterwards."""
        segmenter, settings = context.segmenter, self.settings
        domains = context.batch.images.shape[0]
        segmenter.train()
        for projection in self.projections:
            projection.train()  # also in a frozen backbone
        images, labels = context.batch.all()
        losses = training_losses(segmenter, images, labels, self.config.loss)
        terms, total, clusters = losses.terms, losses.total, None
        if self.class_bases is not None:
            assert self.class_bases.embedding is not None
            bases = self.class_bases.bases
            clusters = Clusters.of(self.class_bases.embedding, labels, domains, len(bases))
            compact = compactness_loss(self.class_bases.embedding, clusters, bases)
            contrast = contrast_loss(clusters, bases, settings.contrast_temperature)
            total = total + settings.compactness * compact + settings.contrast * contrast
            terms = {**terms, "compact": compact, "contrast": contrast}
        self.backward(segmenter, total, last=True)
        for projection in self.projections:
            projection.update(domains)
        if self.class_bases is not None and clusters is not None:
            self.class_bases.update(clusters.centres, clusters.counts)
        return StepResult({"train": Losses(terms, total)})


class Clusters(NamedTuple):
    """The pixels of a batch by class and domain.

    Attributes:
        masks: Whether a position shows a class, (N, K, h, w), 0 or 1; labels are nearest.
        centres: Mean feature of each class and domain over all processes, of unit length,
            (K, M, D); zeros without pixels.
        counts: Pixels of each class and domain over all processes, (K, M).
    """

    masks: Tensor
    centres: Tensor
    counts: Tensor

    @classmethod
    def of(cls, embedding: Tensor, labels: Tensor, domains: int, num_classes: int) -> "Clusters":
        """Return the clusters of a batch.

        Args:
            embedding: Features of unit length, (N, D, h, w); image i belongs to domain i % M.
            labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
            domains: Number of domains, M.
            num_classes: Number of classes, K.
        """
        shrunk = F.interpolate(labels[:, None].float(), size=embedding.shape[-2:], mode="nearest")
        classes = torch.arange(num_classes, device=labels.device)[:, None, None]
        masks = (shrunk == classes).to(embedding)
        sums = torch.einsum("nkhw,ndhw->nkd", masks, embedding)
        counted = torch.cat([sums, masks.sum(dim=(2, 3))[..., None]], dim=2)
        of_domains = counted.unflatten(0, (-1, domains)).sum(dim=0).transpose(0, 1)
        of_all = all_reduce_sum(of_domains.contiguous())
        return cls(masks, F.normalize(of_all[..., :-1], dim=2), of_all[..., -1].detach())


def compactness_loss(embedding: Tensor, clusters: Clusters, bases: Tensor) -> Tensor:
    """Return the mean of (1 - e·p)² over labelled positions, p the basis of class and domain.

    As in `cross_entropy`, each process divides by the mean number of positions per process.

    Args:
        embedding: Features e of unit length, (N, D, h, w); image i belongs to domain i % M.
        clusters: Clusters of the features.
        bases: Bases, (K, M, D).
    """
    of_images = bases.to(embedding).transpose(0, 1).repeat(len(embedding) // bases.shape[1], 1, 1)
    cosines = torch.einsum("ndhw,nkd->nkhw", embedding, of_images)
    labelled = all_reduce_sum(clusters.masks.sum()).clamp(min=1) / world_size()
    return ((1 - cosines).square() * clusters.masks).sum() / labelled


def contrast_loss(clusters: Clusters, bases: Tensor, temperature: float) -> Tensor:
    """Return the mean of -log softmax(z·p / temperature) of each centre z at its own basis.

    The softmax is over the bases of all classes and domains. Centres without pixels and bases
    before their first update are left out; without any, the loss is 0.

    Args:
        clusters: Clusters of a batch.
        bases: Bases p, (K, M, D).
        temperature: Divisor of the cosines.
    """
    centres, bases = clusters.centres.flatten(0, 1), bases.flatten(0, 1).to(clusters.centres)
    known = bases.any(dim=1)
    logits = (centres @ bases.T / temperature).masked_fill(~known, float("-inf"))
    own = torch.where(known, logits.diagonal(), 0)
    # A sum over no basis at all would have no gradient.
    total = logits.masked_fill(~known.any(), 0).logsumexp(dim=1)
    pairs = known & (clusters.counts.flatten() > 0)
    return ((total - own) * pairs).sum() / pairs.sum().clamp(min=1)


METHODS = {"spc": SPCNet}
