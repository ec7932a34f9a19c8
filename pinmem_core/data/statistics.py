"""Statistics of a prepared dataset."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.data.convert import read_records
from pinmem_core.data.prepared import RECORDS
from pinmem_core.data.samples import Sample, evenly_spaced
from pinmem_core.errors import DataError
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.images import read_image
from pinmem_core.parallel import parallel_map
from pinmem_core.paths import dataset_root

Channels = tuple[float, float, float]
"""Values of red, green and blue."""

_MAX = 255


@dataclass(frozen=True)
class Statistics:
    """Statistics of samples.

    Attributes:
        samples: Number of samples.
        sizes: (width, height, number of samples), the most frequent first.
        class_pixels: Number of labelled pixels by class name.
        class_images: Number of samples that contain a class, by class name.
        mean: Mean of red, green and blue, each in 0..1.
        std: Standard deviation of red, green and blue.
        looked_at: Number of images of which `mean` and `std` were computed.
    """

    samples: int
    sizes: tuple[tuple[int, int, int], ...]
    class_pixels: dict[str, int]
    class_images: dict[str, int]
    mean: Channels
    std: Channels
    looked_at: int


def statistics(
    samples: Sequence[Sample],
    name: str,
    *,
    images: int = 500,
    jobs: int | None = None,
    on_event: Listener = ignore,
) -> Statistics:
    """Return the statistics of all labels, and of the pixels of evenly spaced images.

    Args:
        samples: Samples of one prepared dataset, at least one.
        name: Name of the dataset.
        images: Number of images to read; 0 for all.
        jobs: Number of threads; None for one per core.
        on_event: Callback for progress events.

    Raises:
        DataError: An image cannot be read, or the dataset has no record of a sample.
    """
    root = dataset_root(name)
    names = samples[0].reading.own.names
    counted = {
        record.sample.id: record.pixels
        for record in read_records(root)
        if len(record.pixels) == len(names)
    }
    missing = next((sample.id for sample in samples if sample.id not in counted), None)
    if missing:
        raise DataError(
            f"{root / RECORDS} says nothing of the sample {missing}.",
            f"Prepare it again: 'pinmem data prepare {name}'.",
        )
    pixels = np.array([counted[sample.id] for sample in samples], dtype=np.int64)
    chosen = evenly_spaced(samples, images or len(samples))
    histograms = np.zeros((3, _MAX + 1), np.int64)
    with closing(parallel_map(_histogram, chosen, jobs)) as results:
        for done, histogram in enumerate(results, start=1):
            histograms += histogram
            on_event(Progress("looking at images", done, len(chosen)))
    values = np.arange(_MAX + 1) / _MAX
    shares = histograms / histograms.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    sizes = Counter((sample.width, sample.height) for sample in samples)
    return Statistics(
        samples=len(samples),
        sizes=tuple((*size, count) for size, count in sizes.most_common()),
        class_pixels=dict(zip(names, pixels.sum(axis=0).tolist(), strict=True)),
        class_images=dict(zip(names, (pixels > 0).sum(axis=0).tolist(), strict=True)),
        mean=_channels(mean),
        std=_channels(np.sqrt(variance)),
        looked_at=len(chosen),
    )


def _histogram(sample: Sample) -> NDArray[np.int64]:
    with sample.repair_hint():
        counts = Image.fromarray(read_image(sample.image)).histogram()
    return np.array(counts, dtype=np.int64).reshape(3, -1)


def _channels(values: NDArray[np.float64]) -> Channels:
    red, green, blue = values.tolist()
    return red, green, blue
