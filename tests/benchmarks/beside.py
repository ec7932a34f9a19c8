"""Compare the CPU time of `prepare`, `predict` and `eval` with those of another checkout.

    python tests/benchmarks/beside.py ../old-checkout --rounds 9

Both checkouts run in turns with this interpreter, on the same files: PNGs of synthetic scenes at
GTAV's size, and the starter model. The table shows the median user and system time of one
command, which other work on the machine hardly stretches, and the ratio to the other checkout:
the median of the rounds' ratios with its 95 % interval.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

TREE = Path(__file__).parents[2]
SIZE = (1914, 1052)
"""Of GTAV's frames."""
VALIDATION = 6383
"""The first number of GTAV's validation images."""
CLI = "import sys; from pinmem_cli.app import main; sys.exit(main())"


def draw(folder: Path, images: int, validation: int) -> None:
    """Draw a small GTAV, the last images of which belong to the validation split."""
    from pinmem_core.label_space import CITYSCAPES
    from pinmem_core.synthetic import draw_scene

    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, 768).astype(np.uint8).tobytes()
    for number in range(images):
        name = number + 1 if number < images - validation else VALIDATION + number
        scene = draw_scene("arcade", number)
        image = np.asarray(Image.fromarray(scene.image).resize(SIZE)).astype(np.int16)
        image += rng.integers(-4, 5, image.shape, dtype=np.int16)  # a camera's noise
        label = Image.fromarray(
            CITYSCAPES.label_id_table[np.asarray(Image.fromarray(scene.label).resize(SIZE, 0))]
        )
        label.putpalette(palette)
        for kind, picture in (
            ("images", Image.fromarray(image.clip(0, 255).astype(np.uint8))),
            ("labels", label),
        ):
            path = folder / kind / f"{name:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)


def cpu_seconds(tree: Path, home: Path, *arguments: str) -> float:
    """Run pinmem of one checkout and return the CPU time that it took."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PINMEM_HOME": str(home)}
    environment.setdefault("OMP_NUM_THREADS", "1")  # no time is lost waiting for other threads
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", CLI, *arguments]
    result = subprocess.run(
        command, env=environment, cwd=tree, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{tree}: pinmem {' '.join(arguments)}: {result.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the other checkout, the older one")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=40, help="that are prepared")
    parser.add_argument("--validation", type=int, default=4, help="of them that are scored")
    parser.add_argument("--only", default="prepare,predict,eval")
    options = parser.parse_args()
    trees = {"other": options.other.resolve(), "this": TREE}
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "raw")
        draw(raw, options.images, options.validation)
        homes = {name: Path(scratch, name) for name in trees}
        starter = str(TREE / "pinmem_core" / "starter")

        def prepare(name: str) -> tuple[str, ...]:
            shutil.rmtree(homes[name] / "datasets", ignore_errors=True)
            return ("data", "prepare", "gtav", "--from", str(raw), "--jobs", "1", "-q")

        def predict(name: str) -> tuple[str, ...]:
            masks = homes[name] / "masks"
            shutil.rmtree(masks, ignore_errors=True)
            pattern = str(raw / "images" / "0638*.png")
            return (
                "predict",
                pattern,
                "-o",
                str(masks),
                "--model",
                starter,
                "--protocol",
                "photo",
                "-q",
            )

        def score(name: str) -> tuple[str, ...]:
            report = homes[name] / "report"
            shutil.rmtree(report, ignore_errors=True)
            return (
                "eval",
                starter,
                "--targets",
                "gtav",
                "--protocol",
                "photo",
                "-o",
                str(report),
                "-q",
            )

        commands: dict[str, Callable[[str], tuple[str, ...]]] = {
            "prepare": prepare,
            "predict": predict,
            "eval": score,
        }
        print("| command | other: s | this: s | ratio | 95 % interval |\n|---|---:|---:|---:|---:|")
        for name, command in commands.items():
            if name not in options.only.split(","):
                continue
            seconds: dict[str, list[float]] = {tree: [] for tree in trees}
            for number in range(options.rounds + 1):  # the first fills the caches of the disk
                for tree in sorted(trees, reverse=bool(number % 2)):
                    time = cpu_seconds(trees[tree], homes[tree], *command(tree))
                    if number:
                        seconds[tree].append(time)
            ratios = [a / b for a, b in zip(seconds["this"], seconds["other"], strict=True)]
            low, high = interval(ratios)
            cells = [f"`{name}`", *(f"{median(seconds[tree]):.2f}" for tree in trees)]
            cells += [f"{median(ratios):.3f}", f"{low:.3f} to {high:.3f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
