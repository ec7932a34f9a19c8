"""How much computing, memory and time an iteration takes, found out without training."""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.amp.grad_scaler import GradScaler

from pinmem_core.config import TrainConfig
from pinmem_core.errors import MachineError
from pinmem_core.footprint import Footprint, footprint
from pinmem_core.learning.iteration import Iteration
from pinmem_core.learning.loss_watch import LossWatch
from pinmem_core.learning.methods import methods
from pinmem_core.loading import Batch
from pinmem_core.model import Segmenter

_ROUNDS = 2
_CROPS = (64, 128)
"""Sides of the crops that a CPU is timed with, in pixels; seconds, whatever the network."""


@dataclass(frozen=True)
class Estimate:
    """What an iteration takes; for a meta method, the mean over the ways to split the domains.

    Attributes:
        flops: Floating-point operations; a multiplication and an addition are two.
        memory_bytes: Of all tensors at once, at most, in the most expensive of those ways.
        seconds: On the device, loading aside.
    """

    flops: float
    memory_bytes: int
    seconds: float


def estimate(
    config: TrainConfig, segmenter: Segmenter, batch: Batch, device: torch.device
) -> Estimate:
    """Return what an iteration takes; nothing is compiled.

    FLOPs are counted on tensors without content. On a GPU, time and memory are those of real
    iterations. Elsewhere the time is that of small crops, carried on to the full FLOPs, and the
    memory is that of the tensors.

    Args:
        config: Of the run, resolved.
        segmenter: Is trained a little, and of no use afterwards.
        batch: Of the run.
        device: That the run would take.

    Raises:
        MachineError: An iteration does not fit into the GPU's memory.
    """
    compute = config.compute.model_copy(update={"compile": False})
    iteration = Iteration(config.model_copy(update={"compute": compute}), segmenter, device)
    splits = [split.to(device) for split in _splits(config, batch)]
    full = [_footprint(iteration, split) for split in splits]
    flops, memory = fmean(f.flops for f in full), max(f.memory_bytes for f in full)
    if device.type == "cuda":
        return _measured_on_gpu(iteration, splits, Estimate(flops, memory, 0.0))
    return Estimate(flops, memory, _extrapolated(iteration, splits, flops))


def _splits(config: TrainConfig, batch: Batch) -> list[Batch]:
    """Return the batch in all numbers of meta-train domains, which are equally likely."""
    if not methods.get(config.method).meta:
        return [batch]
    order = (*batch.meta_train, *batch.meta_test)
    return [
        replace(batch, meta_train=order[:count], meta_test=order[count:])
        for count in range(1, len(order))
    ]


def _footprint(iteration: Iteration, batch: Batch) -> Footprint:
    """Return what an iteration takes, from tensors that have a shape and no content."""
    with FakeTensorMode() as fake:
        images, labels = fake.from_tensor(batch.images), fake.from_tensor(batch.labels)
        empty = {id(tensor): fake.from_tensor(tensor) for tensor in _tensors(iteration)}
        held = [images, labels, *empty.values()]
        iteration = copy.deepcopy(iteration, empty)
        iteration.watch = _Unwatched(images.device)
        iteration.scaler = GradScaler(enabled=False)
        batch = replace(batch, images=images, labels=labels)
        return footprint(partial(iteration.step, 0, batch), held)


def _tensors(iteration: Iteration) -> Iterator[Tensor]:
    """Yield all that a copy of `iteration` would copy."""
    yield from iteration.segmenter.parameters()
    yield from iteration.segmenter.buffers()
    for state in iteration.optimizer.state.values():
        yield from state.values()
    yield iteration.watch.bad


class _Unwatched(LossWatch):
    """Lets every loss pass: one without content is neither finite nor not."""

    def check(self) -> None:
        """Find nothing wrong."""


def _measured_on_gpu(iteration: Iteration, splits: Sequence[Batch], counted: Estimate) -> Estimate:
    """Return the estimate with the time and the memory that real iterations took."""
    device = splits[0].images.device
    torch.cuda.reset_peak_memory_stats(device)
    try:
        _, seconds = _timed(iteration, splits)
    except torch.OutOfMemoryError:
        total = torch.cuda.get_device_properties(device).total_memory
        raise MachineError(
            f"an iteration needs about {counted.memory_bytes / 1e9:.1f} GB, more than is free of "
            f"the {total / 1e9:.1f} GB of {device}.",
            "Lower '--batch' or '--crop', or try '--set compute.recompute=true'.",
        ) from None
    peak = torch.cuda.max_memory_allocated(device)
    return replace(counted, memory_bytes=peak, seconds=seconds)


def _extrapolated(iteration: Iteration, splits: Sequence[Batch], flops: float) -> float:
    """Return the time of `flops`, on the line through those of two small crops.

    A crop no larger than these is timed as it is. The line does not start at zero: moving the
    weights takes the same time for crops of any size.
    """
    if splits[0].images.shape[-1] <= _CROPS[-1]:
        return _timed(iteration, splits)[1]
    (few, short), (more, longer) = (
        _timed(iteration, [_cropped(split, side) for split in splits]) for side in _CROPS
    )
    slope = max(0.0, (longer - short) / (more - few))
    return longer + slope * (flops - more)


def _cropped(batch: Batch, side: int) -> Batch:
    images, labels = batch.images[..., :side, :side], batch.labels[..., :side, :side]
    return replace(batch, images=images.contiguous(), labels=labels.contiguous())


def _timed(iteration: Iteration, splits: Sequence[Batch]) -> tuple[float, float]:
    """Return FLOPs and seconds of an iteration, the mean over `splits`; counting warms up."""
    flops = [footprint(partial(iteration.step, 0, split)).flops for split in splits]
    seconds = [min(_seconds(iteration, split) for _ in range(_ROUNDS)) for split in splits]
    return fmean(flops), fmean(seconds)


def _seconds(iteration: Iteration, batch: Batch) -> float:
    wait_for(batch.images.device)
    began = time.perf_counter()
    iteration.step(0, batch)
    wait_for(batch.images.device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
