"""Cost of an iteration of each training method against `aggregate`.

Run `python tests/benchmarks/methods.py`, with `--device cuda` where there is one. All methods get
the same random batch of three domains. Each has its own process, and they take turns, so that other
work on the machine affects all alike. Times are CPU seconds of one thread, or seconds of the GPU.

The bank of `shade` and the mask of `isw`, which are made once in many iterations, are left out.
"""

import argparse
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from statistics import median

import torch
from step import held_memory, process, random_batch

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.methods import methods
from pinmem_core.overrides import nested, validate
from pinmem_core.training.setup import initial_segmenter, resolve
from pinmem_core.training.step import TrainStep

SOURCES = ("a", "b", "c")
BASELINE = "aggregate"
WARM_UP = 4
SETTINGS = {
    "isw": {"start": 0.0},
    "mixstyle": {"p": 1.0},
    "dsu": {"p": 1.0},
    "shade": {"refresh_epochs": 1e6},
}
"""Settings with which every measured iteration does the work of the method."""


def run_config(options: argparse.Namespace, method: str) -> TrainConfig:
    """Return the configuration of a run with a method."""
    settings = {
        "sources": SOURCES,
        "method": method,
        "method_config": SETTINGS.get(method, {}),
        "batch": options.batch,
        "device": options.device,
        "augmentation.crop": options.crop,
        "compute.channels_last": True,
        "model.backbone": options.backbone,
        "model.feature_dim": 64,
        "model.output_stride": 16,
    }
    return resolve(validate(nested({}, settings)))


def batch_of(config: TrainConfig) -> Batch:
    """Return a random batch with as many views as the method needs."""
    seeds = (config.model_copy(update={"seed": seed}) for seed in range(len(SOURCES)))
    batches = [random_batch(seed) for seed in seeds]
    images = torch.stack([batch.images[0] for batch in batches])
    labels = torch.stack([batch.labels[0] for batch in batches])
    views = tuple(0.9 * images for _ in range(methods.get(config.method).views - 1))
    return Batch(images, labels, (0, 1), (2,), more_views=views)


def work(pipe: Connection, options: argparse.Namespace, method: str) -> None:
    """Send the seconds of as many iterations as the pipe asks for; at 0, the memory in MB."""
    torch.set_num_threads(1)
    config = run_config(options, method)
    device = torch.device(config.device)
    step = TrainStep(config, initial_segmenter(config, download=False).to(device), device)
    batch, done = batch_of(config), 0
    before = held_memory(options.device)[0]
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    while count := pipe.recv():
        start = clock()
        for number in range(done, done + count):
            losses = step.step(number, batch).losses
        assert all(of.total.isfinite() for of in losses.values())  # waits for the device
        pipe.send(clock() - start)
        done += count
    pipe.send(held_memory(options.device)[1] - before)


def main() -> None:
    """Let the methods take turns, and print a table of their cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument("--batch", type=int, default=2, help="images of each of three domains")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(
        f"{options.backbone}, {options.device}, 3 domains x {options.batch} images, crop "
        f"{options.crop}, {options.rounds} rounds, torch {torch.__version__}\n"
    )
    names = [BASELINE, *(name for name in sorted(methods.all()) if name != BASELINE)]
    with ExitStack() as stack:
        pipes = {n: stack.enter_context(process(work, options, n)) for n in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(options.rounds + WARM_UP):
            for name, pipe in pipes.items():
                pipe.send(1)
                taken = pipe.recv()
                if number >= WARM_UP:
                    seconds[name].append(taken)
        for pipe in pipes.values():
            pipe.send(0)
        memory = {name: pipe.recv() for name, pipe in pipes.items()}
    print("| method | seconds of an iteration | x | memory of the iteration, MB | x |")
    print("| --- | --- | --- | --- | --- |")
    for name, each in seconds.items():
        time_factor = median(each) / median(seconds[BASELINE])
        print(
            f"| `{name}` | {median(each):.3f} ({min(each):.3f} to {max(each):.3f}) "
            f"| {time_factor:.2f} | {memory[name]:.0f} | {memory[name] / memory[BASELINE]:.2f} |"
        )


if __name__ == "__main__":
    main()
