"""Parameters that FSDP2 (`torch.distributed.fsdp.fully_shard`) splits over the processes.

Each process holds a part of a sharded tensor, a `DTensor`; gradients and the state of an optimizer
are split in the same way. A tensor that is not sharded passes through all functions unchanged.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pinmem_core.distributed import world_size


def shard(module: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Shard the parameters of `module` over all processes.

    A block has its parameters whole in its own forward and backward pass only. Parameters without
    dimensions cannot be sharded and stay whole in every process.

    Args:
        module: Module to shard; it must be called as a whole.
        blocks: Modules inside of it that are gathered one at a time.
        device: Device of the parameters.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    scalars = {parameter for parameter in module.parameters() if parameter.ndim == 0}
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
        if device.type == "cpu":  # gloo adds without a word where it is asked for a mean
            part.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each process holds a part of `tensor` only."""
    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of `tensor` in this process, with the same memory and without gradients."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Return tensors with the sharded ones whole, in the memory of the host.

    Every process must call this. The device holds one whole tensor at a time.

    Args:
        tensors: Tensors by name.
        keep: Whether this process needs the result, which is empty otherwise.
    """
    whole = {}
    for name, tensor in tensors.items():
        value = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if keep:
            whole[name] = value
    return whole


def sharded_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return `whole`, which all processes have, as a tensor that is sharded like another one."""
    if not isinstance(like, DTensor):
        return whole
    value = whole.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def exchanged(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Give parameters other values in the block, and their own ones afterwards.

    Args:
        parameters: Parameters to change.
        values: Values of the parameters' local parts.
    """
    kept = [local_part(p).clone() if is_sharded(p) else p.data for p in parameters]
    _set(parameters, values)
    try:
        yield
    finally:
        _set(parameters, kept)


@torch.no_grad()
def _set(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        if is_sharded(parameter):  # FSDP gathers from this memory
            local_part(parameter).copy_(value)
        else:
            parameter.data = value


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scale all gradients so that the norm of the whole gradient is at most `limit`.

    Args:
        parameters: Parameters with gradients that are averaged over the processes.
        limit: Maximum norm.
    """
    trained = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in trained if is_sharded(p) is sharded] for sharded in (True, False)]
    kinds = [of_kind for of_kind in kinds if of_kind]  # torch cannot mix them in one call
    norms = [get_total_norm([p.grad for p in k if p.grad is not None]) for k in kinds]
    norm = reduce(torch.hypot, [n.full_tensor() if isinstance(n, DTensor) else n for n in norms])
    for of_kind in kinds:
        clip_grads_with_norm_(of_kind, limit, norm)
