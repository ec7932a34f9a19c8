"""Cross-entropy at the labels' resolution that stores no tensor of that resolution."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pinmem_core.label_space import IGNORE_INDEX
from pinmem_core.models.decoders.base import resize


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
