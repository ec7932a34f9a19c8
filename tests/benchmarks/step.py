"""How fast pinmem's iteration is, and what memory it takes, beside the naive transcription.

Run `python tests/benchmarks/step.py`, with `--device cuda` where there is one. Each variant lives
in its own process; they take turns, so that noise hits all alike. All see one random batch and the
same weights, without dropout and read by softmax, so that their first losses can be compared.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from naive import naive_iteration
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock, Bottleneck

from pinmem_core.config import AugmentationConfig, ComputeConfig, ModelConfig, TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.methods.base import rewrite_memory
from pinmem_core.methods.losses import training_losses
from pinmem_core.models import Segmenter
from pinmem_core.training.optim import inner_learning_rate, learning_rate
from pinmem_core.training.step import TrainStep

Losses = dict[str, dict[str, float]]
Step = Callable[[int, Batch], Callable[[], Losses]]
"""Runs an iteration; what it returns waits for the device and returns the losses."""

NAIVE, SAME = "naive float32", "pinmem float32"
VARIANTS = {
    "cpu": {
        NAIVE: ComputeConfig(),
        SAME: ComputeConfig(),
        "pinmem float32, channels last": ComputeConfig(channels_last=True),
        "the same, finest recomputed": ComputeConfig(channels_last=True, recompute="finest"),
        "pinmem bf16": ComputeConfig(precision="bf16", channels_last=True),
    },
    "cuda": {
        NAIVE: ComputeConfig(),
        SAME: ComputeConfig(),
        "pinmem tf32": ComputeConfig(tf32=True, channels_last=True),
        "pinmem bf16": ComputeConfig(precision="bf16", channels_last=True),
        "pinmem bf16, graph": ComputeConfig(precision="bf16", channels_last=True, graph=True),
        "pinmem bf16, compiled": ComputeConfig(precision="bf16", channels_last=True, compile=True),
    },
}
WARM_UP = {"cpu": 1, "cuda": 5}
"""Iterations after the first one that are not counted."""
PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices whose product shows the device's peak."""
BLOCK = 16
"""Side of a label's blocks, in pixels."""
TOLERANCE = 1e-4


# What iterates.


def pinmem_step(config: TrainConfig, segmenter: Segmenter, device: torch.device) -> Step:
    """Return pinmem's own iteration, as the trainer runs it."""
    iteration = TrainStep(config, segmenter, device)

    def step(number: int, batch: Batch) -> Callable[[], Losses]:
        result = iteration.step(number, batch)
        return lambda: {
            phase: {n: t.item() for n, t in {**of.terms, "total": of.total}.items()}
            for phase, of in result.losses.items()
        }

    return step


def naive_step(config: TrainConfig, segmenter: Segmenter, device: torch.device) -> Step:
    """Return the naive iteration, in true float32 on CUDA, too."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark = True
    optim, span = config.optim, config.iterations
    optimizer = torch.optim.SGD(
        segmenter.parameters(), optim.lr, optim.momentum, weight_decay=optim.weight_decay
    )

    def step(number: int, batch: Batch) -> Callable[[], Losses]:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, number, span)
        inner_lr = inner_learning_rate(optim, number, span)
        losses = naive_iteration(segmenter, optimizer, batch, inner_lr, config.loss)
        return lambda: losses

    return step


# What they iterate on.


def run_config(options: argparse.Namespace, compute: ComputeConfig) -> TrainConfig:
    """Return the configuration of a variant."""
    model = {"backbone": options.backbone, "memory": {"read": "softmax"}}
    return TrainConfig(
        batch=options.batch,
        device=options.device,
        compute=compute,
        model=ModelConfig.model_validate(model),
        augmentation=AugmentationConfig(crop=options.crop),
    )


def untrained_segmenter(config: TrainConfig) -> Segmenter:
    """Return the same weights each time, without dropout.

    Residual branches begin small: a random ResNet's gradient is so steep that the inner step would
    magnify rounding to a per mille of the outer loss.
    """
    torch.manual_seed(config.seed)
    segmenter = Segmenter(config.model)
    for module in segmenter.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
        if isinstance(module, BasicBlock | Bottleneck):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.constant_(last.weight, 0.2)
    return segmenter.to(config.device)


def random_batch(config: TrainConfig) -> Batch:
    """Return two domains of coloured blocks under noise, each image of its own contrast."""
    rng = torch.Generator().manual_seed(config.seed)
    crop, classes = config.augmentation.crop, config.model.num_classes
    shape, side = (2, config.batch), -(-crop // BLOCK)
    blocks = torch.randint(0, classes + 1, (*shape, side, side), generator=rng)
    labels = blocks.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[..., :crop, :crop]
    colours = torch.randn((classes + 1, 3), generator=rng)[labels].movedim(-1, 2)
    noise = torch.randn((*shape, 3, crop, crop), generator=rng)
    gain, offset = (torch.rand((*shape, 3, 1, 1), generator=rng) for _ in range(2))
    images = (colours + 0.5 * noise) * (0.4 + 1.2 * gain) + 2 * offset - 1
    batch = Batch(images, labels.masked_fill(labels == classes, 255), (0,), (1,))
    return batch.to(torch.device(config.device))


# One process a variant.


def work(pipe: Connection, name: str, options: argparse.Namespace) -> None:
    """Run as many iterations as the pipe asks for, and tell the seconds, until it asks for none."""
    torch.set_num_threads(options.threads)
    config = run_config(options, VARIANTS[options.device][name])
    segmenter, batch = untrained_segmenter(config), random_batch(config)
    make = naive_step if name == NAIVE else pinmem_step
    step = make(config, segmenter, torch.device(config.device))
    pipe.send(held_memory(options.device)[0])
    pipe.send(step(0, batch)())
    done = 1
    while count := pipe.recv():
        start = time.perf_counter()
        for number in range(done, done + count):
            losses = step(number, batch)
        losses()  # waits for the device
        pipe.send(time.perf_counter() - start)
        done += count
    pipe.send(held_memory(options.device)[1])


def held_memory(device: str) -> tuple[float, float]:
    """Return the MB that this process holds, and the most that it has held."""
    if device == "cuda":
        return torch.cuda.memory_allocated() / 2**20, torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    sizes = dict(line.split(":", 1) for line in status)
    now, most = (int(sizes[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, most


@dataclass
class Worker:
    """A variant's process, seen from outside.

    Attributes:
        before: MB that it held before the first iteration.
        first: Losses of the first iteration.
        seconds: Of its rounds.
    """

    pipe: Connection
    before: float
    first: Losses
    seconds: list[float]

    def run(self, iterations: int) -> float:
        """Have it run some iterations; return the seconds that they took."""
        self.pipe.send(iterations)
        return self.pipe.recv()

    def end(self) -> float:
        """Have it end; return the most MB that it held."""
        self.pipe.send(0)
        return self.pipe.recv()


@contextmanager
def process(function: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Run `function(pipe, *arguments)` in a fresh process; yield the other end of its pipe."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=function, args=(theirs, *arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        child.terminate()
        child.join()


@contextmanager
def started(names: list[str], options: argparse.Namespace) -> Iterator[dict[str, Worker]]:
    """Start the processes of some variants, one after the other, and warm them up."""
    if not names:
        yield {}
        return
    name, *rest = names
    with process(work, name, options) as pipe:
        worker = Worker(pipe, pipe.recv(), pipe.recv(), [])
        worker.run(WARM_UP[options.device])
        with started(rest, options) as others:
            yield {name: worker, **others}


# What the device can do, and what the method asks of it.


def needed_flop(config: TrainConfig) -> int:
    """Return the floating-point operations of the passes that the method needs, and of no more."""
    segmenter, batch = untrained_segmenter(config), random_batch(config)
    images, labels = batch.of(batch.meta_train)
    memory = segmenter.memory
    with FlopCounterMode(display=False) as counter:
        training_losses(segmenter, images, labels, config.loss, write=True).total.backward()
        with torch.no_grad():
            feature = segmenter.encode(images).feature
        slots = memory.write(feature, labels, memory.slots)
        outer = batch.of(batch.meta_test)
        training_losses(segmenter, *outer, config.loss, slots=slots).total.backward()
        rewrite_memory(segmenter, images, labels)
    return counter.get_total_flops()


def measured_peak(device: str, precision: str, side: int | None = None) -> float:
    """Return the operations a second of a large matrix product."""
    side = side or PRODUCT[device]
    torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.randn(side, side, device=device).to(dtype)
    fastest = float("inf")
    for _ in range(50 if device == "cuda" else 10):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest


def precision_of(compute: ComputeConfig) -> str:
    """Return the precision of most of a variant's products."""
    return "tf32" if compute.tf32 else compute.precision


def measure_limits(pipe: Connection, options: argparse.Namespace) -> None:
    """Tell the operations of an iteration, and the device's peak by precision."""
    torch.set_num_threads(options.threads)
    precisions = {precision_of(compute): None for compute in VARIANTS[options.device].values()}
    peaks = {precision: measured_peak(options.device, precision) for precision in precisions}
    pipe.send((needed_flop(run_config(options, ComputeConfig())), peaks))


# What is printed.


def compare_losses(expected: Losses, got: Losses) -> None:
    """Print losses and the largest relative difference; fail where it is more than rounding."""
    for phase, terms in expected.items():
        print(f"{phase}: {', '.join(f'{name} {loss:.5f}' for name, loss in terms.items())}")
    differences = {
        f"{phase}/{name}": abs(got[phase][name] - loss) / abs(loss)
        for phase, terms in expected.items()
        for name, loss in terms.items()
    }
    worst = max(differences, key=differences.__getitem__)
    assert differences[worst] < TOLERANCE, f"{worst} differs by {differences[worst]:.1e}"
    print(f"these first losses of '{SAME}' differ by {differences[worst]:.1e} at most\n")


def report_speed(workers: dict[str, Worker], options: argparse.Namespace) -> None:
    """Print the speed of every variant."""
    speeds = {n: [options.iterations / s for s in w.seconds] for n, w in workers.items()}
    naive = speeds[NAIVE]
    for name, found in speeds.items():
        print(
            f"{name:30}{median(found):8.3f} iterations/s ({min(found):.3f} to {max(found):.3f}),"
            f"{2 * options.batch * median(found):8.2f} images/s,"
            f" {median(found) / median(naive):.2f} x naive"
            f" ({max(found) / max(naive):.2f} x at their fastest)"
        )
    print()


def report_limits(workers: dict[str, Worker], options: argparse.Namespace) -> None:
    """Print the share of the device's peak that the needed operations of a variant reach."""
    with process(measure_limits, options) as pipe:
        flop, peaks = pipe.recv()
    for precision, peak in peaks.items():
        print(f"a product of {precision} matrices: {peak / 1e12:.2f} TFLOP/s")
    print(f"an iteration needs {flop / 1e12:.2f} TFLOP")
    for name, worker in workers.items():
        speed = flop * options.iterations / median(worker.seconds)
        share = speed / peaks[precision_of(VARIANTS[options.device][name])]
        print(f"{name:30}{speed / 1e12:8.2f} TFLOP/s, {share:.1%} of the peak")
    print()


def report_memory(workers: dict[str, Worker]) -> None:
    """End every variant and print the memory that it took."""
    peaks = {name: worker.end() for name, worker in workers.items()}
    for name, worker in workers.items():
        print(
            f"{name:30}{peaks[name]:8.0f} MB at most ({worker.before:.0f} before the first step),"
            f" {peaks[name] / peaks[NAIVE]:.2f} x naive"
        )


def parsed_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=sorted(VARIANTS))
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2, help="images of each of the two domains")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--iterations", type=int, default=1, help="in each round")
    return parser.parse_args()


def main() -> None:
    """Let the variants take turns, and print what they took."""
    options = parsed_options()
    print(
        f"{options.backbone}, {options.device}, 2 domains x {options.batch} images, crop "
        f"{options.crop}, {options.threads} threads, {options.rounds} rounds of "
        f"{options.iterations} iterations, torch {torch.__version__}"
    )
    with started(list(VARIANTS[options.device]), options) as workers:
        compare_losses(workers[NAIVE].first, workers[SAME].first)
        for _ in range(options.rounds):
            for worker in workers.values():
                worker.seconds.append(worker.run(options.iterations))
        report_speed(workers, options)
        if options.device == "cuda":
            report_limits(workers, options)
        report_memory(workers)


if __name__ == "__main__":
    main()
