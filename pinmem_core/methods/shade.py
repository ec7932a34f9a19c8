"""`shade`: styles from a bank, and two consistencies (SHADE, Zhao et al., ECCV 2022).

The style of a feature map is the mean and the standard deviation of each channel. Every few epochs,
a bank takes the most different ones of the styles that the source images have after the stem. Each
image passes the network with its own style, and with a random mixture of the bank's.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pinmem_core.config import Names, Settings
from pinmem_core.distributed import all_gather_tensor, all_reduce_sum, world_size
from pinmem_core.errors import unknown_name
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.methods.base import Method, StepContext, StepResult
from pinmem_core.methods.losses import Losses, consistency_loss, training_pass
from pinmem_core.methods.style import Places, Style, restyle, style_of
from pinmem_core.models import Segmenter
from pinmem_core.models.backbones.base import Backbone

_THINGS = ("traffic light", "traffic sign", *CITYSCAPES.names[11:])
"""Cityscapes' classes of things: trainIds 6, 7 and 11 to 18."""
_FULL = 0.75
"""Share of things in a cell from which its feature is compared with that of the initial network."""


class Shade(Method):
    """SHADE: also train on features in other styles, and keep both predictions similar.

    L = CE(x, x') + auxiliary loss + λ·JS(p, p') + retrospection, with x' restyled from x.
    """

    memory = "none"
    meta = False

    class Config(Settings):
        """Settings of the method."""

        styles: int = Field(64, ge=1)
        """Number of styles in the bank, n; the weights of a mixture are Dirichlet(1/n)."""
        refresh_epochs: float = Field(3.0, gt=0)
        """Epochs between two updates of the bank; the first is before the first step."""
        bank_batches: int | None = Field(None, ge=1)
        """Batches whose images the bank chooses from; None: those of an epoch."""
        consistency: float = Field(10.0, ge=0)
        """Weight λ of the consistency of both predictions, by the mean over pixels."""
        retrospection: float = Field(1.0, ge=0)
        """Weight of the distance to the features of the initial network at things."""
        things: Names | None = None
        """Classes of things. None: those of Cityscapes, or what the label space maps to them."""
        placebo: bool = False
        """Give x' the style that x has: the bank does nothing."""

    def setup(self, segmenter: Segmenter) -> None:
        """Prepare the stem for restyling, and keep a frozen copy of the initial backbone."""
        self.things = things_of(segmenter.label_space, self.settings.things)
        self.initial: Backbone | None = None
        pretrained = self.config.init_weights or self.config.init_from
        if self.settings.retrospection and pretrained and self.things:
            self.initial = copy.deepcopy(segmenter.backbone).eval().requires_grad_(False)
        self.stem = Places(segmenter, [0])
        channels = self._styles(segmenter.eval(), _small_image(segmenter)).shape[2]
        self.bank = next(segmenter.parameters()).new_zeros(self.settings.styles, 2, channels)
        self.refreshed = -1

    def notices(self) -> list[str]:
        """Return why there is no retrospection, if it is on and impossible."""
        if self.initial or not self.settings.retrospection:
            return []
        why = (
            "the run starts without pretrained weights (init_weights)"
            if self.things
            else "the label space has no class of things (name some in method_config.things)"
        )
        return [f"shade trains without retrospection: {why}"]

    def step(self, context: StepContext) -> StepResult:
        """Accumulate the gradient of the losses on both styles of the batch into `.grad`."""
        segmenter, settings = context.segmenter, self.settings
        self._refresh_bank(context)
        segmenter.train()
        images, labels = context.batch.all()
        styles = self._drawn_styles(len(images))

        def doubled(_: int, maps: Tensor) -> Tensor:
            return torch.cat([maps, maps if settings.placebo else restyled(maps, styles)])

        with self.stem.changing(doubled):
            both = labels.repeat(2, 1, 1)
            losses, output = training_pass(segmenter, images, both, self.config.loss)
        consistency = consistency_loss(*output.logits.chunk(2))
        total = losses.total + settings.consistency * consistency
        terms = {**losses.terms, "js": consistency}
        if self.initial is not None:
            with torch.no_grad():
                before = segmenter.features(images, self.initial)[-1]
            features = output.encoding.features[-1]
            terms["retrospection"] = retrospection_loss(features, before, labels, self.things)
            total = total + settings.retrospection * terms["retrospection"]
        self.backward(segmenter, total, last=True)
        return StepResult({"train": Losses(terms, total)})

    def state_dict(self) -> dict[str, Tensor]:
        """Return the bank and the initial backbone."""
        initial = self.initial.state_dict() if self.initial is not None else {}
        return {"bank": self.bank, **{f"initial.{name}": t for name, t in initial.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the bank and the initial backbone."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def _refresh_bank(self, context: StepContext) -> None:
        """Choose the styles of the bank anew, with the current network, if it is time."""
        sources, iteration = context.sources, context.iteration
        epoch = sources.epoch if sources else 1
        due = iteration % max(1, round(self.settings.refresh_epochs * epoch)) == 0
        if self.settings.placebo or not due or self.refreshed == iteration:
            return
        self.refreshed = iteration
        first = self.config.iterations + iteration  # batches that no step trains on
        unseen = range(first, first + (self.settings.bank_batches or epoch))
        batches = sources.load(unseen) if sources else [context.batch]
        context.segmenter.eval()
        styles = [self._styles(context.segmenter, batch.all()[0]) for batch in batches]
        every = all_gather_tensor(torch.cat(styles)).flatten(0, 1)
        self.bank.copy_(every[farthest_points(every.flatten(1), len(self.bank))])

    def _styles(self, segmenter: Segmenter, images: Tensor) -> Tensor:
        """Return mean and deviation of the stem's maps of images, (N, 2, C)."""
        style = self.stem.styles(lambda: segmenter.features(images))[0]
        return torch.stack([part.flatten(1) for part in style], dim=1)

    def _drawn_styles(self, count: int) -> Tensor:
        """Return random mixtures of the bank's styles, (N, 2, C), from torch's CPU generator."""
        weights = dirichlet_weights(len(self.bank), count).to(self.bank)
        return torch.einsum("ns,spc->npc", weights, self.bank)


def dirichlet_weights(styles: int, count: int) -> Tensor:
    """Draw `count` vectors of weights from Dirichlet(1/n) over n styles, (count, n) float64."""
    concentration = torch.full((styles,), 1 / styles, dtype=torch.float64)
    drawn = torch.distributions.Dirichlet(concentration, validate_args=False)
    weights: Tensor = drawn.sample((count,))
    return weights


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Return the indices (count,) of points (N, C) that are far from one another.

    The first is the farthest from the mean of all; each next one is the farthest from its nearest
    chosen point. Points repeat if there are fewer than `count`.
    """
    apart = (points - points.mean(dim=0)).square().sum(dim=1)
    chosen = [apart.argmax()]
    nearest = torch.full_like(apart, torch.inf)
    for _ in range(count - 1):
        distances = (points - points[chosen[-1][None]]).square().sum(dim=1)
        nearest = torch.minimum(nearest, distances)
        chosen.append(nearest.argmax())
    return torch.stack(chosen)


def restyled(maps: Tensor, styles: Tensor) -> Tensor:
    """Return maps (N, C, H, W) in other styles (N, 2, C); their own styles are constants."""
    own = style_of(maps).map(Tensor.detach)
    mean, std = styles[..., None, None].unbind(dim=1)
    return restyle(maps, own, Style(mean, std))


def retrospection_loss(
    features: Tensor, before: Tensor, labels: Tensor, things: list[int]
) -> Tensor:
    """Return the mean squared distance to the initial network's features in cells full of things.

    Each process divides by the mean number of such cells per process; without any, the loss is 0.

    Args:
        features: Coarsest features of both styles of N images, (2N, C, h, w).
        before: Features of the initial network for these images, (N, C, h, w).
        labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
        things: TrainIds of things.
    """
    is_thing = torch.isin(labels, torch.tensor(things, device=labels.device)).to(torch.float32)
    size = before.shape[2], before.shape[3]
    cells = F.adaptive_avg_pool2d(is_thing[:, None], size) >= _FULL
    dtype = torch.promote_types(features.dtype, torch.float32)
    apart = (features.to(dtype) - before.to(dtype).repeat(2, 1, 1, 1)).square()
    weight = cells.repeat(2, 1, 1, 1).to(dtype)
    count = all_reduce_sum(weight.sum()).clamp(min=1) / world_size()
    return (apart.mean(dim=1, keepdim=True) * weight).sum() / count


def things_of(space: LabelSpace, names: Sequence[str] | None) -> list[int]:
    """Return the trainIds of the classes of things.

    Args:
        space: Label space.
        names: Names of the classes; None for those of Cityscapes' things, or what maps to them.

    Raises:
        ConfigError: A name is no class of the label space.
    """
    for name in names or ():
        if name not in space.names:
            raise unknown_name(f"class of {space.name}", name, space.names)
    if names or not space.maps_to(CITYSCAPES):
        return [k for k, name in enumerate(space.names) if name in (names or _THINGS)]
    table = space.table_to(CITYSCAPES)
    wanted = [CITYSCAPES.train_ids[name] for name in _THINGS]
    return [k for k in range(len(space)) if table[k] in wanted]


def _small_image(segmenter: Segmenter) -> Tensor:
    side = 2 * max(segmenter.backbone.strides[-1], segmenter.backbone.size_multiple)
    return next(segmenter.parameters()).new_zeros(1, 3, side, side)


METHODS = {"shade": Shade}
