"""Cross-entropy of small logits with large labels, without a large gradient for each image."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pinmem_core.labels import IGNORE_INDEX
from pinmem_core.model.head import resize
from pinmem_core.ranks import sum_over_ranks, world_size


def cross_entropy(logits: Tensor, labels: Tensor, balance: float = 0.0) -> Tensor:
    """Return the mean cross-entropy over labelled pixels; 0, not NaN, where there are none.

    With several ranks, the mean of what they return is the mean over the pixels of all: each
    divides by the weight of labelled pixels that a rank has on average.

    Args:
        logits: (N, K, h, w); are resized to the labels.
        labels: (N, H, W).
        balance: A pixel of a class with n pixels in the batch of all ranks weighs n^-balance, so
            that at 1 all classes count the same.
    """
    pixels = labels.flatten()
    counts = labels.new_zeros(IGNORE_INDEX + 1).scatter_add_(0, pixels, torch.ones_like(pixels))
    counts = sum_over_ranks(counts[: logits.shape[1]]).to(logits.dtype)
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -balance, 0)
    summed: Tensor = _SummedCrossEntropy.apply(logits, labels, weights)
    return summed * world_size() / (weights * counts).sum().clamp(min=1e-12)


class _SummedCrossEntropy(torch.autograd.Function):
    """The weighted sum over pixels, one image after the other.

    The gradient is taken at once: what lives on is of the logits' size, not of the labels'. In the
    paper's setting a graph of the whole batch would keep 180 MB for each of the losses.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        total, gradients = logits.new_zeros(()), []
        for seen, truth in zip(logits.detach().split(1), labels.split(1), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                image = seen.requires_grad_(ctx.needs_input_grad[0])
                loss = F.cross_entropy(
                    _at_size(image, truth.shape[1:]),
                    truth,
                    weight=weights,
                    ignore_index=IGNORE_INDEX,
                    reduction="sum",
                )
            if ctx.needs_input_grad[0]:
                gradients += torch.autograd.grad(loss, image)
            total += loss.detach()
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        return torch.cat(ctx.saved_tensors) * scale, None, None


def _at_size(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    return logits if logits.shape[2:] == size else resize(logits, size)
