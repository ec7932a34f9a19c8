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


class _DividedCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, divisor: Tensor, weights: Tensor | None
    ) -> Tensor:
        differentiable = ctx.needs_input_grad[0]
        total = logits.new_zeros(())
        gradients = []
        for image, truth in zip(logits.detach().split(1), labels.split(1), strict=True):
            with torch.set_grad_enabled(differentiable):
                maps = resize(image.requires_grad_(differentiable), truth.shape[-2:])
                summed = F.cross_entropy(
                    maps, truth, weight=weights, ignore_index=IGNORE_INDEX, reduction="sum"
                )
                share = summed / divisor
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
