"""`prototypes`: an auxiliary classifier by the nearest of several prototypes of a class.

Prototypes are moving averages of features (ProtoSeg, Zhou et al., CVPR 2022). The classifier of the
decoder stays, so the prototypes serve the training only.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pinmem_core.config import Settings
from pinmem_core.distributed import all_reduce_sum, world_size
from pinmem_core.methods.base import Method, StepContext, StepResult
from pinmem_core.methods.losses import Losses, balanced_cross_entropy, training_pass
from pinmem_core.models import Segmenter

_SHARPNESS, _ROUNDS = 20.0, 3  # of the assignment, as in the paper: 1 / 0.05
_NO_PROTOTYPE = -100


class Prototypes(Method):
    """ProtoSeg: also classify features by the nearest of several prototypes of a class.

    L = losses of `aggregate` + weighted losses of the pixels' cosines with the prototypes. The
    feature of a pixel is the one that a memory would read, so every decoder has it. The score of a
    class is the largest cosine of its prototypes; layer norm over the classes replaces a
    temperature.
    """

    memory = "none"
    meta = False
    cuda_graph = True

    class Config(Settings):
        """Settings of the method; the defaults but `weight` are those of the paper."""

        per_class: int = Field(10, ge=1)
        """Number of prototypes of a class."""
        weight: float = Field(0.4, ge=0)
        """Weight of the cross-entropy of the scores; in the paper they are the classifier: 1."""
        contrast: float = Field(0.01, ge=0)
        """Weight of the cross-entropy over all prototypes, with a pixel's own as the truth."""
        compactness: float = Field(0.001, ge=0)
        """Weight of the mean of (1 - cosine)² of a pixel and its own prototype."""
        temperature: float = Field(0.1, gt=0)
        """Divisor of the cosines in the cross-entropy over all prototypes."""
        momentum: float = Field(0.999, ge=0, lt=1)
        """Largest weight of the old prototype in an update; update n keeps at most (n - 1) / n."""
        placebo: bool = False
        """Leave the prototypes random."""

    def setup(self, segmenter: Segmenter) -> None:
        """Draw the first prototypes, the same on every process."""
        shape = (segmenter.config.num_classes, self.settings.per_class, segmenter.decoder.dim)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(self.config.seed))
        self.prototypes = F.normalize(drawn.to(next(segmenter.parameters())), dim=2)
        self.updates = torch.zeros_like(self.prototypes[..., :1])

    def step(self, context: StepContext) -> StepResult:
        """Accumulate the gradient of the losses into `.grad`, and update the prototypes."""
        segmenter, settings = context.segmenter, self.settings
        segmenter.train()
        images, labels = context.batch.all()
        losses, output = training_pass(segmenter, images, labels, self.config.loss)
        pixels = F.normalize(output.encoding.feature, dim=1).permute(0, 2, 3, 1)
        cosines = torch.einsum("nhwd,kpd->nhwkp", pixels, self.prototypes)
        scores = F.layer_norm(cosines.amax(dim=4), cosines.shape[3:4]).permute(0, 3, 1, 2)
        shrunk = F.interpolate(labels[:, None].float(), size=scores.shape[-2:], mode="nearest")
        cosines, classes = cosines.flatten(0, 2), shrunk.flatten().long()
        own = own_prototypes(cosines.detach(), classes)
        terms = {
            "prototypes": balanced_cross_entropy(scores, labels, self.config.loss.balance),
            **prototype_losses(cosines.flatten(1), own, settings.temperature),
        }
        weights = (settings.weight, settings.contrast, settings.compactness)
        weighted = [weight * term for weight, term in zip(weights, terms.values(), strict=True)]
        total = losses.total + torch.stack(weighted).sum()
        self.backward(segmenter, total, last=True)
        if not settings.placebo:
            self._update(pixels.detach().flatten(0, 2), own)
        return StepResult({"train": Losses({**losses.terms, **terms}, total)})

    @torch.no_grad()
    def _update(self, pixels: Tensor, own: Tensor) -> None:
        """Move the prototypes that have pixels to the centres of these."""
        numbers = torch.arange(self.updates.numel(), device=own.device)
        members = (own == numbers[:, None]).to(pixels)
        counted = torch.cat([members @ pixels, members.sum(dim=1, keepdim=True)], dim=1)
        counted = all_reduce_sum(counted).view(*self.updates.shape[:2], -1)
        shown = counted[..., -1:] > 0
        kept = (self.updates / (self.updates + 1)).clamp(max=self.settings.momentum)
        centres = F.normalize(counted[..., :-1], dim=2)
        moved = F.normalize(kept * self.prototypes + (1 - kept) * centres, dim=2)
        self.prototypes.copy_(torch.where(shown, moved, self.prototypes))
        self.updates += shown

    def state_dict(self) -> dict[str, Tensor]:
        """Return the prototypes (K, P, D) and the numbers of their updates (K, P, 1)."""
        return {"prototypes": self.prototypes, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of `state_dict`."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])


@torch.no_grad()
def own_prototypes(cosines: Tensor, classes: Tensor) -> Tensor:
    """Return the number of each pixel's own prototype, k·P + p for prototype p of its class k.

    Three rounds of Sinkhorn's algorithm over the pixels of all processes give the prototypes of a
    class nearly equal shares of its pixels. By the nearest prototype, one of the random first ones
    would take all pixels of its class, because features have similar directions.

    Args:
        cosines: Cosines of pixels and prototypes, (pixels, K, P).
        classes: Classes of the pixels, in 0..K-1; a pixel with 255 gets -100.
    """
    count, of_class = cosines.shape[1:]
    members = (classes[:, None] == torch.arange(count, device=classes.device)).to(cosines)
    index = classes.clamp(max=count - 1)
    within = cosines.take_along_dim(index[:, None, None], dim=1)[:, 0]
    shares = (_SHARPNESS * within).softmax(dim=1)
    for _ in range(_ROUNDS):
        of_prototypes = all_reduce_sum(members.T @ shares).clamp(min=1e-12)
        shares = shares / of_prototypes[index]
        shares = shares / shares.sum(dim=1, keepdim=True)
    own = index * of_class + shares.argmax(dim=1)
    return torch.where(classes < count, own, _NO_PROTOTYPE)


def prototype_losses(cosines: Tensor, own: Tensor, temperature: float) -> dict[str, Tensor]:
    """Return "contrast" and "compact", the means over labelled pixels of two losses.

    These are the cross-entropy of `cosines / temperature` at the own prototype, and
    (1 - own cosine)². As in `cross_entropy`, each process divides by the mean number of labelled
    pixels per process.

    Args:
        cosines: Cosines of pixels and prototypes, (pixels, K·P).
        own: Number of each pixel's own prototype, or -100.
        temperature: Divisor of the cosines.
    """
    labelled = own != _NO_PROTOTYPE
    divisor = all_reduce_sum(labelled.sum()).clamp(min=1) / world_size()
    entropy = F.cross_entropy(
        cosines / temperature, own, ignore_index=_NO_PROTOTYPE, reduction="sum"
    )
    nearness = cosines.take_along_dim(own.clamp(min=0)[:, None], dim=1)[:, 0]
    squares = ((1 - nearness).square() * labelled).sum()
    return {"contrast": entropy / divisor, "compact": squares / divisor}


METHODS = {"prototypes": Prototypes}
