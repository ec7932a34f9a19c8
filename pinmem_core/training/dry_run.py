"""A dry run: the plan of a run, and the FLOPs, memory and time of an iteration."""

import copy
import os
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import astuple, dataclass, replace
from functools import partial
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.amp.grad_scaler import GradScaler

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Batch, Domain
from pinmem_core.data.loader import DomainLoader
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.data.transforms import IMAGENET, Normalization
from pinmem_core.devices import pick_device
from pinmem_core.errors import DataError, MachineError
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.methods import methods
from pinmem_core.models import Segmenter
from pinmem_core.models.flop_counter import Cost, cost_of
from pinmem_core.training.feature_cache import cache_line
from pinmem_core.training.setup import initial_segmenter, load_data, resolve, with_classes
from pinmem_core.training.step import FiniteLossCheck, TrainStep
from pinmem_core.training.time_limit import Timing, within_time
from pinmem_core.visualize import (
    GAP,
    caption,
    colorize,
    heading,
    legend,
    side_by_side,
    stacked,
)

Measure = Callable[[Sequence[Batch]], tuple[float, float]]
"""Function from the splits of a batch to mean FLOPs and seconds of an iteration."""
_ROUNDS = 2
_CROPS = (64, 128)
"""Sides of the crops for timing a CPU, in pixels; timing takes seconds with any network."""


@dataclass(frozen=True)
class Estimate:
    """Cost of an iteration; for a meta method, the mean over the splits of the domains.

    Attributes:
        flops: Floating-point operations; a multiply-add counts as two.
        memory_bytes: Peak memory of all tensors, in bytes, for the most expensive split.
        seconds: Time on the device, without loading, in seconds.
    """

    flops: float
    memory_bytes: int
    seconds: float


def estimate(
    config: TrainConfig, segmenter: Segmenter, batch: Batch, device: torch.device
) -> Estimate:
    """Return the cost of an iteration, without compilation.

    FLOPs are counted on fake tensors. On a GPU, time and memory are measured in real iterations.
    On other devices, the time is extrapolated from small crops to the full FLOPs, and the memory is
    that of the fake tensors.

    Args:
        config: Resolved configuration of the run.
        segmenter: Network for the measurements; they change its weights.
        batch: Batch of the run.
        device: Device of the run.

    Raises:
        MachineError: An iteration does not fit into the GPU's memory.
    """
    compute = config.compute.model_copy(update={"compile": False})
    iteration = TrainStep(config.model_copy(update={"compute": compute}), segmenter, device)
    splits = [split.to(device) for split in domain_splits(config, batch)]
    full = [iteration_cost(iteration, split) for split in splits]
    flops, memory = fmean(f.flops for f in full), max(f.memory_bytes for f in full)
    measure = partial(timed, iteration)
    if device.type == "cuda":
        return measured_on_gpu(measure, splits, Estimate(flops, memory, 0.0))
    return Estimate(flops, memory, extrapolated_seconds(measure, splits, flops))


def domain_splits(config: TrainConfig, batch: Batch) -> list[Batch]:
    """Return the batch once per possible number of meta-train domains; all are equally likely."""
    if not methods.get(config.method).meta:
        return [batch]
    order = (*batch.meta_train, *batch.meta_test)
    return [
        replace(batch, meta_train=order[:count], meta_test=order[count:])
        for count in range(1, len(order))
    ]


def iteration_cost(iteration: TrainStep, batch: Batch) -> Cost:
    """Return the cost of an iteration, counted on fake tensors.

    Fake tensors have no values. Where a step depends on values, e.g. to match masks, the cost is
    extrapolated from two small crops.
    """
    try:
        return _counted(iteration, batch)
    except (DynamicOutputShapeException, DataDependentOutputException):
        held = [batch.images, batch.labels, *batch.more_views, *step_tensors(iteration)]
        few, many = (
            cost_of(partial(iteration.step, 0, _cropped(batch, side)), held) for side in _CROPS
        )
    small, large, whole = (side**2 for side in (*_CROPS, batch.images.shape[-1]))
    further = (whole - large) / (large - small)
    flops, memory = (
        round(more + further * (more - less))
        for less, more in zip(astuple(few), astuple(many), strict=True)
    )
    return Cost(flops, memory)


def _counted(iteration: TrainStep, batch: Batch) -> Cost:
    tensors = list(step_tensors(iteration))
    with FakeTensorMode() as fake:
        batch = batch.map(fake.from_tensor)
        empty = {id(tensor): fake.from_tensor(tensor) for tensor in tensors}
        held = [batch.images, batch.labels, *batch.more_views, *empty.values()]
        shapes = iteration.method_tensors  # on the meta device, which cannot be copied here
        iteration = copy.deepcopy(iteration, {**empty, id(shapes): shapes})
        # Fake tensors have no values to check.
        iteration.loss_check = FiniteLossCheck(batch.images.device, deferred=True)
        iteration.optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
        iteration.scaler = GradScaler(enabled=False)
        return cost_of(partial(iteration.step, 0, batch), held)


def step_tensors(iteration: TrainStep) -> Iterator[Tensor]:
    """Yield all tensors that `iteration` holds between two steps."""
    held = (part for part in vars(iteration.method).values() if isinstance(part, nn.Module))
    for network in (iteration.segmenter, *held):
        yield from network.parameters()
        yield from network.buffers()
    for name, state in iteration.states().items():
        if name != "model":
            yield from state.values()
    yield iteration.loss_check.bad


def measured_on_gpu(measure: Measure, splits: Sequence[Batch], counted: Estimate) -> Estimate:
    """Return the estimate with the measured time and memory of real iterations.

    Raises:
        MachineError: An iteration does not fit into the GPU's memory.
    """
    device = splits[0].images.device
    torch.cuda.reset_peak_memory_stats(device)
    try:
        _, seconds = measure(splits)
    except torch.OutOfMemoryError:
        total = torch.cuda.get_device_properties(device).total_memory
        raise MachineError(
            f"an iteration needs about {counted.memory_bytes / 1e9:.1f} GB, more than is free of "
            f"the {total / 1e9:.1f} GB of {device}.",
            "Lower '--batch' or '--crop', or try '--set compute.recompute=true'.",
        ) from None
    peak = torch.cuda.max_memory_allocated(device)
    return replace(counted, memory_bytes=peak, seconds=seconds)


def extrapolated_seconds(measure: Measure, splits: Sequence[Batch], flops: float) -> float:
    """Return the time for `flops`, extrapolated linearly from two small crops.

    A crop that is not larger than these is timed directly. The line does not start at zero, because
    updating the weights takes the same time for any crop.
    """
    if splits[0].images.shape[-1] <= _CROPS[-1]:
        return measure(splits)[1]
    (few, short), (more, longer) = (
        measure([_cropped(split, side) for split in splits]) for side in _CROPS
    )
    slope = max(0.0, (longer - short) / (more - few))
    return longer + slope * (flops - more)


def _cropped(batch: Batch, side: int) -> Batch:
    return batch.map(lambda tensor: tensor[..., :side, :side].contiguous())


def timed(iteration: TrainStep, splits: Sequence[Batch]) -> tuple[float, float]:
    """Return mean FLOPs and seconds of an iteration over `splits`; counting serves as warm-up."""
    flops = [cost_of(partial(iteration.step, 0, split)).flops for split in splits]
    seconds = [min(seconds_of(iteration, split) for _ in range(_ROUNDS)) for split in splits]
    return fmean(flops), fmean(seconds)


def seconds_of(iteration: TrainStep, batch: Batch) -> float:
    """Return the seconds of an iteration."""
    wait_for(batch.images.device)
    began = time.perf_counter()
    iteration.step(0, batch)
    wait_for(batch.images.device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batch_sheet(
    batch: Batch,
    names: Sequence[str],
    strong: Set[int],
    tile_width: int = 192,
    normalization: Normalization = IMAGENET,
    space: LabelSpace = CITYSCAPES,
) -> NDArray[np.uint8]:
    """Return a picture of a batch: one row per domain, with each image next to its labels.

    A heading above each row names the domain, its role in the meta step and its augmentation. The
    legend lists the classes that occur.

    Args:
        batch: Batch on any device.
        names: Names of the D domains.
        strong: Indices of the domains with strong colour jitter.
        tile_width: Width of each image and label map, in pixels.
        normalization: Mean and standard deviation of the images' normalisation.
        space: Label space of the labels.
    """
    pictures = _pictures(batch.images, normalization)
    labels = batch.labels.cpu().numpy().astype(np.uint8)
    width = 2 * batch.images.shape[1] * (tile_width + GAP)
    rows = [caption(["image", "labels"] * batch.images.shape[1], tile_width)]
    for domain, name in enumerate(names):
        part = "meta-train" if domain in batch.meta_train else "meta-test"
        kind = "strong" if domain in strong else "standard"
        rows.append(heading(name, f"{part} · {kind} augmentation", width))
        colored = [colorize(label, space) for label in labels[domain]]
        pairs = zip(pictures[domain], colored, strict=True)
        rows.append(side_by_side([picture for pair in pairs for picture in pair], tile_width))
    rows.append(legend(set(np.unique(labels).tolist()), width, space))
    return stacked(rows)


def _pictures(images: Tensor, normalization: Normalization) -> NDArray[np.uint8]:
    """Return normalised images (D, B, 3, H, W) as RGB pictures (D, B, H, W, 3)."""
    values = images.cpu().movedim(2, -1).numpy() * normalization.std + normalization.mean
    return (values * 255).round().clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Plan:
    """Plan of a run that was not started.

    Attributes:
        config: Resolved configuration.
        domains: Number of training samples by domain.
        scored: Number of samples by domain that is scored after training.
        parameters: Numbers of "trained" and "total" parameters.
        batch_shape: Shape of the first batch, (domains, images, channels, height, width).
        batch_picture: RGB picture of the first batch, (H, W, 3).
        device: Device of the run.
        estimate: Cost of an iteration on this device, without loading.
        loading_seconds: Time to load a batch with one process, in seconds.
    """

    config: TrainConfig
    domains: dict[str, int]
    scored: dict[str, int]
    parameters: dict[str, int]
    batch_shape: tuple[int, ...]
    batch_picture: NDArray[np.uint8]
    device: torch.device
    estimate: Estimate
    loading_seconds: float

    @property
    def seconds_per_iteration(self) -> float:
        """Estimated time of an iteration; worker processes load during the computation."""
        if self.config.workers == 0:
            return self.loading_seconds + self.estimate.seconds
        loading_at_once = min(self.config.workers, os.cpu_count() or 1)
        return max(self.loading_seconds / loading_at_once, self.estimate.seconds)

    @property
    def iterations(self) -> int:
        """Number of iterations: those that fit into the limit of time, if there is one."""
        if self.config.minutes is None:
            return self.config.iterations
        return within_time(self.config, Timing(self.seconds_per_iteration), spent=0).iterations

    @property
    def training_seconds(self) -> float:
        """Estimated time of the iterations, without memory initialisation and scoring."""
        return self.iterations * self.seconds_per_iteration


def plan(config: TrainConfig, *, on_event: Listener = ignore) -> Plan:
    """Resolve a configuration, build its network, open its data, and run a few small steps.

    Pretrained weights are checked if they are on this machine, and never downloaded.

    Raises:
        ConfigError: The configuration contradicts itself, or its weights do not exist.
        DataError: A source, a target or the weights are missing, empty or damaged.
        MachineError: The device is not available, or its memory is too small for an iteration.
    """
    config = resolve(config)
    device = pick_device(config.device)
    prepare_synthetic([*config.sources, *config.targets], on_event)
    try:
        config = with_classes(config, on_event)
    except DataError:
        initial_segmenter(config, download=False)  # missing weights are reported before data
        raise
    segmenter = initial_segmenter(config, download=False, on_event=on_event)
    data = load_data(config, on_event)
    domains, targets = data.domains, [*data.validation, *data.targets]
    segmenter.freeze(config.optim.freeze)
    batch, picture, loading_seconds = _first_batch(domains, config, device, segmenter.normalization)
    if config.compute.cache_features:
        line = cache_line(segmenter, domains, config)
        on_event(Notice(f"{line}; the estimate is that of a run without it"))
    on_event(Notice("estimating memory and time ..."))
    return Plan(
        config,
        {domain.name: len(domain.samples) for domain in domains},
        {target.name: len(target.samples) for target in targets},
        segmenter.count_parameters(),
        tuple(batch.images.shape),
        picture,
        device,
        estimate(config, segmenter, batch, device),
        loading_seconds,
    )


def _first_batch(
    domains: Sequence[Domain],
    config: TrainConfig,
    device: torch.device,
    normalization: Normalization,
) -> tuple[Batch, NDArray[np.uint8], float]:
    """Return a run's first batch, a picture of it, and the loading time of the next one."""
    alone = config.model_copy(update={"workers": 0})
    views = methods.get(config.method).views
    loader = DomainLoader.of(
        domains, alone, range(2), device, normalization=normalization, views=views
    )
    batches = iter(loader)
    first = next(batches)
    names, strong = [domain.name for domain in domains], loader.crops.strong_domains(0)
    picture = batch_sheet(
        first, names, strong, normalization=normalization, space=config.model.label_space
    )
    wait_for(device)
    began = time.perf_counter()
    next(batches)
    wait_for(device)
    return first, picture, time.perf_counter() - began
