"""The contexts of a first-order meta step: fast weights, and batch norm without running updates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pinmem_core.sharding import exchanged, local_part


@contextmanager
def fast_weights(module: nn.Module, step_size: Tensor) -> Iterator[None]:
    """Set every parameter to θ' = θ - α·∇θ in the block, and restore θ afterwards.

    Gradients are constants (first order), so the gradients of a loss at θ' add to ∇θ unchanged.

    Args:
        module: Module with the parameters θ and the gradients ∇θ.
        step_size: Step size α, 0-dim.
    """
    parameters = [p for p in module.parameters() if p.grad is not None]
    with exchanged(parameters, _moved(parameters, step_size)):
        yield


def _moved(parameters: Sequence[nn.Parameter], step_size: Tensor) -> Sequence[Tensor]:
    """Return θ - α·∇θ of the local part of each parameter."""
    values = [local_part(p) for p in parameters]
    gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
    if step_size.is_cuda:  # few kernels
        return torch._foreach_sub(values, torch._foreach_mul(gradients, step_size))
    return [
        torch.addcmul(value, gradient, step_size, value=-1)
        for value, gradient in zip(values, gradients, strict=True)
    ]


@contextmanager
def unrecorded_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise with batch statistics in the block, without updating the running statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
