"""Optimizers. To add one, add a module here with a dict `OPTIMIZERS` from names to functions.

A function takes the parameter groups and `OptimConfig`, and returns a `torch.optim.Optimizer`. A
snapshot holds the tensors and numbers in its `state[parameter]`, and the numbers in its
`param_groups`; other attributes are lost in a resumed run. Its `step` takes no arguments. If it
respects `found_inf`, as torch's fused optimizers do, it can skip a step without synchronising with
the host.
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
