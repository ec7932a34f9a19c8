"""What a computation would take, found out without computing it.

Tensors without content run through the real code; every operation that it calls is counted.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Footprint:
    """What a computation takes.

    Attributes:
        flops: Floating-point operations of convolutions and products; a multiplication and an
            addition are two.
        memory_bytes: Of all tensors that exist at once, at most.
    """

    flops: int
    memory_bytes: int


def footprint(compute: Callable[[], object], held: Iterable[Tensor] = ()) -> Footprint:
    """Return what `compute` takes.

    Args:
        compute: The computation; under torch's FakeTensorMode it takes no time to speak of.
        held: Tensors that exist before it.
    """
    with _PeakMemory(held) as memory, FlopCounterMode(display=False) as counter:
        compute()
    return Footprint(counter.get_total_flops(), memory.peak)


class _PeakMemory(TorchDispatchMode):
    """Adds up the bytes of every storage from the operation that makes it to its end."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.bytes = self.peak = 0
        for tensor in held:
            self._count(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.alive:
            return
        self.alive.add(storage)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.bytes -= size
