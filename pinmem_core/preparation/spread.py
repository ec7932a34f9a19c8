"""A few samples that stand for many."""

from collections.abc import Sequence

import numpy as np

from pinmem_core.preparation.prepared import Sample


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return `count` evenly spread `samples`, the first and the last among them; at most all."""
    indices = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return [samples[index] for index in indices]
