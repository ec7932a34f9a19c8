"""Collectives over the processes that `torchrun` starts to train one network.

With a single process, the world size is 1 and every function here is the identity.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pinmem_core.errors import PinMemError

T = TypeVar("T")

_BUCKET_BYTES = 8 * 2**20
"""Bucket size for averaging tensors, in bytes: few reductions, and an early first one."""


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def started_by_torchrun() -> bool:
    """Return whether torchrun started several processes, of which this is one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Return the rank of this process on its machine, from 0; it is the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group() -> Iterator[None]:
    """Initialise the process group for the block; do nothing with a single process."""
    if not started_by_torchrun() or dist.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """Differentiable all-reduce: each input gets the sum of all output gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the differentiable sum of `tensor` over all processes."""
    if world_size() == 1:
        return tensor
    total: Tensor = _Sum.apply(tensor)
    return total


def all_gather_tensor(tensor: Tensor) -> Tensor:
    """Return the `tensor` of every process, stacked by rank, without gradients."""
    if world_size() == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)


@torch.no_grad()
def broadcast_tensors(tensors: Sequence[Tensor]) -> None:
    """Overwrite `tensors` with those of rank 0, with one broadcast per dtype."""
    if world_size() == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in group])
        dist.broadcast(flat, src=0)
        _unflatten(flat, group)


@torch.no_grad()
def all_reduce_mean(tensors: Sequence[Tensor]) -> None:
    """Replace each of `tensors`, all of one dtype, by its mean over all processes."""
    if world_size() == 1:
        return
    averages = _Averages()
    for tensor in tensors:
        averages.add(tensor)
    averages.finish()


@contextmanager
def averaged_gradients(module: nn.Module) -> Iterator[None]:
    """Average the gradients of a backward pass in the block over all processes.

    The reductions overlap with the backward pass. After the block, `.grad` holds the averages, also
    of gradients that the pass accumulated onto earlier averages. Those of sharded parameters are
    left to FSDP, which averages them anyway.
    """
    if world_size() == 1:
        yield
        return
    averages = _Averages()
    hooks = [
        parameter.register_post_accumulate_grad_hook(averages.add_gradient)
        for parameter in module.parameters()
        if parameter.requires_grad and not isinstance(parameter, DTensor)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    averages.finish()


class _Averages:
    """Average tensors over all processes, in buckets, asynchronously.

    All processes must add the same tensors in the same order, as a backward pass does.
    """

    def __init__(self) -> None:
        self._waiting: list[Tensor] = []
        self._bytes = 0
        self._started: list[tuple[list[Tensor], Tensor, dist.Work]] = []

    def add(self, tensor: Tensor) -> None:
        """Add a tensor; it must not change until `finish` replaces it."""
        self._waiting.append(tensor)
        self._bytes += tensor.nbytes
        if self._bytes >= _BUCKET_BYTES:
            self._start()

    def add_gradient(self, parameter: Tensor) -> None:
        """Add the gradient of a parameter."""
        assert parameter.grad is not None
        self.add(parameter.grad)

    @torch.no_grad()
    def finish(self) -> None:
        """Wait for the reductions, and replace all added tensors by their means."""
        if self._waiting:
            self._start()
        for tensors, flat, work in self._started:
            work.wait()
            _unflatten(flat.div_(world_size()), tensors)

    @torch.no_grad()
    def _start(self) -> None:
        tensors, self._waiting, self._bytes = self._waiting, [], 0
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._started.append((tensors, flat, dist.all_reduce(flat, async_op=True)))


def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the values of a flat concatenation back to `tensors`."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is set on any process, without synchronising with the GPU."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags)
    return bool(flags)


def all_gather(value: T) -> list[T]:
    """Return the values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_first_rank(work: Callable[[], T]) -> T:
    """Run `work` on rank 0; return its result or raise its error on all processes.

    Raises:
        PinMemError: `work` raised it.
    """
    if world_size() == 1:
        return work()
    shared: list[T | PinMemError | None] = [None]
    if rank() == 0:
        try:
            shared = [work()]
        except PinMemError as error:
            shared = [error]
    dist.broadcast_object_list(shared)
    (result,) = shared
    if isinstance(result, PinMemError):
        raise result
    return cast(T, result)
