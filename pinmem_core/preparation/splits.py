"""Which split each sample belongs to."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from pinmem_core.paths import as_id
from pinmem_core.preparation.layouts import RawSample

HELD_OUT = 5
"""Where nobody published a split, one sample in so many is held out for validation."""

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(entries: Sequence[str]) -> Iterator[str]:
    """Yield the ids of a split list; "00001..00010" stands for ten of them."""
    for entry in entries:
        match = _RANGE.fullmatch(entry)
        if not match:
            yield as_id(entry)
            continue
        first, last = match.groups()
        for number in range(int(first), int(last) + 1):
            yield f"{number:0{len(first)}}"


def split_of_each(
    samples: Sequence[RawSample], lists: Mapping[str, Sequence[str]]
) -> dict[str, str | None]:
    """Return each sample's split by id; None for one that the lists leave out.

    Lists overrule folders. Without either, the last fifth of each domain is "val": a contiguous
    part, because neighbouring frames of a drive are nearly the same.
    """
    if lists:
        listed = {sample_id: split for split, ids in lists.items() for sample_id in expand(ids)}
        return {sample.id: listed.get(sample.id) for sample in samples}
    by_domain: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        by_domain[sample.domain].append(sample.id)
    held_out = {
        sample_id
        for ids in by_domain.values()
        for sample_id in ids[len(ids) - len(ids) // HELD_OUT :]
    }
    return {s.id: s.split or ("val" if s.id in held_out else "train") for s in samples}
