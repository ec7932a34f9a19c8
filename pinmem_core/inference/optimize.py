"""Optimize a network for inference without changing its function, and measure its memory."""

import copy
from functools import partial
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pinmem_core.models import Segmenter
from pinmem_core.models.flop_counter import cost_of
from pinmem_core.models.norm import AlphaBatchNorm
from pinmem_core.models.speedups import speed_up_fusion

_SIDES = (64, 128)
"""Sides of the two square images that memory is measured with, in pixels."""


@torch.no_grad()
def optimize_for_inference(segmenter: Segmenter) -> Segmenter:
    """Return a folded copy that computes the same function faster, for use without gradients.

    Batch norms that depend on the image run in place. On a CPU, the decoder convolves feature maps
    before it resizes them.

    Args:
        segmenter: Segmenter in evaluation mode.
    """
    quick = folded(segmenter)
    for _, norm in _followed(quick):
        if isinstance(norm, AlphaBatchNorm):
            norm.inplace = True
    if next(quick.parameters()).device.type == "cpu":
        speed_up_fusion(quick)
    return quick if _are_alike(quick, segmenter) else folded(segmenter)


@torch.no_grad()
def folded(segmenter: Segmenter) -> Segmenter:
    """Return a copy with batch norms folded into the convolutions before them.

    If folding changes the logits of a small image by more than rounding, return a plain copy.

    Args:
        segmenter: Segmenter in evaluation mode.
    """
    copied = copy.deepcopy(segmenter)
    names = {module: name for name, module in copied.named_modules()}
    for conv, norm in _followed(copied):
        if not isinstance(norm, AlphaBatchNorm) or not norm.alpha:
            copied.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
            copied.set_submodule(names[norm], nn.Identity())
    return copied if _are_alike(copied, segmenter) else copy.deepcopy(segmenter)


def _are_alike(network: Segmenter, other: Segmenter) -> bool:
    """Return whether two networks agree on a small image up to rounding (1e-3 of the logits)."""
    image = _small_image(other, _SIDES[0])
    expected = other(image)
    close = 1e-3 * expected.abs().max().item()
    if not isfinite(close):
        return False
    return torch.allclose(network(image), expected, rtol=0, atol=close)


def _followed(network: Segmenter) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return each (convolution, batch norm) pair where the norm's input is the conv's output.

    The pairs are recorded by hooks during the forward pass of a small image.
    """
    made: list[tuple[Tensor, nn.Conv2d]] = []
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made.append((output, module))
        elif isinstance(module, nn.BatchNorm2d):
            pairs.extend((conv, module) for values, conv in made if values is inputs[0])

    hooks = [module.register_forward_hook(watch) for module in network.modules()]
    try:
        network(_small_image(network, _SIDES[0]))
        return pairs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def bytes_per_pixel(segmenter: Segmenter) -> float:
    """Return the peak memory of prediction in float32, in bytes per pixel, without the weights.

    The value is the slope between the peaks of two small images, so that the weights cancel.
    """
    small, large = (_peak(segmenter, _small_image(segmenter, side)) for side in _SIDES)
    return (large - small) / (_SIDES[1] ** 2 - _SIDES[0] ** 2)


def _peak(segmenter: Segmenter, image: Tensor) -> int:
    return cost_of(partial(segmenter, image)).memory_bytes


def _small_image(segmenter: Segmenter, side: int) -> Tensor:
    """Return a grey gradient (1, 3, side, side) with dtype and device of the segmenter."""
    weight = next(segmenter.parameters())
    gradient = torch.linspace(-2, 2, side * side, dtype=weight.dtype, device=weight.device)
    return gradient.reshape(1, 1, side, side).expand(1, 3, -1, -1)
