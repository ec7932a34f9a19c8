"""Layouts: the images and label files of a card below some folders."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from time import process_time

import regex

from pinmem_core.data.card import FIELD, DatasetCard, Layout, fields_of
from pinmem_core.data.raw_files import (
    TRAIN_IDS,
    RawFiles,
    count_classes,
    fits_version,
    hold_train_ids,
    is_assumed,
    reads_ids,
    split_called,
)
from pinmem_core.errors import DataError, unknown_name
from pinmem_core.paths import as_id, as_text

_SHOWN = 3
LONGEST_MATCH = 3.0
"""Seconds that an expression may take over a single path."""
_MEAN = 1e-4
"""Seconds that it may take over a path of many, on average: twenty times the usual."""


@dataclass(frozen=True)
class RawSample:
    """An image and the label file that belongs to it, as they lie on disk.

    Attributes:
        id: Name of the sample.
        domain: Its domain inside the dataset.
        split: Its split; None where folders tell none.
        image: The image file.
        label: The label file; None where it is missing.
        others: Names of a few files that lie where the missing label should be.
    """

    id: str
    domain: str
    split: str | None
    image: Path
    label: Path | None
    others: tuple[str, ...] = ()

    @property
    def lack(self) -> str:
        """What to say where the label is missing."""
        there = f", but {', '.join(self.others)} is there" if self.others else ""
        return f"its label is missing{there}"


@dataclass(frozen=True)
class Found:
    """What some folders hold of a dataset.

    Attributes:
        layout: The layout that fits best.
        samples: By id; one without a label file has None there.
        orphans: Label files without an image.
        doubles: Images of samples that were found elsewhere already.
        other_layouts: The layout of each split that `layout` finds no or few labels of.
        label_map: The label map that was asked for; None for that of each layout.
        is_assumed: Whether another version of the dataset might look the same.
        left_splits: Splits whose labels do not hold the trainIds that were asked for.
    """

    layout: Layout
    samples: list[RawSample]
    orphans: list[Path] = field(default_factory=list)
    doubles: list[Path] = field(default_factory=list)
    other_layouts: Mapping[str, Layout] = field(default_factory=dict)
    label_map: str | None = None
    is_assumed: bool = False
    left_splits: tuple[str, ...] = ()

    @property
    def labels(self) -> list[Path]:
        """The label files of the samples."""
        return [sample.label for sample in self.samples if sample.label]

    @property
    def pairs(self) -> int:
        """How many samples are complete."""
        return sum(sample.label is not None for sample in self.samples)

    def layout_of(self, sample: RawSample) -> Layout:
        """Return the layout by which a sample was found."""
        return self.other_layouts.get(sample.split or "", self.layout)

    def label_map_of(self, layout: Layout) -> str:
        """Return the name of the label map that translates the labels of a layout."""
        return self.label_map or layout.label_maps[0]

    def by_split(self) -> dict[str | None, list[RawSample]]:
        """Return the samples of each split that folders tell."""
        splits = defaultdict(list)
        for sample in self.samples:
            splits[sample.split].append(sample)
        return splits

    def pairs_by_split(self) -> Counter[str]:
        """Return how many complete samples each split has, those without a split left out."""
        return Counter(s.split for s in self.samples if s.label and s.split)


def find_samples(card: DatasetCard, folders: Sequence[Path], label_map: str | None = None) -> Found:
    """Return what `folders` hold of a dataset, by the layout with most complete pairs.

    A split of which another layout finds more than twice as many pairs is taken from that one.
    Names are compared without regard to the case of letters and to how accents are encoded.

    Args:
        card: The dataset.
        folders: Where to look, at any depth.
        label_map: Only layouts whose labels this map fits; None for any.

    Raises:
        ConfigError: The card has no such label map.
        DataError: A folder does not exist or cannot be listed, or no layout fits.
    """
    disguised = [lay for lay in card.layouts if label_map == TRAIN_IDS and reads_ids(card, lay)]
    if label_map and label_map not in card.label_map_names and not disguised:
        raise unknown_name(f"label map of {card.name}", label_map, card.label_map_names)
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder.", "Name the folder that holds the dataset.")
    files = RawFiles(folders)
    layouts = [lay for lay in card.layouts if label_map in (None, *lay.label_maps)]
    candidates = _candidates(card, layouts, disguised, files)
    if files.hold_backslashes and not any(found.pairs for found in candidates):
        files = RawFiles(folders, split_backslashes=True)
        candidates = _candidates(card, layouts, disguised, files)
    classes, named = count_classes(files), label_map is not None
    fitting = [
        found
        for found in candidates
        if fits_version(card, found.layout, found.labels, classes, named=named)
    ]
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
        raise DataError(
            f"{places} holds no images of {card.name}.",
            f"Looked at any depth for: {expected}. Found: {_listed(files)}.",
        )
    assumed = not named and is_assumed(best.layout, best.labels, classes)
    return replace(_by_split(best, fitting), label_map=label_map, is_assumed=assumed)


def _candidates(
    card: DatasetCard, layouts: Sequence[Layout], disguised: Sequence[Layout], files: RawFiles
) -> list[Found]:
    """Return what each layout finds."""
    found = [_match(card, layout, files) for layout in layouts]
    return found + [_with_train_ids(_match(card, layout, files)) for layout in disguised]


def refuse_disguised(card: DatasetCard, found: Found) -> None:
    """Refuse labels that would be read as Cityscapes ids, but hold trainIds.

    Args:
        card: The dataset.
        found: Its files.

    Raises:
        DataError: The labels of a split are such.
    """
    for split, samples in found.by_split().items():
        labels = [sample.label for sample in samples if sample.label]
        layout = found.layout_of(samples[0])
        if not labels or found.label_map == TRAIN_IDS or not reads_ids(card, layout):
            continue
        if hold_train_ids(labels):
            of_split = f" of the split {split}" if split else ""
            raise DataError(
                f"the labels{of_split}, such as {labels[0]}, hold trainIds (255 occurs, and "
                "nothing from 19 to 33), but would be read as Cityscapes ids.",
                "Add '--label-map trainids'. If other splits do hold ids, rename only these files "
                "as labelTrainIds.",
            )


def _listed(files: RawFiles) -> str:
    """Return what there is instead of what was looked for."""
    suffixes = files.suffixes()
    counts = ", ".join(f"{count} *{suffix}" for suffix, count in islice(suffixes.items(), _SHOWN))
    return f"{counts}, e.g. {files.texts[0]}" if counts else "no files"


def _match(card: DatasetCard, layout: Layout, files: RawFiles) -> Found:
    matches = _matches(layout, layout.image, files)
    found = [_sample(card, layout, match, number, files) for number, match in matches.items()]
    samples: dict[str, RawSample] = {}
    for sample in sorted(found, key=lambda sample: sample.label is None):  # pairs come first
        samples.setdefault(sample.id, sample)
    matching = _matches(layout, layout.label, files, inner=fields_of(layout.image))
    used = {sample.label for sample in found}
    return Found(
        layout,
        samples=[samples[key] for key in sorted(samples)],
        orphans=[path for path in map(files.path, matching) if path not in used],
        doubles=[sample.image for sample in found if samples[sample.id] is not sample],
    )


def _matches(
    layout: Layout, pattern: str, files: RawFiles, inner: Mapping[str, str] | None = None
) -> dict[int, regex.Match[str]]:
    """Return the matches of a layout's path by the number of the file.

    An expression of many parts may fit a path in more ways than there is time to try.
    """
    try:
        expression = _expression(pattern, inner)
    except (regex.error, RecursionError) as error:
        reason = str(error).partition(" at position")[0]
        raise DataError(
            f"the path '{pattern[:200]}' of the layout '{layout.name}' is wrong: {reason}."
        ) from None
    found: dict[int, regex.Match[str]] = {}
    end = process_time() + LONGEST_MATCH + _MEAN * len(files.texts)
    text = ""
    try:
        for number, text in enumerate(files.texts):
            if match := expression.fullmatch(text, timeout=LONGEST_MATCH):
                found[number] = match
            if process_time() > end:
                raise TimeoutError
    except TimeoutError:
        raise DataError(
            f"the layout '{layout.name}' takes too long to compare with paths such as {text}.",
            "Give its fields expressions that match less, e.g. {frame:[0-9]+}.",
        ) from None
    return found


def _sample(
    card: DatasetCard, layout: Layout, match: regex.Match[str], number: int, files: RawFiles
) -> RawSample:
    fields = match.groupdict()
    image = files.path(number)
    label = _label(as_text(layout.label).format(**fields), image, files)
    split = layout.split.format(**fields) if layout.split else None
    return RawSample(
        id=as_id(layout.id.format(**fields)),
        domain=_domain(card, layout.domain.format(**fields)) if layout.domain else card.name,
        split=split_called(split) if split else None,
        image=image,
        label=label,
        others=() if label else _others(layout, fields, number, files),
    )


def _label(tail: str, image: Path, files: RawFiles) -> Path | None:
    """Return the file that `tail` names: of several the one of the same case, then the closest."""
    numbers = files.ending_with(tail)
    if len(numbers) == 1:
        return files.path(numbers[0])
    return max(
        map(files.path, numbers),
        key=lambda path: (path.as_posix().endswith(tail), _shared(path, image)),
        default=None,
    )


def _domain(card: DatasetCard, name: str) -> str:
    """Return a domain as the card writes it, where only the case of letters differs."""
    if name in card.domains:
        return name
    return next((known for known in card.domains if known.casefold() == name.casefold()), name)


def _others(
    layout: Layout, fields: Mapping[str, str], number: int, files: RawFiles
) -> tuple[str, ...]:
    """Return names of files that lie where a sample's label should be, and are named like it."""
    label = as_text(layout.label)
    end = max((match.end() for match in FIELD.finditer(label) if match[1]), default=len(label))
    beginning = label[:end].format(**fields)
    others = (n for n in files.beginning_with(beginning, label.count("/") + 1) if n != number)
    return tuple(files.path(other).name for other in islice(others, _SHOWN))


def _shared(one: Path, other: Path) -> int:
    """Return how many leading folders two paths share: a part's labels lie beside its images."""
    pairs = zip(one.parts, other.parts, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(one.parts))


def _with_train_ids(found: Found) -> Found:
    """Return what was found without those splits whose labels hold no trainIds."""
    holding = {
        split: hold_train_ids([sample.label for sample in samples if sample.label])
        for split, samples in found.by_split().items()
    }
    return replace(
        found,
        samples=[sample for sample in found.samples if holding[sample.split]],
        left_splits=tuple(split for split, holds in holding.items() if split and not holds),
    )


def _by_split(best: Found, fitting: Sequence[Found]) -> Found:
    """Return `best` with those splits that another layout finds far more labels of."""
    have = best.pairs_by_split()
    if best.pairs > have.total():
        return best  # without splits, layouts do not divide the dataset
    samples = {sample.id: sample for sample in best.samples}
    layouts: dict[str, Layout] = {}
    for other in sorted(fitting, key=lambda found: -found.pairs):
        more = other.pairs_by_split()
        splits = {split for split in more if more[split] > 2 * have[split]}
        samples |= {s.id: s for s in other.samples if s.split in splits}
        layouts |= dict.fromkeys(splits, other.layout)
        have |= {split: more[split] for split in splits}
    ordered = [samples[key] for key in sorted(samples)]
    return replace(best, samples=ordered, other_layouts=layouts)


def _expression(pattern: str, inner: Mapping[str, str] | None = None) -> regex.Pattern[str]:
    """Return the regular expression of a layout's path, at any depth and in any case of letters.

    Args:
        pattern: The path with its fields.
        inner: Expressions of fields that `pattern` itself says none for.
    """
    pattern = as_text(pattern)
    expression, end = "", 0
    seen: set[str] = set()
    for match in FIELD.finditer(pattern):
        name, own = match.groups()
        expression += re.escape(pattern[end : match.start()])
        end = match.end()
        if name is None:
            expression += re.escape(match[0][0])
        elif name in seen:
            expression += f"(?P={name})"
        else:
            expression += f"(?P<{name}>{own or (inner or {}).get(name) or '[^/]+'})"
            seen.add(name)
    expression += re.escape(pattern[end:])
    return regex.compile(f"(?:.*/)?{expression}", regex.IGNORECASE | regex.DOTALL)
