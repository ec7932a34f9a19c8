"""Whether a prepared dataset holds all that its authors published."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pinmem_core.datasets import DatasetCard

_NOT_MISSED = {"double", "known defect", "not listed"}
"""Rules that leave out what the published counts do not count."""


@dataclass(frozen=True)
class Difference:
    """A split of which another number of samples is here than was published."""

    split: str
    published: int
    here: int


def differences(
    counts: Mapping[str, int], summary: Mapping[str, Any], card: DatasetCard
) -> list[Difference]:
    """Return the splits that are not of their published size, by name.

    Of a dataset that came in a pack only those splits that were packed.

    Args:
        counts: Number of prepared samples by split.
        summary: `dataset.json`.
        card: Card of the dataset.
    """
    expected = summary.get("splits", card.counts)
    every = [
        Difference(name, published, counts.get(name, 0))
        for name, published in sorted(card.counts.items())
        if name in expected
    ]
    return [difference for difference in every if difference.published != difference.here]


def left_out(summary: Mapping[str, Any]) -> int:
    """Return the number of samples that were found and left out as defective."""
    excluded = summary.get("excluded", [])
    return sum(defect["rule"] not in _NOT_MISSED for defect in excluded)


def is_complete(counts: Mapping[str, int], summary: Mapping[str, Any], card: DatasetCard) -> bool:
    """Tell whether no published sample is missing, those counted that were left out."""
    missing = sum(max(0, d.published - d.here) for d in differences(counts, summary, card))
    return missing <= left_out(summary)
