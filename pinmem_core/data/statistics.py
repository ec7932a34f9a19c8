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
from pinmem_core.home import dataset_root
from pinmem_core.images import read_image
from pinmem_core.label_space import CLASSES
from pinmem_core.parallel import parallel_map

Channels = tuple[float, float, float]
"""A figure each of red, green and blue."""

_BRIGHTEST = 255


@dataclass(frozen=True)
class Statistics:
    """Figures of some samples.

    Attributes:
        samples: How many they are.
        sizes: (width, height, number of samples), the most frequent first.
        class_pixels: Labelled pixels by class name.
        class_images: Number of samples in which a class occurs, by its name.
        mean: Of the red, green and blue of all pixels looked at, each in 0..1.
        std: Standard deviation, likewise.
        looked_at: Number of images that `mean` and `std` were taken from.
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
    """Return the figures of `samples`: of all their labels, and of the pixels of some images.

    Args:
        samples: At least one, of one prepared dataset.
        name: Of that dataset.
        images: How many images to open, evenly spread; 0 for all.
        jobs: Images opened at once; None for one a core.
        on_event: Hears of the progress.

    Raises:
        DataError: An image cannot be read, or the dataset's records do not cover the samples.
    """
    pixels = _class_pixels(samples, name)
    chosen = evenly_spaced(samples, images or len(samples))
    mean, std = _mean_and_std(_histograms(chosen, jobs, on_event))
    sizes = Counter((sample.width, sample.height) for sample in samples)
    return Statistics(
        samples=len(samples),
        sizes=tuple((*size, count) for size, count in sizes.most_common()),
        class_pixels=_by_class(pixels.sum(axis=0)),
        class_images=_by_class((pixels > 0).sum(axis=0)),
        mean=mean,
        std=std,
        looked_at=len(chosen),
    )


def _class_pixels(samples: Sequence[Sample], name: str) -> NDArray[np.int64]:
    """Return the (samples, classes) labelled pixels that `prepare` counted."""
    root = dataset_root(name)
    counted = {record.sample.id: record.pixels for record in read_records(root)}
    lacking = next((sample.id for sample in samples if sample.id not in counted), None)
    if lacking:
        raise DataError(
            f"{root / RECORDS} says nothing of the sample {lacking}.",
            f"Prepare it again: 'pinmem data prepare {name}'.",
        )
    return np.array([counted[sample.id] for sample in samples], dtype=np.int64)


def _by_class(values: NDArray[np.int64]) -> dict[str, int]:
    return {c.name: int(values[c.train_id]) for c in CLASSES}


def _histograms(
    samples: Sequence[Sample], jobs: int | None, on_event: Listener
) -> NDArray[np.int64]:
    """Return how often each of the 256 values occurs in all images: (3, 256), exact."""
    total = np.zeros((3, _BRIGHTEST + 1), np.int64)
    with closing(parallel_map(_histogram, samples, jobs)) as histograms:
        for done, histogram in enumerate(histograms, start=1):
            total += histogram
            on_event(Progress("looking at images", done, len(samples)))
    return total


def _histogram(sample: Sample) -> NDArray[np.int64]:
    with sample.mendable():
        counts = Image.fromarray(read_image(sample.image)).histogram()
    return np.array(counts, dtype=np.int64).reshape(3, -1)


def _mean_and_std(histograms: NDArray[np.int64]) -> tuple[Channels, Channels]:
    values = np.arange(_BRIGHTEST + 1) / _BRIGHTEST
    shares = histograms / histograms.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    return _channels(mean), _channels(np.sqrt(variance))


def _channels(figures: NDArray[np.float64]) -> Channels:
    red, green, blue = figures.tolist()
    return red, green, blue
