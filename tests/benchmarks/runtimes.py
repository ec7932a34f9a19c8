"""How many images a second each runtime predicts on the CPU: torch, its compiler, onnxruntime.

Run `python tests/benchmarks/runtimes.py`, with `--model` for a run or checkpoint instead of random
weights, whose speed is the same, or `--set` for another network. `--eager` runs only what
`pinmem predict` does, and measures its memory, too. All get one image at a time, take
turns, and compute with as many threads as OMP_NUM_THREADS allows. A machine that does
other work at the same time distorts the results.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pinmem_core.config import ModelConfig
from pinmem_core.data.transforms import normalize
from pinmem_core.export.check import pictures
from pinmem_core.export.files import export_model
from pinmem_core.export.int8 import quantize
from pinmem_core.inference import load
from pinmem_core.inference.onnx_runner import OnnxRunner
from pinmem_core.inference.optimize import optimize_for_inference
from pinmem_core.models import Segmenter
from pinmem_core.models.flop_counter import cost_of
from pinmem_core.overrides import with_overrides

Way = Callable[[], object]


def network(model: str | None, settings: list[str]) -> Segmenter:
    """Return a run's network, or one of random weights."""
    if model:
        return load(model, device="cpu").segmenter
    torch.manual_seed(0)
    default = {"model": {"backbone": "mobilenet_v2", "feature_dim": 128}}
    chosen = with_overrides(default, [f"model.{setting}" for setting in settings])
    return Segmenter(ModelConfig.model_validate(chosen["model"])).eval()


def torch_ways(segmenter: Segmenter, size: tuple[int, int], *, only_eager: bool) -> dict[str, Way]:
    """Return eager torch, as pinmem predicts, and compiled; channels last suits the CPU."""
    images = normalize(torch.from_numpy(pictures((1, *size))).permute(0, 3, 1, 2))
    images = images.contiguous(memory_format=torch.channels_last)
    eager = optimize_for_inference(segmenter).to(memory_format=torch.channels_last)
    ways: dict[str, Way] = {"eager": lambda: eager(images)}
    if only_eager:
        return ways
    compiled = torch.compile(
        optimize_for_inference(segmenter).to(memory_format=torch.channels_last)
    )
    return {
        "eager as it is": lambda: segmenter(images),
        **ways,
        "torch.compile": lambda: compiled(images),
    }


def onnx_ways(segmenter: Segmenter, size: tuple[int, int], folder: Path) -> dict[str, Way]:
    """Return an ONNX file of any size, one of this size only, and the first in integers."""
    pixels = pictures((1, *size))
    paths = {name: folder / f"{name}.onnx" for name in ("float32", "this size only", "int8")}
    export_model(segmenter, paths["float32"], "onnx", preprocess=True)
    export_model(segmenter, paths["this size only"], "onnx", preprocess=True, size=size)
    quantize(paths["float32"], paths["int8"])
    runners = {f"ONNX {name}": OnnxRunner(path) for name, path in paths.items()}
    return {name: lambda runner=runner: runner(pixels) for name, runner in runners.items()}


@torch.inference_mode()
def least_seconds(ways: dict[str, Way], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the least time and processor time of each.

    They take turns, after one round without timing.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began, worked = time.perf_counter(), time.process_time()
            way()
            times[name].append((time.perf_counter() - began, time.process_time() - worked))
    return {
        name: (min(wall for wall, _ in taken[1:]), min(work for _, work in taken[1:]))
        for name, taken in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a run or checkpoint; default: random MobileNetV2")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the random network, e.g. backbone=timm:convnext_tiny",
    )
    parser.add_argument("--eager", action="store_true", help="only torch as pinmem predicts")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    segmenter, size = network(options.model, options.settings), tuple(options.size)
    print(f"{size[1]}x{size[0]}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        ways = torch_ways(segmenter, size, only_eager=options.eager)
        if not options.eager:
            ways |= onnx_ways(segmenter, size, Path(folder))
        times = least_seconds(ways, options.rounds)
    for name, (wall, work) in times.items():
        quotient = times["eager"][0] / wall
        print(f"{name:20} {1 / wall:6.2f} images/s, {work:.2f} processor s: x {quotient:.2f}")
    if options.eager:
        with torch.inference_mode():
            peak = cost_of(ways["eager"], []).memory_bytes
        print(f"memory of its tensors, without the weights: {peak / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
