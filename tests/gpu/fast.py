"""How fast the step is at the paper's setting, and where its time goes.

Every variant lives in a process of its own, made at the start; each is told when to build its
network, so that one computes at a time. The compiled one compiles at once, while others compute.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from statistics import fmean, median
from typing import Any

import torch
import torch.nn.functional as F
from rows import Results, Row
from step import (
    NAIVE,
    SAME,
    held_memory,
    measured_peak,
    naive_step,
    needed_flop,
    pinmem_step,
    precision_of,
    process,
    random_batch,
    run_config,
    untrained_segmenter,
)
from torch.profiler import ProfilerActivity, profile

from pinmem_core.config import ComputeConfig
from pinmem_core.models.decoders.base import resize_by_products

_FAST = {"precision": "bf16", "channels_last": True}
VARIANTS = {
    NAIVE: ComputeConfig(),
    "pinmem bf16": ComputeConfig(**_FAST),
    "pinmem bf16, graph": ComputeConfig(**_FAST, graph=True),
    "pinmem bf16, compiled": ComputeConfig(**_FAST, compile=True),
    "pinmem bf16, compiled, graph": ComputeConfig(**_FAST, compile=True, graph=True),
    SAME: ComputeConfig(),
    "pinmem tf32": ComputeConfig(tf32=True, channels_last=True),
    "pinmem fp16": ComputeConfig(precision="fp16", channels_last=True),
}
LATER = (SAME, "pinmem tf32", "pinmem fp16")
"""Variants that are measured last, when nothing else is left to do."""
COMPILED = tuple(name for name, compute in VARIANTS.items() if compute.compile)
SETTLED = 8
"""Iterations, the last of those whose losses are compared, that are averaged."""
BANDS = {"float32": 0.01, "tf32": 0.03, "bf16": 0.05, "fp16": 0.1}
"""How far a variant's mean loss may be from that of the first one that was measured, relative.
Rounding grows from step to step; in fp16 the scaler skips the first steps."""
SPEED_GOAL, SHARE_GOAL = 8.0, 0.35
TOP = 14
"""Kernels that the profile lists."""


def variant(pipe: Connection, name: str, options: Namespace) -> None:
    """Serve commands: build, losses N, time N, profile N, peak; None ends."""
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    config = run_config(options, VARIANTS[name])
    device = torch.device(options.device)
    number = 0
    if pipe.recv() != "build":
        return
    segmenter, batch = untrained_segmenter(config), random_batch(config)
    batches = [
        batch,
        batch.__class__(batch.images, batch.labels, batch.meta_test, batch.meta_train),
    ]
    step = (naive_step if name == NAIVE else pinmem_step)(config, segmenter, device)

    def run(count: int) -> Callable[[], dict[str, dict[str, float]]]:
        nonlocal number
        for _ in range(count):
            losses = step(number, batches[number % 2])
            number += 1
        return losses

    began = time.perf_counter()
    run(2)()
    pipe.send(time.perf_counter() - began)
    if options.device == "cuda":  # without the workspaces that cuDNN tried out
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    while command := pipe.recv():
        what, count = command
        if what == "losses":
            each = [run(1) for _ in range(count)]
            pipe.send([sum(phase["total"] for phase in losses().values()) for losses in each])
        elif what == "time":
            began = time.perf_counter()
            run(count)()
            pipe.send(time.perf_counter() - began)
        elif what == "profile":
            pipe.send(profiled(run, count, options.device))
        else:
            pipe.send(held_memory(options.device)[1])


@dataclass
class Worker:
    """A variant's process, seen from outside."""

    pipe: Connection
    losses: list[float] = field(default_factory=list)
    rate: float = 0.0

    def ask(self, what: str, count: int, patience: float) -> Any:
        """Return the answer to a command.

        Raises:
            TimeoutError: None came within `patience` seconds.
            RuntimeError: The process ended.
        """
        self.pipe.send((what, count))
        return self.answer(patience)

    def answer(self, patience: float) -> Any:
        """Return what the process sends next."""
        if not self.pipe.poll(patience):
            raise TimeoutError(f"no answer within {patience:.0f} s")
        try:
            return self.pipe.recv()
        except EOFError:
            raise RuntimeError("the process of this variant ended (its error is above)") from None


@contextmanager
def workers(options: Namespace, wanted: list[str]) -> Iterator[dict[str, Worker]]:
    """Start the processes of all variants; the first compiled one begins to compile at once."""
    names = [n for n in VARIANTS if n in wanted and (options.compile or n not in COMPILED)]
    if options.tiny:
        names = [n for n in names if n in (NAIVE, SAME)]  # a CPU takes bf16 slowly
    with ExitStack() as stack:
        found = {n: Worker(stack.enter_context(process(variant, n, options))) for n in names}
        if COMPILED[0] in found:  # the next one finds what this one compiled in torch's cache
            found[COMPILED[0]].pipe.send("build")
        yield found


def measure(
    results: Results, options: Namespace, found: dict[str, Worker], wanted: list[str]
) -> dict[str, Any]:
    """Add the limits, the rows of the variants but `LATER`, and the profile of the fastest."""
    limits: dict[str, Any] = {}
    if found or "limits" in wanted:
        results.run("fast", "limits", lambda row: limits.update(measure_limits(row, options)), 20)
    measure_variants(results, options, found, limits, [n for n in found if n not in LATER])
    ready = {n: w for n, w in found.items() if w.rate and n != NAIVE}
    if ready:
        fastest = max(ready, key=lambda n: ready[n].rate)
        results.run("fast", "profile", lambda row: profile_row(row, fastest, ready[fastest]), 10)
    if "resize, backward" in wanted:
        results.run("fast", "resize, backward", lambda row: resize_backward(row, options), 5)
    return limits


def measure_variants(
    results: Results,
    options: Namespace,
    found: dict[str, Worker],
    limits: dict[str, Any],
    names: list[str],
) -> None:
    """Add the rows of some variants."""
    for name in names:
        patience = max(5.0, results.left() - 5)
        results.run(
            "fast",
            name,
            lambda row, n=name, p=patience: speed(row, n, found[n], found, limits, options, p),
            5,
        )


def measure_limits(row: Row, options: Namespace) -> dict[str, Any]:
    """Measure the device's matrix rates and copies, and count what an iteration needs."""
    with process(_limits, options) as pipe:
        if not pipe.poll(90):
            raise TimeoutError("no answer within 90 s")
        found: dict[str, Any] = pipe.recv()
    row.values |= {f"TFLOP/s {k}": v / 1e12 for k, v in found["peaks"].items()}
    row.values |= {"TFLOP of an iteration": found["flop"] / 1e12, "copy GB/s": found["copy"] / 1e9}
    return found


def _limits(pipe: Connection, options: Namespace) -> None:
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    precisions = {precision_of(compute): None for compute in VARIANTS.values()}
    precisions.pop("fp16")
    side = 128 if options.tiny else None
    peaks = {p: measured_peak(options.device, p, side) for p in precisions}
    peaks["fp16"] = peaks["bf16"]
    flop = needed_flop(run_config(options, ComputeConfig()))
    pipe.send({"peaks": peaks, "flop": flop, "copy": _copy_rate(options)})


def _copy_rate(options: Namespace) -> float:
    """Return the bytes a second, read and written, of a large copy on the device."""
    source = torch.ones(2**20 if options.tiny else 2**30, device=options.device)
    target = torch.empty_like(source)
    fastest = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        target[0].item()
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * source.nbytes / fastest


def speed(
    row: Row,
    name: str,
    worker: Worker,
    found: dict[str, Worker],
    limits: dict[str, Any],
    options: Namespace,
    patience: float,
) -> None:
    """Measure one variant: some iterations' losses, rounds against the clock, memory."""
    compute = VARIANTS[name]
    if name != COMPILED[0]:
        worker.pipe.send("build")
    row.values["s for the first two iterations"] = worker.answer(patience)
    worker.losses = worker.ask("losses", options.band_iterations, patience)
    count = max(2, options.iterations // (4 if name == NAIVE else 1))
    seconds = [worker.ask("time", count, patience) for _ in range(options.rounds)]
    worker.rate = count / median(seconds)
    row.values |= {
        "iterations/s": worker.rate,
        "images/s": 2 * options.batch * worker.rate,
        "slowest round": count / max(seconds),
        "fastest round": count / min(seconds),
        "peak MB": worker.ask("peak", 0, patience),
    }
    if limits:
        rate = limits["flop"] * worker.rate
        row.values["share of the FLOP floor"] = rate / limits["peaks"]["bf16"]
        row.values["share of its precision's peak"] = rate / limits["peaks"][precision_of(compute)]
    row.values["mean loss"] = fmean(worker.losses[-SETTLED:])
    naive = found.get(NAIVE) or Worker(worker.pipe)
    if naive.rate and name != NAIVE:
        row.values["x naive"] = worker.rate / naive.rate
    if name == "pinmem bf16, compiled, graph":
        row.goal = f">= {SPEED_GOAL:g} x naive and >= {SHARE_GOAL:.0%} of the floor"
        share = row.values.get("share of the FLOP floor", 0.0)
        row.met = row.values.get("x naive", 0.0) >= SPEED_GOAL and share >= SHARE_GOAL
    first, of_first = next((n, w) for n, w in found.items() if w.losses)
    if first != name:
        mean, expected = (fmean(w.losses[-SETTLED:]) for w in (worker, of_first))
        error, band = abs(mean - expected) / expected, BANDS[precision_of(compute)]
        row.values["losses compared with"] = first
        row.values |= {"mean loss differs by": error, "band": band}
        assert error <= band or options.tiny, f"the losses leave their band: {worker.losses[-3:]}"
    if name == NAIVE:
        worker.pipe.send(None)  # its three networks take the most memory


def profiled(run: Callable[[int], Any], count: int, device: str) -> dict[str, Any]:
    """Return where the device's time goes, and the share that it is busy."""
    cuda = device == "cuda"
    run(1)()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    began = time.perf_counter()
    with profile(activities=activities) as profiler:
        run(count)()
    seconds = time.perf_counter() - began
    events = profiler.key_averages()
    name = "self_device_time_total" if cuda else "self_cpu_time_total"
    own = {
        e.key: getattr(e, name) / 1e6 / count for e in events if not e.key.startswith("Profiler")
    }
    if cuda:
        own = {k: s for k, s in own.items() if s and not k.startswith(("aten::", "autograd::"))}
    total = sum(own.values())
    top = sorted(own, key=own.__getitem__, reverse=True)[:TOP]
    return {
        "ms of an iteration, profiled": 1e3 * seconds / count,
        "ms of kernels": 1e3 * total,
        "kernels of an iteration": sum(e.count for e in events if e.key in own) / count,
        "top": {key[:90]: round(1e3 * own[key], 3) for key in top},
    }


def profile_row(row: Row, name: str, worker: Worker) -> None:
    """Profile the fastest variant."""
    found = worker.ask("profile", 3, 60)
    row.values |= {"variant": name, **found}
    row.values["share of the time that the device is busy"] = (
        found["ms of kernels"] * worker.rate / 1e3
    )


def resize_backward(row: Row, options: Namespace) -> None:
    """Time the backward pass of resizing scores to labels: torch's own, and two products."""
    device, crop = options.device, options.crop
    maps = torch.randn(1, 19, crop // 16, crop // 16, device=device, requires_grad=True)
    upstream = torch.randn(1, 19, crop, crop, device=device)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "interpolate": lambda: F.interpolate(
            maps, size=(crop, crop), mode="bilinear", align_corners=True
        ),
        "products": lambda: resize_by_products(maps, (crop, crop)),
    }
    for name, way in ways.items():
        times = []
        for _ in range(12):
            began = time.perf_counter()
            gradient = torch.autograd.grad(way(), maps, upstream)[0]
            gradient.flatten()[0].item()
            times.append(time.perf_counter() - began)
        row.values[f"ms {name}"] = 1e3 * median(times[2:])
