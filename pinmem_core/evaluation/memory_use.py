"""Measure whether a network uses its memory.

The query q of a position is its feature of unit length, and the value r is the mixture of slots
that it reads. If r is nearly an affine function of q, the convolution over both can do without r.
The ablation decides: the same network is scored again while every position reads the mean of all
values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import reduce
from math import log
from operator import add
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pinmem_core.data.transforms import normalize
from pinmem_core.distributed import all_gather
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation.bootstrap import paired_interval
from pinmem_core.evaluation.evaluate import evaluate_domain, read_shard
from pinmem_core.evaluation.memory_analysis import MAX_PIXELS, reduced
from pinmem_core.evaluation.results import LEVEL, DomainResult
from pinmem_core.evaluation.targets import Target
from pinmem_core.events import Listener, ignore
from pinmem_core.inference import Predictor
from pinmem_core.models.memory import CategoricalMemory, read

USED = 0.005
"""Least mIoU, in 0..1, that the mean value must cost for a memory to count as used."""
_TINY = 1e-12
"""Share of the largest eigenvalue below which a direction of the queries does not vary."""


@dataclass(frozen=True)
class MemoryUse:
    """How much a network uses its memory on a target.

    Attributes:
        r2: Share of the variance of the values that the best affine function of the queries gives,
            in 0..1; None if the values do not vary.
        entropy: Mean entropy of the attention, divided by that of equal weights, in 0..1.
        gate: Mean size of the scales of the norm through which query and value pass.
        coverage: Share of slots that were ever written, i.e. that are not zero.
        miou: mIoU of the network, in 0..1.
        miou_of_mean: mIoU while every position reads the mean value.
        cost: miou - miou_of_mean.
        low: Lower end of the 95 % interval of `cost`, by the paired bootstrap over images.
        high: Upper end of that interval.
    """

    r2: float | None
    entropy: float
    gate: float
    coverage: float
    miou: float
    miou_of_mean: float
    cost: float
    low: float
    high: float

    @property
    def used(self) -> bool:
        """Whether the mean value costs at least half a point, with an interval above 0."""
        return self.cost >= USED and self.low > 0

    def as_json(self) -> dict[str, Any]:
        """Return the attributes, and "used"."""
        return {**asdict(self), "used": self.used}


@torch.inference_mode()
def memory_use(
    predictor: Predictor, target: Target, result: DomainResult, *, on_event: Listener = ignore
) -> MemoryUse:
    """Measure the use of the memory on a target; distributed processes share the work.

    Args:
        predictor: Predictor of a network with memory.
        target: Target, whose images are encoded as a whole in the protocol's view.
        result: Result of the predictor on the target.
        on_event: Callback for progress events.

    Raises:
        ConfigError: The network has no memory.
        DataError: A file cannot be read.
    """
    memory = memory_of(predictor)
    shown = read_shard(
        target.samples, predictor.protocol, on_event=on_event, task=f"reading for {target.name}"
    )
    own = (_moments(predictor, sample.image) for sample in shown)
    total = reduce(add, all_gather(reduce(add, own, Moments.none(memory.slots.shape[1]))))
    with reading(predictor, total.mean_value):
        task = f"scoring {target.name} without the memory"
        ablated = evaluate_domain(predictor, target, on_event=on_event, task=task)
    mious = [of.scores.miou or 0.0 for of in (result, ablated)]
    low, high = paired_interval(ablated.images, result.images, level=LEVEL)
    return MemoryUse(
        r2=total.r2(),
        entropy=total.entropy / total.count / log(len(memory.slots)),
        gate=memory.fuse.get_parameter("1.weight").abs().mean().item(),
        coverage=memory.slots.any(dim=1).double().mean().item(),
        miou=mious[0],
        miou_of_mean=mious[1],
        cost=mious[0] - mious[1],
        low=low,
        high=high,
    )


def memory_of(predictor: Predictor) -> CategoricalMemory:
    """Return the memory of a predictor's network.

    Raises:
        ConfigError: The network has no memory.
    """
    memory = predictor.segmenter.memory
    if memory is None:
        raise ConfigError("the network has no memory.", "Evaluate it without '--memory'.")
    return memory


@contextmanager
def reading(predictor: Predictor, value: Tensor) -> Iterator[None]:
    """Let every position read `value` (D,) in the predictions of a block."""
    memory = predictor.network.memory
    assert memory is not None
    memory.constant = value.to(memory.slots)
    try:
        yield
    finally:
        memory.constant = None


@dataclass(frozen=True)
class Moments:
    """Sums over positions, for the regression of the values on the queries, in float64.

    Attributes:
        count: Number of positions.
        entropy: Sum of the entropies of the attention, in nats.
        sums: Sums of the queries and values, (2D,).
        products: Sums of the products of all pairs of them, (2D, 2D).
    """

    count: int
    entropy: float
    sums: Tensor
    products: Tensor

    @classmethod
    def of(cls, queries: Tensor, values: Tensor, entropy: float = 0.0) -> "Moments":
        """Return the sums of queries and values, each (1, D, h, w)."""
        both = torch.cat([queries, values], dim=1)[0].flatten(1).cpu().double()
        return cls(both.shape[1], entropy, both.sum(dim=1), both @ both.T)

    @classmethod
    def none(cls, dim: int) -> "Moments":
        """Return the sums over no position of `dim` channels."""
        sums = torch.zeros(2 * dim, dtype=torch.float64)
        return cls(0, 0.0, sums, torch.outer(sums, sums))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count,
            self.entropy + other.entropy,
            self.sums + other.sums,
            self.products + other.products,
        )

    @property
    def mean_value(self) -> Tensor:
        """Mean value, (D,)."""
        return self.sums.chunk(2)[1] / self.count

    def r2(self) -> float | None:
        """Return the share of the values' variance that an affine function of the queries gives."""
        means = self.sums / self.count
        covariance = self.products / self.count - torch.outer(means, means)
        dim = len(means) // 2
        of_queries, shared = covariance[:dim, :dim], covariance[:dim, dim:]
        variance = covariance[dim:, dim:].trace()
        if variance <= _TINY * self.products[dim:, dim:].trace() / self.count:
            return None
        inverse = torch.linalg.pinv(of_queries, rtol=_TINY, hermitian=True)
        explained = (shared * (inverse @ shared)).sum()
        return float((explained / variance).clamp(0, 1))


def _moments(predictor: Predictor, image: NDArray[np.uint8]) -> Moments:
    """Return the sums over the positions of one image (H, W, 3)."""
    segmenter, memory = predictor.segmenter, memory_of(predictor)
    image = reduced(image, MAX_PIXELS, Image.Resampling.BICUBIC)
    pixels = torch.tensor(image, device=predictor.device).permute(2, 0, 1)[None]
    feature = segmenter.encode(normalize(pixels, segmenter.normalization)).feature
    query, _, weights = memory.attention(feature, memory.slots)
    entropy = torch.special.entr(weights.double()).sum().item()
    return Moments.of(query, read(weights, memory.slots), entropy)
