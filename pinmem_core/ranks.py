"""The processes that train one network together, as `torchrun` starts them.

One process alone is a world of one rank; everything here is then the identity.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pinmem_core.errors import PinMemError

T = TypeVar("T")


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def started_by_torchrun() -> bool:
    """Return whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Return this process's number on its machine, from 0: the GPU that it should take."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined() -> Iterator[None]:
    """Join the other ranks while the block runs; nothing happens where there are none."""
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
    """Each rank's input reaches the result of every rank, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of every rank's `tensor`, the same on all; gradients flow to all of them."""
    if world_size() == 1:
        return tensor
    total: Tensor = _Sum.apply(tensor)
    return total


@torch.no_grad()
def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace each of `tensors`, of one type, by its mean over the ranks."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is set on any rank; waits for all, but not for the GPU."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags)
    return bool(flags)


def from_all(value: T) -> list[T]:
    """Return what every rank gave, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_first_rank(work: Callable[[], T]) -> T:
    """Do `work` on the first rank alone and return its result, or raise its error, on all.

    Raises:
        PinMemError: `work` raised it.
    """
    if world_size() == 1:
        return work()
    outcome: list[T | PinMemError | None] = [None]
    if rank() == 0:
        try:
            outcome = [work()]
        except PinMemError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome)
    (result,) = outcome
    if isinstance(result, PinMemError):
        raise result
    return cast(T, result)
