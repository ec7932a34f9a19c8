"""Finding a card's images and label files, wherever they lie below some folders."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pinmem_core.datasets import FIELD, DatasetCard, Layout
from pinmem_core.errors import DataError, unknown_name
from pinmem_core.preparation.encodings import ENCODINGS

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_LOOKED_AT = 32
"""Label files that are opened to tell versions apart by their largest id."""


@dataclass(frozen=True)
class RawSample:
    """An image and the label file that belongs to it, as they lie on disk."""

    id: str
    domain: str
    split: str | None
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Found:
    """What some folders hold of a dataset.

    Attributes:
        layout: The layout that fits best.
        samples: By id; one without a label file has None there.
        orphans: Label files without an image.
        doubles: Images of samples that were found elsewhere already.
    """

    layout: Layout
    samples: list[RawSample]
    orphans: list[Path] = field(default_factory=list)
    doubles: list[Path] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        """How many samples are complete."""
        return sum(sample.label is not None for sample in self.samples)


def find_samples(card: DatasetCard, folders: Sequence[Path], label_map: str | None = None) -> Found:
    """Return what `folders` hold of a dataset, by the layout with most complete pairs.

    Args:
        card: The dataset.
        folders: Where to look, at any depth.
        label_map: Only layouts whose labels this map fits; None for any.

    Raises:
        ConfigError: The card has no such label map.
        DataError: A folder does not exist, or no layout fits.
    """
    if label_map and label_map not in card.label_map_names:
        raise unknown_name(f"label map of {card.name}", label_map, card.label_map_names)
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder.", "Name the folder that holds the dataset.")
    files = _Files(folders)
    layouts = [lay for lay in card.layouts if label_map in (None, *lay.label_maps)]
    candidates = [_match(card, layout, files) for layout in layouts]
    fitting = [found for found in candidates if _version_fits(card, found)]
    best = max(fitting, key=lambda found: (found.pairs, len(found.samples)), default=None)
    places = ", ".join(map(str, folders))
    if any(found.pairs for found in candidates) and not (best and best.pairs):
        raise DataError(
            f"the labels in {places} are of another version of {card.name} than the label map "
            f"'{label_map}' is for.",
            f"The label maps of {card.name}: {', '.join(card.label_map_names)}.",
        )
    if best is None or not best.samples:
        expected = "; ".join(f"{layout.image} ({layout.name})" for layout in layouts)
        hint = f"Looked at any depth for: {expected}."
        raise DataError(f"{places} holds no images of {card.name}.", hint)
    return best


class _Files:
    """All files below some folders, and an index by the last parts of their paths."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.paths = sorted((folder, path) for folder in folders for path in files_below(folder))
        self._by_tail: dict[int, dict[str, list[Path]]] = {}

    def ending_with(self, tail: str) -> list[Path]:
        length = tail.count("/") + 1
        if length not in self._by_tail:
            index = defaultdict(list)
            for folder, path in self.paths:
                index["/".join(path.split("/")[-length:])].append(folder / path)
            self._by_tail[length] = index
        return self._by_tail[length].get(tail, [])


def files_below(folder: Path) -> Iterator[str]:
    """Yield the relative paths of the files below `folder`.

    Links are followed, as datasets are often linked together; hidden folders are passed over.
    """
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            yield Path(parent, name).relative_to(folder).as_posix()


def _match(card: DatasetCard, layout: Layout, files: _Files) -> Found:
    pattern = _expression(layout.image)
    matches = [(folder / path, pattern.fullmatch(path)) for folder, path in files.paths]
    found = [_sample(card, layout, m.groupdict(), image, files) for image, m in matches if m]
    samples: dict[str, RawSample] = {}
    for sample in sorted(found, key=lambda sample: sample.label is None):  # pairs come first
        samples.setdefault(sample.id, sample)
    labels = _expression(layout.label, inner=dict(FIELD.findall(layout.image)))
    used = {sample.label for sample in found}
    return Found(
        layout,
        samples=[samples[key] for key in sorted(samples)],
        orphans=[f / p for f, p in files.paths if labels.fullmatch(p) and f / p not in used],
        doubles=[sample.image for sample in found if samples[sample.id] is not sample],
    )


def _sample(
    card: DatasetCard, layout: Layout, fields: Mapping[str, str], image: Path, files: _Files
) -> RawSample:
    labels = files.ending_with(layout.label.format(**fields))
    split = layout.split.format(**fields) if layout.split else None
    return RawSample(
        id=layout.id.format(**fields),
        domain=layout.domain.format(**fields) if layout.domain else card.name,
        split=_SPLIT_NAMES.get(split.lower(), split) if split else None,
        image=image,
        label=max(labels, key=lambda label: _shared(label, image)) if labels else None,
    )


def _shared(one: Path, other: Path) -> int:
    """Return how many leading folders two paths share: a part's labels lie beside its images."""
    pairs = zip(one.parts, other.parts, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(one.parts))


def _version_fits(card: DatasetCard, found: Found) -> bool:
    if found.layout.largest_id is None:
        return True
    low, high = found.layout.largest_id
    labels = [sample.label for sample in found.samples if sample.label]
    step = max(1, len(labels) // _LOOKED_AT)
    largest = max((_largest_id(card, found.layout, path) for path in labels[::step]), default=0)
    return low <= largest <= high


def _largest_id(card: DatasetCard, layout: Layout, label: Path) -> int:
    try:
        decode = ENCODINGS.get(layout.encoding)
        return int(decode(label, card.label_map(layout.label_maps[0])).max())
    except DataError:
        return 0  # told when the file's turn comes


def _expression(pattern: str, inner: Mapping[str, str] | None = None) -> re.Pattern[str]:
    """Return the regular expression of a layout's path, at any depth.

    Args:
        pattern: The path with its fields.
        inner: Expressions of fields that `pattern` itself says none for.
    """
    expression, end = "", 0
    seen: set[str] = set()
    for match in FIELD.finditer(pattern):
        name, own = match.groups()
        inside = own or (inner or {}).get(name) or "[^/]+"
        group = f"(?P={name})" if name in seen else f"(?P<{name}>{inside})"
        expression += re.escape(pattern[end : match.start()]) + group
        seen.add(name)
        end = match.end()
    return re.compile(f"(?:.*/)?{expression}{re.escape(pattern[end:])}")
