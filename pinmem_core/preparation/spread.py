"""A few samples that stand for many."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def spread(samples: Sequence[Item], count: int) -> list[Item]:
    """Return `count` evenly spread `samples`, the first and the last among them; at most all."""
    indices = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return [samples[index] for index in indices]
