"""How fast pinmem's iteration is, and what memory it takes, beside the naive transcription.

Run `python tests/benchmarks/step.py`, with `--device cuda` where there is one. Each variant lives in
its own process; they take turns, so that noise hits all alike. All see one random batch and the
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
from pinmem_core.learning.losses import training_losses
from pinmem_core.learning.method import rewrite_memory
from pinmem_core.learning.methods import methods
from pinmem_core.learning.schedule import inner_learning_rate, learning_rate
from pinmem_core.loading import Batch
from pinmem_core.loading.domains import step_seed
from pinmem_core.model import Segmenter

Losses = dict[str, dict[str, float]]
Step = Callable[[int, Batch], Losses]

NAIVE, SAME = "naive float32", "pinmem float32"
VARIANTS = {
    "cpu": {
        NAIVE: ComputeConfig(),
        SAME: ComputeConfig(),
        "pinmem bf16": ComputeConfig(precision="bf16", channels_last=True),
    },
    "cuda": {
        NAIVE: ComputeConfig(),
        SAME: ComputeConfig(),
        "pinmem tf32": ComputeConfig(tf32=True, channels_last=True),
        "pinmem bf16": ComputeConfig(precision="bf16", channels_last=True),
        "pinmem bf16, compiled": ComputeConfig(precision="bf16", channels_last=True, compile=True),
    },
}
WARM_UP = {"cpu": 1, "cuda": 5}
PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices whose product shows the device's peak."""
BLOCK = 16
"""Side of a label's blocks, in pixels."""
TOLERANCE = 1e-4


# --- pinmem's iteration: the one place that knows how the trainer runs it --------------------------


def pinmem_step(config: TrainConfig, segmenter: Segmenter, device: torch.device) -> Step:
    """Return the trainer's iteration."""
    method = methods.get("pinmem")(config.loss)
    torch.backends.cudnn.allow_tf32 = config.compute.tf32
    torch.backends.cuda.matmul.allow_tf32 = config.compute.tf32
    if config.compute.channels_last:
        segmenter.to(memory_format=torch.channels_last)
    if config.compute.compile:
        segmenter.trunk.compile()
    optimizer = sgd(config, segmenter)
    reduced = config.compute.precision != "float32"

    def step(iteration: int, batch: Batch) -> Losses:
        torch.manual_seed(step_seed(config.seed, iteration))
        set_learning_rate(config, optimizer, iteration)
        optimizer.zero_grad()
        inner_lr = inner_learning_rate(config.optim, iteration, config.iterations)
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            result = method.step(segmenter, batch, inner_lr)
        optimizer.step()
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            method.refresh(segmenter, batch)
        return {
            phase: {n: t.item() for n, t in {**of.terms, "total": of.total}.items()}
            for phase, of in result.losses.items()
        }

    return step


# ---------------------------------------------------------------------------------------------------


def naive_step(config: TrainConfig, segmenter: Segmenter, device: torch.device) -> Step:
    """Return the naive iteration."""
    torch.backends.cudnn.allow_tf32 = False
    optimizer = sgd(config, segmenter)

    def step(iteration: int, batch: Batch) -> Losses:
        set_learning_rate(config, optimizer, iteration)
        inner_lr = inner_learning_rate(config.optim, iteration, config.iterations)
        return naive_iteration(segmenter, optimizer, batch, inner_lr, config.loss)

    return step


def sgd(config: TrainConfig, segmenter: Segmenter) -> torch.optim.Optimizer:
    """Return the method's optimizer."""
    optim = config.optim
    return torch.optim.SGD(
        segmenter.parameters(), optim.lr, optim.momentum, weight_decay=optim.weight_decay
    )


def set_learning_rate(
    config: TrainConfig, optimizer: torch.optim.Optimizer, iteration: int
) -> None:
    """Follow the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config.optim, iteration, config.iterations)


def run_config(options: argparse.Namespace, compute: ComputeConfig) -> TrainConfig:
    """Return the configuration of a variant."""
    model = {"trunk": options.trunk, "memory": {"read": "softmax"}}
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
    shape = (2, config.batch)
    gain, offset = (torch.rand((*shape, 3, 1, 1), generator=rng) for _ in range(2))
    blocks = torch.randint(
        0, classes + 1, (*shape, -(-crop // BLOCK), -(-crop // BLOCK)), generator=rng
    )
    labels = blocks.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[..., :crop, :crop]
    colours = torch.randn((classes + 1, 3), generator=rng)[labels].movedim(-1, 2)
    noise = torch.randn((*shape, 3, crop, crop), generator=rng)
    images = (colours + 0.5 * noise) * (0.4 + 1.2 * gain) + 2 * offset - 1
    batch = Batch(images, labels.masked_fill(labels == classes, 255), (0,), (1,))
    return batch.to(torch.device(config.device))


@dataclass(frozen=True)
class Round:
    """What a process did in one turn.

    Attributes:
        seconds: For all iterations.
        losses: Of the last one.
    """

    seconds: float
    losses: Losses


def work(pipe: Connection, name: str, options: argparse.Namespace) -> None:
    """Be the process of a variant: run as many iterations as asked for, until asked for none."""
    torch.set_num_threads(options.threads)
    config = run_config(options, VARIANTS[options.device][name])
    segmenter, batch = untrained_segmenter(config), random_batch(config)
    make = naive_step if name == NAIVE else pinmem_step
    step = make(config, segmenter, torch.device(config.device))
    pipe.send(held_memory(options.device)[0])
    iteration = 0
    while count := pipe.recv():
        start = time.perf_counter()
        for iteration in range(iteration, iteration + count):  # noqa: B020
            losses = step(iteration, batch)  # which waits for the device
        iteration += 1
        pipe.send(Round(time.perf_counter() - start, losses))
    pipe.send(held_memory(options.device)[1])


def held_memory(device: str) -> tuple[float, float]:
    """Return the MB that this process holds, and the most that it has held."""
    if device == "cuda":
        figures = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return figures[0] / 2**20, figures[1] / 2**20
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    sizes = dict(line.split(":", 1) for line in status)
    return tuple(int(sizes[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))


class Worker:
    """A variant's process, seen from outside; its rounds after the warm-up.

    Args:
        name: Of the variant.
        options: Of the command line.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, name, options), daemon=True)
        self.process.start()
        theirs.close()
        self.before: float = self.pipe.recv()
        self.first = self.run(1).losses
        self.run(WARM_UP[options.device])
        self.rounds: list[Round] = []

    def run(self, iterations: int) -> Round:
        """Have it run some iterations."""
        self.pipe.send(iterations)
        return self.pipe.recv()

    def end(self) -> float:
        """Have it end; return the most MB that it held."""
        self.pipe.send(0)
        peak: float = self.pipe.recv()
        self.process.join()
        return peak


def same_losses(expected: Losses, got: Losses) -> float:
    """Return the largest relative difference of a loss term.

    Raises:
        AssertionError: It is more than rounding.
    """
    differences = {
        f"{phase}/{name}": abs(got[phase][name] - loss) / abs(loss)
        for phase, terms in expected.items()
        for name, loss in terms.items()
    }
    worst = max(differences, key=differences.__getitem__)
    assert differences[worst] < TOLERANCE, f"{worst} differs by {differences[worst]:.1e}"
    return differences[worst]


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


def measured_peak(device: str, dtype: torch.dtype) -> float:
    """Return the operations a second of a large matrix product."""
    side = PRODUCT[device]
    matrix = torch.randn(side, side, device=device).to(dtype)
    fastest = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest


def measure_limits(pipe: Connection, options: argparse.Namespace) -> None:
    """Send the operations of an iteration, and the device's peak by type."""
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    config = run_config(options, ComputeConfig())
    peaks = {
        name: measured_peak(options.device, dtype)
        for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))
    }
    pipe.send((needed_flop(config), peaks))


def limits(options: argparse.Namespace) -> tuple[int, dict[str, float]]:
    """Return what `measure_limits` finds, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measure_limits, args=(theirs, options), daemon=True)
    process.start()
    theirs.close()
    found: tuple[int, dict[str, float]] = ours.recv()
    process.join()
    return found


@contextmanager
def workers(options: argparse.Namespace) -> Iterator[dict[str, Worker]]:
    """Start every variant, one after the other."""
    started: dict[str, Worker] = {}
    try:
        for name in VARIANTS[options.device]:
            started[name] = Worker(name, options)
        yield started
    finally:
        for worker in started.values():
            worker.process.terminate()


def parsed_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=sorted(VARIANTS))
    parser.add_argument("--trunk", default="resnet50")
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2, help="images of each of the two domains")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--iterations", type=int, default=1, help="in each round")
    return parser.parse_args()


def report(options: argparse.Namespace, name: str, worker: Worker, naive: Worker) -> None:
    """Print a variant's speed."""
    images = 2 * options.batch
    speeds, base = ([options.iterations / r.seconds for r in w.rounds] for w in (worker, naive))
    print(
        f"{name:24}{median(speeds):8.3f} iterations/s ({min(speeds):.3f} .. {max(speeds):.3f})"
        f"{images * median(speeds):9.2f} images/s   x {median(speeds) / median(base):.2f} naive"
        f" (fastest rounds: x {max(speeds) / max(base):.2f})"
    )


def main() -> None:
    """Let the variants take turns, and print what they took."""
    options = parsed_options()
    print(
        f"{options.trunk}, {options.device}, 2 domains x {options.batch} images, crop "
        f"{options.crop}, {options.threads} threads, {options.rounds} rounds of "
        f"{options.iterations} iterations, torch {torch.__version__}"
    )
    flop, peaks = limits(options)
    for kind, peak in peaks.items():
        print(f"a product of {kind} matrices: {peak / 1e12:.2f} TFLOP/s")
    print(f"an iteration needs {flop / 1e12:.2f} TFLOP\n")
    with workers(options) as started:
        naive = started[NAIVE]
        worst = same_losses(naive.first, started[SAME].first)
        for phase, terms in naive.first.items():
            print(f"{phase}: {', '.join(f'{name} {loss:.5f}' for name, loss in terms.items())}")
        print(f"the first losses of '{SAME}' differ from these by {worst:.1e} at most\n")
        for _ in range(options.rounds):
            for worker in started.values():
                worker.rounds.append(worker.run(options.iterations))
        for name, worker in started.items():
            report(options, name, worker, naive)
        print()
        peak = {name: worker.end() for name, worker in started.items()}
        for name, worker in started.items():
            print(
                f"{name:24}{peak[name]:8.0f} MB at most ({worker.before:.0f} before)"
                f"   x {peak[name] / peak[NAIVE]:.2f} naive"
            )


if __name__ == "__main__":
    main()
