"""How fast data is prepared, as ratios inside one run, and how much memory 25,000 samples take.

Run `python tests/benchmarks/preparation.py`: three minutes, and 300 MB of scratch space.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from pinmem_core.data.catalog import get_card
from pinmem_core.data.convert import Conversion
from pinmem_core.data.label_maps import LabelMap
from pinmem_core.data.layouts import RawSample, find_samples
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import Selection, select
from pinmem_core.data.preview import contact_sheet
from pinmem_core.data.verify import verify
from pinmem_core.images import write_png
from pinmem_core.label_space import CITYSCAPES
from pinmem_core.synthetic import draw_scene

SIZE = (1914, 1052)
"""Of GTAV's frames."""
ROUNDS = 41
SAMPLES = 25_000
DRAWN, PAIRS = 60, 240
"""Streets that are drawn, and pairs that are made of them."""
IDS = get_card("gtav").label_map("ids")


def gtav_label(number: int) -> Image.Image:
    """Return a palette picture of a street at GTAV's size."""
    train_ids = Image.fromarray(draw_scene("arcade", number).label).resize(SIZE, 0)
    picture = Image.fromarray(CITYSCAPES.label_id_table[np.asarray(train_ids)])
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    return picture


def timed(*functions: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Return the median seconds of a call of each function, called in turns."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return [median(times[1:]) for times in seconds]


def remapping(folder: Path) -> None:
    """Converting a label against reading and writing the same PNG."""
    source, target = folder / "raw.png", folder / "copy.png"
    gtav_label(0).save(source)
    image = folder / "image.png"
    image.touch()
    raw = RawSample("a", "gtav", "train", image, source)
    conversion = Conversion("ids", IDS, None, folder / "root", folder)

    def read_and_write() -> None:
        pixels = np.asarray(Image.open(source))
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "png")
        target.write_bytes(data.getvalue())

    def convert_label() -> None:
        conversion.write_label(raw, "train", image, conversion.read_label(raw, SIZE))

    alone, whole = timed(read_and_write, convert_label)
    print(f"read and write a {SIZE[0]}x{SIZE[1]} label: {alone * 1e3:.1f} ms")
    print(f"the same with checks, remapping, digest and counts: {whole * 1e3:.1f} ms")
    print(f"  ratio {whole / alone:.2f}\n")


def colours(folder: Path) -> None:
    """One table lookup against a comparison of the whole picture with every colour."""
    table = {color: train_id for train_id, color in enumerate(CITYSCAPES.classes.values())}
    label_map = LabelMap.from_colors({**table, (0, 0, 0): 255})
    train_ids = Image.fromarray(draw_scene("arcade", 0).label).resize(SIZE, 0)
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    for color, train_id in table.items():
        pixels[np.asarray(train_ids) == train_id] = color

    def loop() -> np.ndarray:
        result = np.full(pixels.shape[:2], 255, np.uint8)
        for color, train_id in table.items():
            result[(pixels == color).all(axis=-1)] = train_id
        return result

    assert np.array_equal(loop(), label_map.apply(pixels)[0])
    slow, fast = timed(loop, lambda: label_map.apply(pixels), rounds=5)
    print(f"colours to trainIds, a comparison for each of 19 colours: {slow * 1e3:.0f} ms")
    print(f"by one table: {fast * 1e3:.1f} ms\n  ratio {slow / fast:.1f}\n")


def workers(folder: Path) -> None:
    """Preparing with one and with two workers."""
    for number in range(DRAWN):
        name = f"{number + 1:05}.png"
        pixels = np.asarray(Image.fromarray(draw_scene("arcade", number).image).resize(SIZE))
        write_png(folder / "images" / name, pixels)
        gtav_label(number).save(_made(folder / "labels") / name)
        for copy in range(1, PAIRS // DRAWN):
            for kind in ("images", "labels"):
                again = folder / kind / f"{number + 1 + copy * DRAWN:05}.png"
                again.hardlink_to(folder / kind / name)

    def prepare_by(jobs: int) -> None:
        shutil.rmtree(os.environ["PINMEM_HOME"], ignore_errors=True)
        prepare(get_card("gtav"), [folder], jobs=jobs)

    one, two = timed(lambda: prepare_by(1), lambda: prepare_by(2), rounds=3)
    print(f"{PAIRS} pairs prepared by one worker: {one:.2f} s; by two: {two:.2f} s")
    print(f"  ratio {one / two:.2f}\n")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def many(folder: Path) -> None:
    """Listing, preparing, verifying and sampling many samples, and the memory that takes."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
    write_png(folder / "one.png", small)
    Image.fromarray(np.arange(128, dtype=np.uint8).reshape(8, 16) % 34).save(folder / "raw.png")
    for kind, original in (("images", "one.png"), ("labels", "raw.png")):
        target = _made(folder / "gtav" / kind)
        for number in range(1, SAMPLES + 1):
            (target / f"{number:05}.png").hardlink_to(folder / original)
    for stage in STAGES:
        subprocess.run([sys.executable, __file__, stage, str(folder / "gtav")], check=True)


STAGES: dict[str, Callable[[Path], object]] = {
    "listed": lambda folder: find_samples(get_card("gtav"), [folder]),
    "prepared": lambda folder: prepare(get_card("gtav"), [folder]),
    "verified by header": lambda folder: verify("gtav", headers_only=True),
    "opened and sampled": lambda folder: contact_sheet(select(Selection.parse("gtav"), "train")),
}


def peak_memory() -> float:
    """Return the most MB that this process has held (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def stage(name: str, folder: Path) -> None:
    """Run one stage in this process and print its time and peak memory."""
    before = peak_memory()
    start = time.perf_counter()
    STAGES[name](folder)
    seconds = time.perf_counter() - start
    peak = peak_memory()
    print(
        f"{SAMPLES} entries {name}: {seconds:.1f} s, peak memory {peak:.0f} MB "
        f"({peak - before:.0f} MB more than before)",
        flush=True,
    )


def main() -> None:
    """Run everything in a scratch folder."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["PINMEM_HOME"] = f"{scratch}/home"
        for part in (remapping, colours, workers, many):
            part(_made(Path(scratch) / part.__name__))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        stage(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
