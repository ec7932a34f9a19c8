"""Rare-class sampling: draw a class, then an image that contains it.

Source: DAFormer (Hoyer et al., CVPR 2022), section 3.2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinmem_core.data.convert import read_records
from pinmem_core.data.prepared import RECORDS
from pinmem_core.data.samples import Sample, ids_of
from pinmem_core.errors import DataError
from pinmem_core.paths import dataset_root

CROPS = 10
"""Maximum number of crops that are drawn from an image to show the class."""
LEAST = 0.005
"""Share of the crop that the class has to fill; otherwise another crop is drawn."""


class ClassSampler(NamedTuple):
    """The samples of a domain by class.

    Attributes:
        probabilities: Probability of each class, (K,): P(c) ~ exp((1 - f_c) / T), where f_c is the
            share of the domain's labelled pixels; 0 for a class that does not occur.
        members: Indices of the samples that contain each class.
    """

    probabilities: NDArray[np.float64]
    members: list[NDArray[np.intp]]

    @classmethod
    def of(cls, pixels: NDArray[np.int64], temperature: float) -> "ClassSampler":
        """Return the sampler for the pixels of each sample and class, (N, K)."""
        totals = pixels.sum(axis=0)
        shares = totals / max(1, totals.sum())
        occurs = totals > 0
        exponents = np.where(occurs, (1 - shares) / temperature, -np.inf)
        weights = np.exp(exponents - exponents.max())
        return cls(weights / weights.sum(), [np.flatnonzero(column) for column in pixels.T])

    def draw(self, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
        """Draw samples with replacement; return index and class of each."""
        classes = rng.choice(len(self.probabilities), size=count, p=self.probabilities)
        return [(int(rng.choice(self.members[c])), int(c)) for c in classes]


def class_pixels(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Return the labelled pixels of each sample and class of the samples' label space, (N, K).

    Args:
        samples: Samples of one prepared dataset, at least one.

    Raises:
        DataError: The dataset has no record of a sample, or no sample has a labelled pixel.
    """
    name, reading = samples[0].dataset, samples[0].reading
    table = reading.own.table_to(reading.space)[: len(reading.own)]
    kept = table < len(reading.space)
    rows = {sample: row for row, sample in enumerate(ids_of(samples))}
    counts = np.zeros((len(rows), len(reading.space)), np.int64)
    for record in read_records(dataset_root(name)):
        row = rows.pop(record.sample.id, None)
        if row is not None:
            np.add.at(counts[row], table[kept], np.array(record.pixels)[kept])
    if not rows and not counts.any() and reading.table:
        raise DataError(
            f"no pixel of {name} belongs to one of the classes '{reading.space.name}', so that "
            "rare classes cannot be sampled.",
            reading.how_to_assign,
        )
    if rows or not counts.any():
        what = f"nothing of the sample {next(iter(rows))}" if rows else "of no labelled pixel"
        raise DataError(
            f"{dataset_root(name) / RECORDS} says {what}, so that rare classes cannot be sampled.",
            f"Prepare it again: 'pinmem data prepare {name}'.",
        )
    return counts
