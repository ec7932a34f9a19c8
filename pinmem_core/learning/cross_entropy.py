"""Cross-entropy at the labels' resolution that keeps nothing of that resolution."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pinmem_core.labels import IGNORE_INDEX
from pinmem_core.model.head import resize


def divided_cross_entropy(
    logits: Tensor, labels: Tensor, divisor: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return the sum of -w_y log p_y over the labelled pixels, divided, 0-dim.

    The gradient is taken at once, image by image: of K maps at the labels' resolution those of one
    image exist at a time, instead of a batch's until the backward pass.

    Args:
        logits: (N, K, h, w), resized to the labels' resolution before the softmax.
        labels: (N, H, W).
        divisor: 0-dim.
        weights: (K,) of the classes; None weighs all 1.
    """
    divided: Tensor = _DividedCrossEntropy.apply(logits, labels, divisor, weights)
    return divided


def summed_cross_entropy(
    maps: Tensor, labels: Tensor, weights: Tensor | None, *, by_pixel: bool
) -> Tensor:
    """Return the sum of -w_y log p_y over the labelled pixels, 0-dim.

    Args:
        maps: (N, K, H, W) logits.
        labels: (N, H, W).
        weights: (K,) of the classes; None weighs all 1.
        by_pixel: Take the pixels as one list. Torch's loss of maps adds up by atomic operations on
            a GPU, in an order that changes from run to run; the loss of a list does not.
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
    """Return small maps laid out as the loss reads large ones: by pixel on a GPU."""
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
