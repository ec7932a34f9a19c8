"""Whether the loader feeds the step, and what the appearance of crops costs on the device."""

import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from loading import JPEG
from PIL import Image
from rows import Row

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Domain
from pinmem_core.data.loader import DomainLoader
from pinmem_core.data.samples import Sample
from pinmem_core.data.transforms import Appearance, augment_photometric
from pinmem_core.images import write_png
from pinmem_core.overrides import nested, validate
from pinmem_core.synthetic import draw_scene

SIZE = (2048, 1024)


def run_of(options: Namespace) -> TrainConfig:
    """Return the paper's crops and augmentation."""
    crop = 64 if options.tiny else 768
    values = {"sources": ["gtav", "synthia"], "batch": 4, "iterations": 1000}
    values |= {"workers": options.workers, "augmentation.crop": crop}
    return validate(nested({}, values))


def street(job: tuple[Path, int, tuple[int, int]]) -> dict[str, Sample]:
    """Write a synthetic scene with a sensor's noise as PNG and as JPEG, and its label."""
    folder, number, size = job
    scene = draw_scene("arcade", number)
    noise = np.random.default_rng(number).integers(-6, 7, (size[1], size[0], 3))
    pixels = np.asarray(Image.fromarray(scene.image).resize(size)) + noise
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    label = folder / f"{number}_label.png"
    resized = Image.fromarray(scene.label).resize(size, Image.Resampling.NEAREST)
    write_png(label, np.asarray(resized))
    paths = {"PNG": folder / f"{number}.png", "JPEG": folder / f"{number}.jpg"}
    image.save(paths["PNG"])
    image.save(paths["JPEG"], **JPEG)
    return {k: Sample(str(number), p, label, "train", "a", *size) for k, p in paths.items()}


def loaded(row: Row, options: Namespace, kind: str) -> None:
    """Count the images a second that arrive on the device, finished."""
    size = (256, 128) if options.tiny else SIZE
    count = 2 if options.tiny else 16
    folder = options.scratch / "streets"
    if not folder.exists():
        folder.mkdir()
        with ProcessPoolExecutor(options.workers or 1) as pool:
            options.streets = list(pool.map(street, [(folder, n, size) for n in range(count)]))
    samples = tuple(made[kind] for made in options.streets)
    config = run_of(options)
    domains = [Domain(name, samples) for name in ("a", "b")]
    iterations = 4 if options.tiny else 60
    warm_up = 2 if options.tiny else 20
    loader = DomainLoader.of(domains, config, range(iterations), device=options.device)
    with closing(iter(loader)) as batches:  # type: ignore[type-var]
        for _ in range(warm_up):
            next(batches)
        began = time.perf_counter()
        for _ in range(iterations - warm_up):
            batch = next(batches)
        batch.images.sum().item()
        seconds = time.perf_counter() - began
    rate = (iterations - warm_up) * 2 * config.batch / seconds
    row.values |= {"images/s": rate, "workers": options.workers}
    if options.eaten:
        row.values["images/s that the fastest step eats"] = options.eaten
        row.goal, row.met = ">= 1.3 x what the step eats", rate >= 1.3 * options.eaten


def appearance(row: Row, options: Namespace) -> None:
    """Time the colours, the blur and the normalisation of one iteration's crops on the device."""
    crop = 64 if options.tiny else 768
    images = torch.randint(0, 256, (8, 3, crop, crop), dtype=torch.uint8, device=options.device)
    times = []
    for number in range(8):
        looks = [Appearance(8 * number + i, strong=bool(i % 2)) for i in range(8)]
        began = time.perf_counter()
        augment_photometric(images, looks).sum().item()
        times.append(time.perf_counter() - began)
    row.values["ms of 8 crops"] = 1e3 * sorted(times)[len(times) // 2]


CHECKS = {
    "PNG 2048x1024": (lambda row, options: loaded(row, options, "PNG"), 45),
    "JPEG 2048x1024": (lambda row, options: loaded(row, options, "JPEG"), 20),
    "appearance on the device": (appearance, 5),
}
"""Functions that fill a row, and the seconds that each may take."""
