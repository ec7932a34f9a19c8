"""What a computation takes: every operation that torch is asked for is looked at.

The tensors may be without content (torch's FakeTensorMode); then nothing is computed.
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
        compute: The computation.
        held: Tensors that exist before it.
    """
    with _Meter(held) as meter:
        compute()
    return Footprint(meter.flops, meter.peak)


class _Meter(TorchDispatchMode):
    """Adds up operations, and the bytes of each storage from its first sight to its end.

    torch's own FlopCounterMode would keep tensors alive that are computed anew in the backward.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.flops = self.bytes = self.peak = 0
        for tensor in held:
            self._see(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.alive:
            return
        self.alive.add(storage)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.bytes -= size
