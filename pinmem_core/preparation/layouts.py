"""Finding a card's image and label files in a folder."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pinmem_core.datasets import DatasetCard, Layout
from pinmem_core.errors import DataError

_FIELD = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


@dataclass(frozen=True)
class RawSample:
    """An image and the label file that should belong to it, as they lie on disk."""

    id: str
    domain: str
    split: str | None
    image: Path
    label: Path


def find_samples(card: DatasetCard, folder: Path) -> tuple[Layout, list[RawSample]]:
    """Return the first layout of `card` that `folder` has images of, and its samples by id.

    Raises:
        DataError: The folder does not exist, or no layout fits.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder.", "Name the folder that holds the dataset.")
    paths = sorted(_relative_files(folder))
    for layout in card.layouts:
        samples = list(_match(layout, folder, paths))
        if samples:
            return layout, sorted(samples, key=lambda sample: sample.id)
    expected = "; ".join(f"{layout.image} ({layout.name})" for layout in card.layouts)
    raise DataError(f"{folder} holds no images of {card.name}.", f"Expected one of: {expected}.")


def _relative_files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent, name).relative_to(folder).as_posix()


def _match(layout: Layout, folder: Path, paths: list[str]) -> Iterator[RawSample]:
    pattern = re.compile(_expression(layout.image))
    for path in paths:
        match = pattern.fullmatch(path)
        if match:
            fields = match.groupdict()
            yield RawSample(
                id=layout.id.format(**fields),
                domain=layout.domain.format(**fields),
                split=layout.split.format(**fields) if layout.split else None,
                image=folder / path,
                label=folder / layout.label.format(**fields),
            )


def _expression(pattern: str) -> str:
    """Return the regular expression that a layout's `image` pattern stands for."""
    expression, end = "", 0
    for field in _FIELD.finditer(pattern):
        name, inner = field.groups()
        expression += re.escape(pattern[end : field.start()]) + f"(?P<{name}>{inner or '[^/]+'})"
        end = field.end()
    return expression + re.escape(pattern[end:])
