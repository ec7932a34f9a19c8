"""How many images a core loads in a second, and what the time goes into.

Run `python tests/benchmarks/loading.py`: two minutes, and 60 MB of scratch space. Times are those
that a processor spends, so that other programs disturb them little.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import CropDataset, Domain
from pinmem_core.data.loader import prefetch_crops
from pinmem_core.data.samples import Sample
from pinmem_core.data.transforms import Appearance, augment_photometric, draw_geometry
from pinmem_core.images import write_png
from pinmem_core.overrides import validate
from pinmem_core.synthetic import draw_scene

SIZE = (1914, 1052)
"""Of GTAV's frames."""
STREETS, ROUNDS, ITERATIONS = 12, 3, 5
CORES = 16
JPEG = {"quality": 95, "subsampling": 0}


def street(folder: Path, number: int) -> dict[str, Sample]:
    """Write a street at GTAV's size, with a sensor's noise, and return its sample by format."""
    scene = draw_scene("arcade", number)
    noise = np.random.default_rng(number).integers(-6, 7, (SIZE[1], SIZE[0], 3))
    pixels = np.asarray(Image.fromarray(scene.image).resize(SIZE)) + noise
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    label = folder / f"{number}_label.png"
    write_png(
        label, np.asarray(Image.fromarray(scene.label).resize(SIZE, Image.Resampling.NEAREST))
    )
    paths = {"PNG": folder / f"{number}.png", "JPEG": folder / f"{number}.jpg"}
    image.save(paths["PNG"])
    image.save(paths["JPEG"], **JPEG)
    return {
        kind: Sample(str(number), path, label, "train", "arcade", *SIZE)
        for kind, path in paths.items()
    }


def settings() -> TrainConfig:
    """Return the paper's: crop 768, half of the images with strong jitter."""
    return validate({"sources": ["gtav", "synthia"], "batch": 4})


def milliseconds(calls: Iterable[Callable[[], object]]) -> float:
    """Return the mean time of `calls`, the least of several rounds of each."""
    least = []
    for call in calls:
        times = []
        for _ in range(ROUNDS):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
        least.append(min(times))
    return 1e3 * sum(least) / len(least)


def stages(samples: dict[str, list[Sample]]) -> None:
    """Each stage of an image in this process, one thread."""
    augmentation = settings().augmentation
    pairs = [sample.read() for sample in samples["PNG"]]
    rng = np.random.default_rng(0)
    drawn = [(pair, draw_geometry(rng, pair[1].shape, augmentation)) for pair in pairs * 4]
    crops = [place.cut_image(image)[None] for (image, _), place in drawn]
    looks = [[Appearance(number, strong=bool(number % 2))] for number in range(len(crops))]
    for kind, of_kind in samples.items():
        print(f"decode {kind} image and PNG label: {milliseconds(s.read for s in of_kind):.1f} ms")
    cuts = (
        lambda p=place, i=image, t=label: (p.cut_label(t), p.cut_image(i))
        for (image, label), place in drawn
    )
    print(f"geometry (scale, crop, flip): {milliseconds(cuts):.1f} ms")
    finishes = (
        lambda c=crop, a=look: augment_photometric(c, a)
        for crop, look in zip(crops, looks, strict=True)
    )
    print(f"appearance (jitter, blur, normalise): {milliseconds(finishes):.1f} ms\n")


def images_per_second(samples: list[Sample], *, finish: bool) -> float:
    """Return what one loading process draws in a second of its time, the most of several rounds."""
    domains = [Domain(name, tuple(samples)) for name in ("a", "b")]
    config = settings()
    crops = CropDataset(domains, config, range(config.batch), augment=finish)
    rates = []
    for _ in range(ROUNDS):
        before = children_seconds()
        ahead = prefetch_crops(crops, range(ITERATIONS), workers=1, pin_memory=False)
        count = sum(len(drawn.images) for drawn in ahead)
        rates.append(count / (children_seconds() - before))
    return max(rates)


def children_seconds() -> float:
    """Return the processor's time that ended processes have had."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def throughput(samples: dict[str, list[Sample]]) -> None:
    """Images a second of one loading process, and what so many cores would make of it."""
    places = {True: "all in the worker", False: "appearance on the device"}
    for kind, of_kind in samples.items():
        for finish, where in places.items():
            rate = images_per_second(of_kind, finish=finish)
            print(
                f"{kind}, {where}: {rate:.1f} images/s a core, {rate * CORES:.0f} on {CORES} cores"
            )


def main() -> None:
    """Run everything in a scratch folder."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["PINMEM_HOME"] = f"{scratch}/home"
        streets = [street(Path(scratch), number) for number in range(STREETS)]
        samples = {kind: [street[kind] for street in streets] for kind in ("PNG", "JPEG")}
        for kind, of_kind in samples.items():
            size = sum(sample.image.stat().st_size for sample in of_kind) / len(of_kind)
            print(f"{kind}, {SIZE[0]}x{SIZE[1]}: {size / 1e6:.2f} MB each")
        stages(samples)
        throughput(samples)


if __name__ == "__main__":
    main()
