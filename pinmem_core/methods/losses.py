"""The loss terms of the paper (docs/method.md, section 3) and their weighted sum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pinmem_core.config import LossConfig
from pinmem_core.distributed import all_reduce_sum, world_size
from pinmem_core.errors import ConfigError
from pinmem_core.label_space import IGNORE_INDEX
from pinmem_core.models import Segmenter, SegmenterOutput
from pinmem_core.models.decoders.base import resize


@dataclass(frozen=True)
class Losses:
    """The losses of one forward pass.

    Attributes:
        terms: Unweighted loss terms by name: "seg", "aux", and where they apply "read", "div" and
            "cls".
        total: Weighted sum of the terms.
        written: Memory (K, D) after the write of the forward pass, with its graph; None without a
            write.
    """

    terms: dict[str, Tensor]
    total: Tensor
    written: Tensor | None = None


def mean_losses(parts: Sequence[Losses]) -> Losses:
    """Return the mean losses of several equal parts of a batch, without `written`."""
    terms = {
        name: torch.stack([part.terms[name] for part in parts]).mean() for name in parts[0].terms
    }
    return Losses(terms, torch.stack([part.total for part in parts]).mean())


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over labelled pixels; 0, not NaN, without labelled pixels.

    Each process divides by the mean number of labelled pixels per process. So the mean of the
    results of all processes is the mean over the pixels of all processes.

    Args:
        logits: Logits, (N, K, h, w); they are resized to the labels.
        labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
    """
    labelled = all_reduce_sum((labels != IGNORE_INDEX).sum()).to(logits.dtype)
    return divided_cross_entropy(logits, labels, labelled.clamp(min=1) / world_size())


def balanced_cross_entropy(logits: Tensor, labels: Tensor, balance: float) -> Tensor:
    """Return the cross-entropy with a weight for each class that depends on its frequency.

    Args:
        logits: Logits, (N, K, h, w); they are resized to the labels.
        labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
        balance: Exponent in 0..1: a pixel of a class with n pixels in the batch of all processes
            has the weight n^-balance.
    """
    if not balance:
        return cross_entropy(logits, labels)
    pixels = labels.flatten()
    counts = labels.new_zeros(IGNORE_INDEX + 1).scatter_add_(0, pixels, torch.ones_like(pixels))
    counts = all_reduce_sum(counts[: logits.shape[1]]).to(logits.dtype)
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -balance, 0)
    divisor = (weights * counts).sum().clamp(min=1e-12) / world_size()
    return divided_cross_entropy(logits, labels, divisor, weights)


def auxiliary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy at the resolution of `logits` (N, K, h, w), with nearest labels."""
    shrunk = F.interpolate(labels[:, None].float(), size=logits.shape[-2:], mode="nearest")
    return cross_entropy(logits, shrunk[:, 0].long())


def read_loss(scores: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the cohesion loss: the feature of each position should match the slot of its class.

    Args:
        scores: Cosines of features and slots, (N, K, h, w).
        labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
        temperature: Divisor of the scores.
    """
    return cross_entropy(scores / temperature, labels)


def divergence_loss(slots: Tensor) -> Tensor:
    """Return the mean positive cosine between different slots (K, D) of unit length."""
    cosines = (slots @ slots.T).clamp(min=0)
    count = len(slots)
    return (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))


def classification_loss(class_logits: Tensor) -> Tensor:
    """Return the cross-entropy of classifying slot k as class k; `class_logits` is (K, K)."""
    return F.cross_entropy(
        class_logits, torch.arange(len(class_logits), device=class_logits.device)
    )


def consistency_loss(logits: Tensor, others: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of two predictions, the mean over all pixels, in nats.

    With p and q their softmax and m = (p + q) / 2: (KL(p || m) + KL(q || m)) / 2, in 0..ln 2.

    Args:
        logits: Logits, (N, K, h, w).
        others: Logits of the same pixels, (N, K, h, w).
    """
    p, q = logits.log_softmax(dim=1), others.log_softmax(dim=1)
    middle = torch.logaddexp(p, q) - math.log(2)
    each = p.exp() * (p - middle) + q.exp() * (q - middle)
    return each.sum(dim=1).mean() / 2


def training_losses(
    segmenter: Segmenter,
    images: Tensor,
    labels: Tensor,
    weights: LossConfig,
    *,
    slots: Tensor | None = None,
    write: bool = False,
) -> Losses:
    """Run one training forward pass, and return the losses of `training_pass`."""
    return training_pass(segmenter, images, labels, weights, slots=slots, write=write)[0]


def training_pass(
    segmenter: Segmenter,
    images: Tensor,
    labels: Tensor,
    weights: LossConfig,
    *,
    slots: Tensor | None = None,
    write: bool = False,
) -> tuple[Losses, SegmenterOutput]:
    """Run one training forward pass: read, optionally write; return losses and output.

    Args:
        segmenter: Network in training mode.
        images: Normalised images, (N, 3, H, W).
        labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
        weights: Weights of the terms other than the segmentation loss.
        slots: Memory to read, (K, D); None for the segmenter's own.
        write: Whether to write the batch into a copy of the segmenter's memory, and add the losses
            of the result.
    """
    encoding = segmenter.encode(images)
    # Runs before the decoder, so that its backward pass runs after the decoder's maps are freed.
    auxiliary = segmenter.auxiliary_logits(encoding)
    output = segmenter.segment(encoding, slots)
    pixel_loss = partial(balanced_cross_entropy, balance=weights.balance)
    terms = segmenter.decoder.loss(output.decoded, labels, pixel_loss)
    _require_terms(terms, segmenter)
    if auxiliary is not None:
        terms["aux"] = auxiliary_loss(auxiliary, labels)
    written = None
    if output.scores is not None and segmenter.config.memory and segmenter.memory is not None:
        terms["read"] = read_loss(output.scores, labels, segmenter.config.memory.temperature)
        if write:
            memory = segmenter.memory
            written = memory.write(encoding.feature, labels, memory.slots)
            terms["div"] = divergence_loss(written)
            terms["cls"] = classification_loss(memory.classifier(written))
    factors = {
        "aux": weights.auxiliary,
        "read": weights.read,
        "div": weights.divergence,
        "cls": weights.classification,
    }
    total = torch.stack([factors.get(name, 1.0) * term for name, term in terms.items()]).sum()
    return Losses(terms, total, written), output


def _require_terms(terms: Any, segmenter: Segmenter) -> None:
    """Raise ConfigError if the losses of a decoder are none, or would be replaced by others."""
    taken = {"read", "div", "cls"} | ({"aux"} if segmenter.auxiliary is not None else set())
    if not (
        isinstance(terms, dict)
        and terms
        and all(isinstance(term, Tensor) and term.ndim == 0 for term in terms.values())
    ):
        problem = "returns no losses by name, tensors of 0 dimensions"
    elif odd := sorted(taken & {*terms}):
        problem = f"names a loss '{odd[0]}', as another loss of the training is named"
    else:
        return
    raise ConfigError(f"the decoder '{segmenter.config.decoder}' {problem}.")


def divided_cross_entropy(
    logits: Tensor, labels: Tensor, divisor: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return the sum of -w_y log p_y over the labelled pixels, divided by `divisor`, 0-dim.

    The forward pass computes the gradient image by image. So the K maps at the labels' resolution
    exist for one image at a time, and not for the whole batch until the backward pass.

    Args:
        logits: Logits, (N, K, h, w); they are resized to the labels before the softmax.
        labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
        divisor: Divisor of the sum, 0-dim.
        weights: Weights of the classes, (K,); None for equal weights of 1.
    """
    divided: Tensor = _DividedCrossEntropy.apply(logits, labels, divisor, weights)
    return divided


def summed_cross_entropy(
    maps: Tensor, labels: Tensor, weights: Tensor | None, *, by_pixel: bool
) -> Tensor:
    """Return the sum of -w_y log p_y over the labelled pixels, 0-dim.

    Args:
        maps: Logits, (N, K, H, W).
        labels: Labels, (N, H, W), in 0..K-1; 255 is ignored.
        weights: Weights of the classes, (K,); None for equal weights of 1.
        by_pixel: Whether to flatten the pixels into a list. On a GPU, torch's loss for maps uses
            atomic operations and is not deterministic; the loss for a list is.
    """
    if not by_pixel:
        return F.cross_entropy(
            maps, labels, weight=weights, ignore_index=IGNORE_INDEX, reduction="sum"
        )
    pixels = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    losses = F.cross_entropy(
        pixels, labels.flatten(), weight=weights, ignore_index=IGNORE_INDEX, reduction="none"
    )
    return losses.sum()


def _laid_out(maps: Tensor) -> Tensor:
    """Return maps in the memory layout of the loss: channels last on a GPU."""
    return maps.contiguous(memory_format=torch.channels_last) if maps.is_cuda else maps


class _DividedCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, divisor: Tensor, weights: Tensor | None
    ) -> Tensor:
        differentiable = ctx.needs_input_grad[0]
        total = logits.new_zeros(())
        gradients: list[Tensor] = []
        for image, truth in zip(logits.detach().split(1), labels.split(1), strict=True):
            with torch.set_grad_enabled(differentiable):
                image = _laid_out(image).requires_grad_(differentiable)
                maps = resize(image, truth.shape[-2:])
                share = summed_cross_entropy(maps, truth, weights, by_pixel=maps.is_cuda) / divisor
            if differentiable:
                gradients += torch.autograd.grad(share, image)
            total += share.detach()
        if differentiable:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None
