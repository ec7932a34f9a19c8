"""The loss terms of the paper (docs/method.md, section 3) and their weighted sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pinmem_core.config import LossConfig
from pinmem_core.labels import IGNORE_INDEX
from pinmem_core.learning.cross_entropy import divided_cross_entropy
from pinmem_core.model import Segmenter
from pinmem_core.ranks import sum_over_ranks, world_size


@dataclass(frozen=True)
class Losses:
    """The losses of one forward.

    Attributes:
        terms: Unweighted, by name: "seg", "aux", "read", "div", "cls" as far as they apply.
        total: Their weighted sum.
        written: The memory (K, D) after the forward's write, with its graph; None if none was.
    """

    terms: dict[str, Tensor]
    total: Tensor
    written: Tensor | None = None


def mean_losses(parts: Sequence[Losses]) -> Losses:
    """Return the losses of several equal parts of a batch, averaged; nothing written is kept."""
    terms = {
        name: torch.stack([part.terms[name] for part in parts]).mean() for name in parts[0].terms
    }
    return Losses(terms, torch.stack([part.total for part in parts]).mean())


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over labelled pixels; 0, not NaN, where there are none.

    Logits (N, K, h, w) are resized to the labels (N, H, W).

    With several ranks, the mean of what they return is the mean over the pixels of all: each
    divides by the labelled pixels that a rank has on average.
    """
    labelled = sum_over_ranks((labels != IGNORE_INDEX).sum()).to(logits.dtype)
    return divided_cross_entropy(logits, labels, labelled.clamp(min=1) / world_size())


def balanced_cross_entropy(logits: Tensor, labels: Tensor, balance: float) -> Tensor:
    """Return the cross-entropy in which classes count more equally than by their pixels.

    Args:
        logits: (N, K, h, w), resized to the labels.
        labels: (N, H, W).
        balance: A pixel of a class with n pixels in the batch of all ranks weighs n^-balance.
    """
    if not balance:
        return cross_entropy(logits, labels)
    pixels = labels.flatten()
    counts = labels.new_zeros(IGNORE_INDEX + 1).scatter_add_(0, pixels, torch.ones_like(pixels))
    counts = sum_over_ranks(counts[: logits.shape[1]]).to(logits.dtype)
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -balance, 0)
    divisor = (weights * counts).sum().clamp(min=1e-12) / world_size()
    return divided_cross_entropy(logits, labels, divisor, weights)


def auxiliary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at the resolution of `logits` (N, K, h, w), labels resized to nearest."""
    shrunk = F.interpolate(labels[:, None].float(), size=logits.shape[-2:], mode="nearest")
    return cross_entropy(logits, shrunk[:, 0].long())


def read_loss(scores: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cohesion: each position's feature should be closest to the slot of its class.

    Args:
        scores: (N, K, h, w) cosines of features and slots.
        labels: (N, H, W).
        temperature: Divides the scores.
    """
    return cross_entropy(scores / temperature, labels)


def divergence_loss(slots: Tensor) -> Tensor:
    """Mean positive cosine between different slots (K, D) of unit length."""
    cosines = (slots @ slots.T).clamp(min=0)
    count = len(slots)
    return (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))


def classification_loss(class_logits: Tensor) -> Tensor:
    """Each slot k should be classified as k; `class_logits` is (K, K)."""
    return F.cross_entropy(
        class_logits, torch.arange(len(class_logits), device=class_logits.device)
    )


def training_losses(
    segmenter: Segmenter,
    images: Tensor,
    labels: Tensor,
    weights: LossConfig,
    *,
    slots: Tensor | None = None,
    write: bool = False,
) -> Losses:
    """Run one training forward: read, then (if asked) write, and gather the losses.

    Args:
        segmenter: In training mode.
        images: (N, 3, H, W), normalised.
        labels: (N, H, W).
        weights: Of the terms beside the segmentation loss.
        slots: The memory to read; None for the segmenter's own.
        write: Write the batch into the segmenter's memory and add the losses of the result. The
            buffer itself does not change.
    """
    encoding = segmenter.encode(images)
    # Before the decoder, so that its backward pass comes when the decoder's maps are gone.
    auxiliary = segmenter.auxiliary_logits(encoding)
    output = segmenter.segment(encoding, slots)
    terms = {
        "seg": balanced_cross_entropy(output.logits, labels, weights.balance),
        "aux": auxiliary_loss(auxiliary, labels),
    }
    written = None
    if output.scores is not None and segmenter.config.memory and segmenter.memory is not None:
        terms["read"] = read_loss(output.scores, labels, segmenter.config.memory.temperature)
        if write:
            memory = segmenter.memory
            written = memory.write(encoding.feature, labels, memory.slots)
            terms["div"] = divergence_loss(written)
            terms["cls"] = classification_loss(memory.classifier(written))
    factors = {
        "seg": 1.0,
        "aux": weights.auxiliary,
        "read": weights.read,
        "div": weights.divergence,
        "cls": weights.classification,
    }
    total = torch.stack([factors[name] * term for name, term in terms.items()]).sum()
    return Losses(terms, total, written)
