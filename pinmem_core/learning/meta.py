"""The two switches of a first-order meta step.

Weights that move and come back, and batch norm that does not remember.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def fast_weights(module: nn.Module, step_size: Tensor) -> Iterator[None]:
    """Have every parameter hold θ' = θ - α·∇θ; θ itself, kept aside, returns on leaving.

    Gradients are taken as constants (first order), so those of a loss at θ' add to ∇θ unchanged.

    Args:
        module: Its parameters' gradients are ∇θ.
        step_size: α, 0-dim.
    """
    parameters = [p for p in module.parameters() if p.grad is not None]
    kept = [p.data for p in parameters]
    for parameter in parameters:
        parameter.data = torch.addcmul(parameter.data, parameter.grad, step_size, value=-1)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for parameter, original in zip(parameters, kept, strict=True):
            parameter.data = original


@contextmanager
def unrecorded_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise by batch statistics without moving the running ones."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
