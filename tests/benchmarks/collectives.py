"""How much the processes of a run talk to one another in one iteration, and what it costs.

Run `python tests/benchmarks/collectives.py`. Processes that gloo joins train on one random batch on
the CPU. One iteration is counted: its collectives by kind, and the bytes that a process hands to
them. Counts are exact on any machine; times are the median of further iterations.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from pinmem_core.config import AugmentationConfig, ComputeConfig, ModelConfig, TrainConfig
from pinmem_core.data.batches import Batch
from pinmem_core.models import Segmenter
from pinmem_core.training.setup import resolve
from pinmem_core.training.step import TrainStep

DOMAINS = 2
CASES = (("pinmem", 1), ("pinmem", 4), ("aggregate", 1), ("aggregate", 4))
"""Methods, and into how many parts their batch is split (`compute.accumulate`)."""


class Collectives(TorchDispatchMode):
    """Counts the collectives that are called inside the block.

    Attributes:
        calls: By kind.
        bytes: That this process hands to them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Count `func` if it is a collective, and run it."""
        if func.namespace == "c10d":
            kind = func.overloadpacket.__name__.strip("_")
            self.calls[kind] += 1
            given = args[1] if kind.startswith("allgather") else args[0]
            given = [given] if isinstance(given, torch.Tensor) else given
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in given)
        return func(*args, **(kwargs or {}))


def measured(rank: int, case: tuple[str, int], options: argparse.Namespace, folder: Path) -> None:
    """Be one of the processes; the first writes down what it counted."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=options.processes
    )
    torch.manual_seed(0)
    method, parts = case
    config = resolve(
        TrainConfig(
            sources=["demo:arcade", "demo:toytown"],
            method=method,
            use_memory=True,
            model=ModelConfig(backbone=options.backbone),
            augmentation=AugmentationConfig(crop=options.crop),
            compute=ComputeConfig(accumulate=parts),
            batch=options.images * options.processes,
        )
    )
    iteration = TrainStep(config, Segmenter(config.model), torch.device("cpu"))
    images = torch.randn(DOMAINS, options.images, 3, options.crop, options.crop)
    labels = torch.randint(0, 19, (DOMAINS, options.images, options.crop, options.crop))
    batch = Batch(images, labels, (0,), (1,))
    iteration.step(0, batch)
    with Collectives() as counted:
        iteration.step(1, batch)
    seconds = []
    for number in range(2, 2 + options.iterations):
        dist.barrier()
        began = time.perf_counter()
        iteration.step(number, batch)
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        kinds = ", ".join(f"{count} {kind}" for kind, count in counted.calls.most_common())
        print(
            f"| `{method}` | {parts} | {counted.calls.total()} ({kinds}) "
            f"| {counted.bytes / 1e6:.1f} MB | {median(seconds):.2f} s |",
            flush=True,
        )
    dist.destroy_process_group()


def main() -> None:
    """Print a table of all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--method", choices=sorted({method for method, _ in CASES}))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--images", type=int, default=8, help="of a domain in each process")
    parser.add_argument("--iterations", type=int, default=3, help="that are timed")
    options = parser.parse_args()
    print(f"{options.backbone}, {options.processes} gloo processes, crop {options.crop}, ", end="")
    print(f"{DOMAINS} domains x {options.images} images a process, torch {torch.__version__}\n")
    print("| method | parts | collectives an iteration | bytes a process | time |")
    print("|---|---|---|---|---|", flush=True)
    for case in (case for case in CASES if options.method in (None, case[0])):
        with tempfile.TemporaryDirectory() as folder:
            context = multiprocessing.get_context("spawn")
            ranks = [
                context.Process(target=measured, args=(rank, case, options, Path(folder)))
                for rank in range(options.processes)
            ]
            for process in ranks:
                process.start()
            for process in ranks:
                process.join()
            if any(process.exitcode for process in ranks):
                raise SystemExit("a process failed")


if __name__ == "__main__":
    main()
