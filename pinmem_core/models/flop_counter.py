"""A FLOP and memory counter that intercepts every torch operation.

It also works with fake tensors (torch's FakeTensorMode), without any computation.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Cost:
    """Cost of a computation.

    Attributes:
        flops: Floating-point operations of convolutions and matrix products; a multiply-add counts
            as two.
        memory_bytes: Peak memory of all tensors, in bytes.
    """

    flops: int
    memory_bytes: int


def cost_of(compute: Callable[[], object], held: Iterable[Tensor] = ()) -> Cost:
    """Run `compute` and return its cost.

    Args:
        compute: Computation to measure.
        held: Tensors that exist before the computation.
    """
    with _Counter(held) as counter:
        compute()
    return Cost(counter.flops, counter.peak)


class _Counter(TorchDispatchMode):
    """Count FLOPs, and the bytes of each storage from its first use to its release.

    torch's own FlopCounterMode keeps tensors alive that are recomputed in the backward pass.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.flops = self.bytes = self.peak = 0
        for tensor in held:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.alive:
            return
        self.alive.add(storage)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.bytes -= size
