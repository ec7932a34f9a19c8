"""Measure the time that a run takes before it starts."""

import copy
import time
from collections.abc import Sequence
from functools import partial

import torch

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Batch, Domain
from pinmem_core.distributed import any_rank, on_first_rank, world_size
from pinmem_core.evaluation import Target
from pinmem_core.inference import PROTOCOLS, Predictor
from pinmem_core.models import Segmenter
from pinmem_core.models.flop_counter import cost_of
from pinmem_core.training.dry_run import domain_splits, seconds_of, step_tensors, wait_for
from pinmem_core.training.step import TrainStep
from pinmem_core.training.throughput import duration, peak_memory
from pinmem_core.training.time_limit import Timing

PROTOCOL = "paper-train"
"""Protocol for the scores of a run."""
_MEASURED_SECONDS = 3.0
_MEASURED_ITERATIONS = 12
_CROPS = (64, 128)
"""Sides of the crops from which a long run on a CPU is extrapolated, in pixels."""
_LONG = 1e8
"""Pixels of a run from which it is measured before it starts; fewer take minutes."""
_SCORED_SIDE = 256
_SCORING_FACTOR = 1.25
"""Time of scoring an image as a multiple of that of its prediction."""
_HOURS = 3
"""Hours from which the plan says how to shorten a run."""


def is_long(config: TrainConfig, domains: int) -> bool:
    """Return whether a run is long enough to be measured before it starts."""
    pixels = domains * config.batch * config.augmentation.crop**2
    return config.iterations * pixels > _LONG


def measure(
    config: TrainConfig,
    segmenter: Segmenter,
    domains: Sequence[Domain],
    scored: Sequence[Target],
    device: torch.device,
) -> Timing:
    """Return the time of a run's parts, measured in a few seconds on a copy of its network.

    A run without `minutes` whose crops are large is extrapolated from small crops on a CPU, unless
    its backbone is sharded, because the memory of sharded tensors cannot be counted. Every
    process of several must call this; all return the same result.

    Args:
        config: Resolved configuration of the run.
        segmenter: Initial network; it stays unchanged.
        domains: Source domains.
        scored: Domains that are scored at the end.
        device: Device of the run.
    """
    compute = config.compute.model_copy(update={"compile": False, "graph": False})
    plain = config.model_copy(update={"compute": compute})
    step = TrainStep(plain, copy.deepcopy(segmenter), device)
    large = config.augmentation.crop > _CROPS[-1]
    if config.minutes is None and large and device.type != "cuda" and not config.compute.shard:
        iteration, memory = _extrapolated(step, domains)
    else:
        iteration, memory = _measured(step, domains), peak_memory(device)
    scoring = _scoring_seconds(step, scored)
    sizes = [target.samples[len(target.samples) // 2] for target in scored]
    counts = [len(target.samples) for target in scored]
    each = [scoring * sample.width * sample.height / world_size() for sample in sizes]
    timing = Timing(iteration, tuple(zip(each, counts, strict=True)), memory)
    return on_first_rank(lambda: timing)


def _measured(step: TrainStep, domains: Sequence[Domain]) -> float:
    """Return the mean seconds of a few iterations after the first one."""
    began = time.perf_counter()
    first, done = 0.0, 0
    for iteration, batch in enumerate(step.loader(domains, range(_MEASURED_ITERATIONS))):
        step.step(min(iteration, step.config.iterations - 1), batch)  # schedules end there
        wait_for(step.device)
        done, spent = iteration, time.perf_counter() - began
        first = first or spent
        if any_rank(spent > _MEASURED_SECONDS):
            break
    return (spent - first) / done if done else first


def _extrapolated(step: TrainStep, domains: Sequence[Domain]) -> tuple[float, int]:
    """Return seconds and bytes of an iteration, by the lines through those of two small crops."""
    loader = iter(step.loader(domains, range(1)))
    began = time.perf_counter()
    batch = next(loader)
    loading = time.perf_counter() - began
    splits = domain_splits(step.config, batch)
    split = splits[len(splits) // 2]
    parts = [_cropped(split, side) for side in _CROPS]
    (short, few), (long, many) = (_cost_of(step, part) for part in parts)
    small, large = (part.images.shape[1] * part.images.shape[-1] ** 2 for part in parts)
    pixels = batch.images.shape[1] * step.config.augmentation.crop**2
    further = (pixels - large) / (large - small)
    computing = long + further * max(0.0, long - short)
    workers = step.config.workers
    seconds = max(loading / workers, computing) if workers else loading + computing
    return seconds, round(many + further * (many - few))


def _cropped(batch: Batch, side: int) -> Batch:
    """Return small crops of at most two images of each domain."""
    return batch.map(lambda tensor: tensor[:, :2, ..., :side, :side].contiguous())


def _cost_of(step: TrainStep, batch: Batch) -> tuple[float, int]:
    """Return seconds and bytes of an iteration; counting the bytes serves as warm-up."""
    held = [batch.images, batch.labels, *batch.more_views, *step_tensors(step)]
    memory = cost_of(partial(step.step, 0, batch), held).memory_bytes
    return seconds_of(step, batch), memory


def _scoring_seconds(step: TrainStep, scored: Sequence[Target]) -> float:
    """Return the seconds of scoring a pixel, measured on a part of one image."""
    if not scored:
        return 0.0
    samples = scored[0].samples
    image = samples[len(samples) // 2].read()[0][:_SCORED_SIDE, :_SCORED_SIDE]
    predictor = Predictor(step.network([]), device=str(step.device), protocol=PROTOCOLS[PROTOCOL])
    predictor.predict(image)
    began = time.perf_counter()
    predictor.predict(image)
    return _SCORING_FACTOR * (time.perf_counter() - began) / (image.shape[0] * image.shape[1])


def plan_lines(
    config: TrainConfig, domains: Sequence[Domain], device: torch.device, timing: Timing | None
) -> list[str]:
    """Return the plan of a run in one to four lines.

    Args:
        config: Configuration of the run.
        domains: Source domains.
        device: Device of the run.
        timing: Measured time; None for a short run.
    """
    model, images = config.model, sum(len(domain.samples) for domain in domains)
    lines = [
        f"plan: {config.method} with {model.backbone} and {model.decoder} on {device}; "
        f"{config.iterations:,} iterations of {len(domains)} x {config.batch} crops of "
        f"{config.augmentation.crop} px from {images:,} images"
    ]
    if config.optim.warmup >= config.iterations:
        lines.append(
            f"the warm-up, optim.warmup={config.optim.warmup}, is as long as the run: the learning "
            f"rate never reaches optim.lr={config.optim.lr:g}"
        )
    if timing is None:
        return lines
    total = timing.total(config)
    parts = {
        "training": config.iterations * timing.iteration,
        "initial memory": timing.initial_memory(config),
        "scoring": timing.scores(config.evaluation.max_images),
    }
    split = ", ".join(f"{name} {duration(part)}" for name, part in parts.items() if part >= 1)
    memory = f", {timing.memory_bytes / 1e9:.1f} GB of memory" if timing.memory_bytes else ""
    lines.append(f"estimate: about {duration(total)} ({split}){memory}")
    if total > 3600 * _HOURS:
        lines.append("shorten it: '--time 30m' fits the run into half an hour; or '--iterations'")
    return lines
