"""The categorical memory of *Pin the Memory*: one unit vector per class.

Source: docs/method.md, section 3; the functions follow the order of its equations.

Shapes: N images, D feature channels, K slots, h x w positions, H x W label pixels.
`read`, `write` and `class_sums` are pure functions of tensors; none of them changes the slots.
"""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinmem_core.distributed import all_reduce_sum, world_size
from pinmem_core.label_space import IGNORE_INDEX


def similarity(query: Tensor, slots: Tensor) -> Tensor:
    """Return the cosines (N, K, h, w) of unit queries (N, D, h, w) and unit slots (K, D)."""
    return torch.einsum("ndhw,kd->nkhw", query, slots)


def read(attention: Tensor, slots: Tensor) -> Tensor:
    """Return the value (N, D, h, w) that each position reads: the attention-weighted slots.

    Args:
        attention: Weight of each slot, (N, K, h, w); the weights sum to 1 over K.
        slots: Slots of the memory, (K, D).
    """
    return torch.einsum("nkhw,kd->ndhw", attention, slots)


def gumbel_noise(like: Tensor) -> Tensor:
    """Return standard Gumbel noise with the shape, dtype and device of `like`."""
    return -torch.empty_like(like).exponential_().log()


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sum features by class over the whole batch of all processes.

    Args:
        features: Features, (N, D, h, w).
        labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
        num_classes: Number of classes, K.

    Returns:
        Σ mask_k · feature (K, D), and Σ mask_k (K,). The masks are the bilinearly shrunk labels.
    """
    masks = soft_masks(labels, num_classes, features.shape[-2:], features.dtype)
    sums, counts = torch.einsum("nkhw,ndhw->kd", masks, features), masks.sum(dim=(0, 2, 3))
    if world_size() == 1:
        return sums, counts
    of_all = all_reduce_sum(torch.cat([sums, counts[:, None]], dim=1))  # one collective for both
    return of_all[:, :-1], of_all[:, -1]


def write(features: Tensor, labels: Tensor, slots: Tensor, momentum: float) -> Tensor:
    """Return the memory after writing a batch into it.

    A class with a positive count moves by 1 - momentum; the other classes keep their slot.

    Args:
        features: Features of unit length over D, (N, D, h, w).
        labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
        slots: Memory before the write, (K, D).
        momentum: Weight of the old slot, in 0..1.

    Returns:
        Slots (K, D) of unit length, with a graph to `features`.
    """
    sums, counts = class_sums(features, labels, len(slots))
    written = (counts != 0)[:, None]
    means = sums / torch.where(written, counts[:, None], 1)
    moved = momentum * slots + (1 - momentum) * means
    return F.normalize(torch.where(written, moved, slots.detach()), dim=1)


def class_prototypes(batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> Tensor:
    """Return the initial memory: the mean direction of each class over all `batches`.

    Args:
        batches: One or more pairs of raw features (N, D, h, w) and labels (N, H, W).
        num_classes: Number of classes, K.

    Returns:
        Slots (K, D) of unit length; zero for a class that occurs in no batch.
    """
    of_batches = (class_sums(F.normalize(f, dim=1), labels, num_classes) for f, labels in batches)
    sums, counts = reduce(lambda a, b: (a[0] + b[0], a[1] + b[1]), of_batches)
    return F.normalize(sums / counts.where(counts != 0, 1)[:, None], dim=1)


class Attention(NamedTuple):
    """Attention of the positions of a feature to the slots.

    Attributes:
        query: Feature of unit length, (N, D, h, w).
        scores: Cosines of query and slots, (N, K, h, w), without noise.
        weights: Weight of each slot, (N, K, h, w); those of a position sum to 1.
    """

    query: Tensor
    scores: Tensor
    weights: Tensor


class CategoricalMemory(nn.Module):
    """The slots, and the learned layers for reading and writing them.

    Args:
        num_classes: Number of classes and slots, K.
        dim: Feature channels, D.
        read: Attention in training, "gumbel" or "softmax"; evaluation always uses softmax.
        momentum: Weight of the old slot in a write, in 0..1.
        temperature: Divisor of the scores in the attention.
        residual: Whether the feature is added to the value that is read.
        gate: Initial scale of the value that is added, with `residual`.
        mask_empty: Whether zero slots get no attention.

    Attributes:
        slots: Persistent buffer (K, D), rows of unit length. Only the training code changes it.
        taken: Indices of the slots that come from another model, for `initialize_memory`.
        constant: Value (D,) that every position reads instead of the slots; None for the slots.
    """

    slots: Tensor
    taken: frozenset[int] = frozenset()
    constant: Tensor | None = None

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        read: str,
        momentum: float,
        temperature: float = 1.0,
        residual: bool = False,
        gate: float = 0.0,
        mask_empty: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.residual = residual
        self.mask_empty = mask_empty
        self.gumbel = read == "gumbel"
        self.momentum = momentum
        self.register_buffer("slots", F.normalize(torch.rand(num_classes, dim), dim=1))
        self.fuse = _conv_bn(2 * dim, dim)
        if residual:  # by default, the value that is read starts with zero weight
            nn.init.constant_(self.fuse.get_parameter("1.weight"), gate)
            nn.init.zeros_(self.fuse.get_parameter("1.bias"))
        self.write_map = _conv_bn(dim, dim)
        self.classifier = nn.Linear(dim, num_classes)
        nn.init.normal_(self.classifier.weight, std=1e-4)
        nn.init.zeros_(self.classifier.bias)

    def attention(self, feature: Tensor, slots: Tensor) -> Attention:
        """Return how each position of a feature (N, D, h, w) attends to slots (K, D).

        A Gumbel read adds noise in training; evaluation has none.
        """
        query = F.normalize(feature, dim=1)
        scores = similarity(query, slots)
        noisy = scores + gumbel_noise(scores) if self.training and self.gumbel else scores
        if self.mask_empty:
            empty = ~slots.any(dim=1)
            empty &= ~empty.all()  # an empty memory is read as it is
            noisy = noisy.masked_fill(empty[:, None, None], float("-inf"))
        return Attention(query, scores, (noisy / self.temperature).softmax(dim=1))

    def read(self, feature: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the refined feature F' (N, D, h, w) and the scores (N, K, h, w).

        F' = ReLU(BN(Conv([q ; r]))) for the query q and the value r that is read, without F itself.
        With `residual`, F' = ReLU(F + BN(Conv([q ; r]))).
        """
        query, scores, weights = self.attention(feature, slots)
        value = read(weights, slots)
        if self.constant is not None:
            value = self.constant[:, None, None].expand_as(value)
        refined = self.fuse(torch.cat([query, value], dim=1))
        return F.relu(refined + feature if self.residual else refined), scores

    def write(self, feature: Tensor, labels: Tensor, slots: Tensor) -> Tensor:
        """Return the memory after writing raw features (N, D, h, w) into `slots`."""
        mapped = F.normalize(F.relu(feature + self.write_map(feature)), dim=1)
        return write(mapped, labels, slots, self.momentum)


def _conv_bn(in_channels: int, out_channels: int) -> nn.Sequential:
    conv, norm = nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.constant_(norm.bias, 1e-4)
    return nn.Sequential(conv, norm)


def soft_masks(
    labels: Tensor, num_classes: int, size: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Return the one-hot masks of `labels`, resized bilinearly with aligned corners.

    The result equals `interpolate(one_hot(labels), size, mode="bilinear", align_corners=True)`,
    without the full-size one-hot tensor: each output position depends on four pixels only. Next to
    an ignored pixel, the masks of a position sum to less than 1.

    Args:
        labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
        num_classes: Number of classes, K.
        size: Size of the result, (h, w).
        dtype: Dtype of the result. It decides which weights at the border are exactly zero.

    Returns:
        Masks (N, K, h, w) in [0, 1].
    """
    (top, bottom, down), (left, right, across) = (
        _corner_taps(source, target, dtype, labels.device)
        for source, target in zip(labels.shape[-2:], size, strict=True)
    )
    classes = torch.where(labels == IGNORE_INDEX, num_classes, labels).long()
    masks = labels.new_zeros((len(labels), *size, num_classes), dtype=dtype)
    for row, row_weight in ((top, 1 - down), (bottom, down)):
        for column, column_weight in ((left, 1 - across), (right, across)):
            corner = F.one_hot(classes[:, row][:, :, column], num_classes + 1)[..., :num_classes]
            masks += corner * (row_weight[:, None] * column_weight)[..., None]
    return masks.permute(0, 3, 1, 2)


def _corner_taps(
    source: int, target: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lower and upper source index, and the upper weight, of `target` positions."""
    step = (source - 1) / (target - 1) if target > 1 else 0.0
    position = torch.arange(target, dtype=dtype, device=device) * torch.tensor(step, dtype=dtype)
    lower = position.long()
    return lower, (lower + 1).clamp(max=source - 1), position - lower
