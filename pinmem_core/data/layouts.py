"""Match the layouts of a card with the images and label files below some folders."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from time import process_time

import regex

from pinmem_core.data.card import FIELD, DatasetCard, Layout, fields_of
from pinmem_core.data.encodings.coco import images_without_entry, likeness
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
from pinmem_core.paths import as_domain, as_id, as_text

_SHOWN = 3
LONGEST_MATCH = 3.0
"""Seconds that an expression may take for a single path."""
_MEAN = 1e-4
"""Seconds that it may take for one of many paths on average: twenty times the usual time."""


@dataclass(frozen=True)
class RawSample:
    """An image and its label file on disk.

    Attributes:
        id: Id of the sample.
        domain: Domain inside the dataset.
        split: Split; None if no folder gives it.
        image: Image file.
        label: Label file; None if it is missing.
        reason: Why there is no label.
    """

    id: str
    domain: str
    split: str | None
    image: Path
    label: Path | None
    reason: str = ""


@dataclass(frozen=True)
class LayoutMatch:
    """The files of a dataset that a layout matches.

    Attributes:
        layout: Layout that fits best.
        samples: Samples sorted by id; `label` is None without a label file.
        orphans: Label files without an image.
        duplicates: Images of samples that were already found elsewhere.
        other_layouts: Layout of each split for which `layout` matches no or few labels.
        label_map: Name of the requested label map; None for the default of each layout.
        is_assumed: Whether another version of the dataset might look the same.
        left_splits: Splits whose labels do not hold the requested trainIds.
    """

    layout: Layout
    samples: list[RawSample]
    orphans: list[Path] = field(default_factory=list)
    duplicates: list[Path] = field(default_factory=list)
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
        """Number of samples with a label."""
        return len(self.labels)

    def label_map_of(self, layout: Layout) -> str:
        """Return the name of the label map for the labels of a layout."""
        return self.label_map or layout.label_maps[0]

    def labels_by_split(self) -> dict[str | None, list[Path]]:
        """Return the label files of each split that folders give."""
        splits: dict[str | None, list[Path]] = defaultdict(list)
        for sample in self.samples:
            splits[sample.split] += [sample.label] if sample.label else []
        return splits


def find_samples(
    card: DatasetCard, folders: Sequence[Path], label_map: str | None = None
) -> LayoutMatch:
    """Return the files of a dataset in `folders`, by the layout with the most complete pairs.

    A split for which another layout matches more than twice as many pairs is taken from that one.
    The case of letters and the encoding of accents do not matter.

    Args:
        card: Card of the dataset.
        folders: Folders to search, at any depth.
        label_map: Name of a label map; only layouts with such labels are considered. None for any.

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
    matches = _match_all(card, layouts, disguised, files)
    if files.hold_backslashes and not any(match.pairs for match in matches):
        files = RawFiles(folders, split_backslashes=True)
        matches = _match_all(card, layouts, disguised, files)
    classes, named = count_classes(files), label_map is not None
    fitting = [
        match
        for match in matches
        if fits_version(card, match.layout, match.labels, classes, named=named)
    ]
    best = max(fitting, key=lambda match: (match.pairs, len(match.samples)), default=None)
    places = ", ".join(map(str, folders))
    if any(match.pairs for match in matches) and not (best and best.pairs):
        raise DataError(
            f"the labels in {places} are of another version of {card.name} than the label map "
            f"'{label_map}' is for.",
            f"The label maps of {card.name}: {', '.join(card.label_map_names)}.",
        )
    if best is None or not best.samples:
        expected = "; ".join(f"{layout.image} ({layout.name})" for layout in layouts)
        suffixes = islice(files.suffixes().items(), _SHOWN)
        counts = ", ".join(f"{count} *{suffix}" for suffix, count in suffixes)
        present = f"{counts}, e.g. {files.texts[0]}" if counts else "no files"
        raise DataError(
            f"{places} holds no images of {card.name}.",
            f"Looked at any depth for: {expected}. Found: {present}.",
        )
    assumed = not named and is_assumed(best.layout, best.labels, classes)
    return replace(_by_split(best, fitting), label_map=label_map, is_assumed=assumed)


def refuse_disguised(card: DatasetCard, match: LayoutMatch) -> None:
    """Refuse labels that would be read as Cityscapes ids, but hold trainIds.

    Raises:
        DataError: The labels of a split are such.
    """
    for split, labels in match.labels_by_split().items():
        layout = match.other_layouts.get(split or "", match.layout)
        if not labels or match.label_map == TRAIN_IDS or not reads_ids(card, layout):
            continue
        if hold_train_ids(labels):
            of_split = f" of the split {split}" if split else ""
            raise DataError(
                f"the labels{of_split}, such as {labels[0]}, hold trainIds (255 occurs, and "
                "nothing from 19 to 33), but would be read as Cityscapes ids.",
                "Add '--label-map trainids'. If other splits do hold ids, rename only these files "
                "as labelTrainIds.",
            )


def _match_all(
    card: DatasetCard, layouts: Sequence[Layout], disguised: Sequence[Layout], files: RawFiles
) -> list[LayoutMatch]:
    matches = [_match(card, layout, files) for layout in layouts]
    return matches + [_with_train_ids(_match(card, layout, files)) for layout in disguised]


def _match(card: DatasetCard, layout: Layout, files: RawFiles) -> LayoutMatch:
    images = _matching_paths(layout, layout.image, files)
    every = [_sample(card, layout, fields, number, files) for number, fields in images.items()]
    used = {sample.label for sample in every}
    every = [sample for sample in every if sample.image not in used]  # the label of another
    samples: dict[str, RawSample] = {}
    # Pairs come first, and images that lie less deep: others may be copies or changed.
    for sample in sorted(every, key=lambda s: (s.label is None, len(s.image.parts))):
        samples.setdefault(sample.id, sample)
    labels = _matching_paths(layout, layout.label, files, inner=fields_of(layout.image))
    chosen = [samples[key] for key in sorted(samples)]
    return LayoutMatch(
        layout,
        samples=_without_labels_of_others(chosen) if layout.encoding == "coco" else chosen,
        orphans=[p for p in map(files.path, labels) if p not in used and not _is_list(p)],
        duplicates=[sample.image for sample in every if samples[sample.id] is not sample],
    )


def _matching_paths(
    layout: Layout, pattern: str, files: RawFiles, inner: Mapping[str, str] | None = None
) -> dict[int, dict[str, str]]:
    """Return the fields of each path that a pattern matches, by the number of the file.

    Matching is limited in time, as an expression may match a path in exponentially many ways.
    """
    try:
        expression = _expression(pattern, inner)
    except (regex.error, RecursionError) as error:
        reason = str(error).partition(" at position")[0]
        raise DataError(
            f"the path '{pattern[:200]}' of the layout '{layout.name}' is wrong: {reason}."
        ) from None
    fields: dict[int, dict[str, str]] = {}
    end = process_time() + LONGEST_MATCH + _MEAN * len(files.texts)
    text = ""
    try:
        for number, text in enumerate(files.texts):
            if match := expression.fullmatch(text, timeout=LONGEST_MATCH):
                fields[number] = match.groupdict()
            if process_time() > end:
                raise TimeoutError
    except TimeoutError:
        raise DataError(
            f"the layout '{layout.name}' takes too long to compare with paths such as {text}.",
            "Give its fields expressions that match less, e.g. {frame:[0-9]+}.",
        ) from None
    return fields


def _sample(
    card: DatasetCard, layout: Layout, fields: Mapping[str, str], number: int, files: RawFiles
) -> RawSample:
    image = files.path(number)
    tails = [as_text(tail).format(**fields) for tail in (layout.label, *layout.more_labels)]
    labels = [path for tail in tails if (path := _label(tail, image, files))]
    if len(tails) > 1:  # of several files, the one with the likeliest entry
        labels.sort(key=lambda path: likeness(path, image), reverse=True)
        labels = [path for path in labels[:1] if likeness(path, image)[0]]
    split = layout.split.format(**fields) if layout.split else None
    domain = as_domain(layout.domain.format(**fields)) if layout.domain else card.name
    if domain not in card.domains:  # the card's spelling, if only the case differs
        same = (known for known in card.domains if known.casefold() == domain.casefold())
        domain = next(same, domain)
    return RawSample(
        id=as_id(layout.id.format(**fields)),
        domain=domain,
        split=split_called(split) if split else None,
        image=image,
        label=labels[0] if labels else None,
        reason="" if labels else _reason(layout, fields, number, files),
    )


def _without_labels_of_others(samples: Sequence[RawSample]) -> list[RawSample]:
    """Return samples of COCO; one whose entry belongs to another image has no label."""
    without = images_without_entry((s.label, s.image) for s in samples if s.label)
    reason = "the annotations of its name may be those of another image"
    return [replace(s, label=None, reason=reason) if s.image in without else s for s in samples]


def _is_list(path: Path) -> bool:
    """Return whether a text next to labels is a list of classes or of the samples of a split."""
    names = "classes", "train", "val", "test"
    return path.suffix.lower() == ".txt" and split_called(path.stem.lower()) in names


def _label(tail: str, image: Path, files: RawFiles) -> Path | None:
    """Return the file that `tail` names; among several, that of the same case, then the closest."""
    numbers = files.ending_with(tail)
    if len(numbers) == 1:
        return files.path(numbers[0])

    def rank(path: Path) -> tuple[bool, int]:
        pairs = enumerate(zip(path.parts, image.parts, strict=False))
        shared = next((n for n, (a, b) in pairs if a != b), len(path.parts))
        return path.as_posix().endswith(tail), shared

    return max(map(files.path, numbers), key=rank, default=None)


def _reason(layout: Layout, fields: Mapping[str, str], number: int, files: RawFiles) -> str:
    """Return the message for a missing label; it names files in its place with a similar name."""
    label = as_text(layout.label)
    end = max((match.end() for match in FIELD.finditer(label) if match[1]), default=len(label))
    beginning = label[:end].format(**fields)
    others = (n for n in files.beginning_with(beginning, label.count("/") + 1) if n != number)
    names = ", ".join(files.path(other).name for other in islice(others, _SHOWN))
    return "its label is missing" + (f", but {names} is there" if names else "")


def _with_train_ids(match: LayoutMatch) -> LayoutMatch:
    """Return a match without the splits whose labels do not hold trainIds."""
    holding = {split: hold_train_ids(labels) for split, labels in match.labels_by_split().items()}
    return replace(
        match,
        samples=[sample for sample in match.samples if holding[sample.split]],
        left_splits=tuple(split for split, holds in holding.items() if split and not holds),
    )


def _by_split(best: LayoutMatch, fitting: Sequence[LayoutMatch]) -> LayoutMatch:
    """Return `best` with the splits for which another layout matches far more labels."""

    def pairs(match: LayoutMatch) -> Counter[str]:
        return Counter(s.split for s in match.samples if s.label and s.split)

    have = pairs(best)
    if best.pairs > have.total():
        return best  # some samples have no split
    samples = {sample.id: sample for sample in best.samples}
    layouts: dict[str, Layout] = {}
    for other in sorted(fitting, key=lambda match: -match.pairs):
        more = pairs(other)
        splits = {split for split in more if more[split] > 2 * have[split]}
        samples |= {s.id: s for s in other.samples if s.split in splits}
        layouts |= dict.fromkeys(splits, other.layout)
        have |= {split: more[split] for split in splits}
    ordered = [samples[key] for key in sorted(samples)]
    return replace(best, samples=ordered, other_layouts=layouts)


def _expression(pattern: str, inner: Mapping[str, str] | None = None) -> regex.Pattern[str]:
    """Return the expression of a pattern; `inner` has those of fields without one of their own."""
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
