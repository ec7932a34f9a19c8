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
    """Move every parameter θ to θ' = θ - α·∇θ in place; θ returns, to the last bit, on leaving.

    Gradients are taken as constants (first order), so those of a loss at θ' add to ∇θ unchanged.

    Args:
        module: Its parameters' gradients are ∇θ.
        step_size: α, 0-dim.
    """
    parameters = [p for p in module.parameters() if p.grad is not None]
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.addcmul_(parameter.grad, step_size, value=-1)  # type: ignore[arg-type]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(parameters, kept, strict=True):
                parameter.copy_(original)


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
