"""Optimizers. To add one, add a module here with a dict `OPTIMIZERS` from names to functions.

A function takes the parameter groups and `OptimConfig`, and returns a `torch.optim.Optimizer`. Its
state must exist from the start, because a snapshot is restored into it. Its `step` must respect
`found_inf`, as torch's fused optimizers do, to skip a step without synchronising with the host.
"""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from pinmem_core.config import OptimConfig
from pinmem_core.registry import Registry

Groups = list[dict[str, Any]]
"""Parameter groups with `params`, `lr`, `weight_decay`, and `lr_scale`, the factor of `lr`."""

optimizers: Registry[Callable[[Groups, OptimConfig], Optimizer]] = Registry(
    "optimizer", __name__, "OPTIMIZERS"
)
