"""A draft of a card for data without one."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from textwrap import fill

import yaml

from pinmem_core.data.catalog import shipped_cards
from pinmem_core.data.label_values import UNLABELED, LabelValues, Raw, label_values
from pinmem_core.data.layout_guess import (
    Candidates,
    Patterns,
    best_pairing,
    candidates,
    patterns_of,
)
from pinmem_core.data.raw_files import SPLIT, split_called
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.label_space import CLASS_NAMES, CLASSES, IGNORE_INDEX
from pinmem_core.paths import as_text, expanded, iter_files

_SUFFIXES = (".txt", ".lst", ".csv")
_AFTER_NAME = re.compile(r"[\s,;]")
_LARGEST_FILE = 64 << 20
_LABELLED = re.compile("seg|sem", re.IGNORECASE)


def split_lists(places: Mapping[str, Path], patterns: Patterns) -> tuple[str, dict[str, list[str]]]:
    """Return the folder of the lists that divide the samples, and the ids in each list.

    A list is a text file called like a split ("val", "val_list", "city_val"), with a sample a line:
    its name, or the path of its image. It counts if at least half of its lines name a sample, and
    if there are several in one folder that are called alike. Of several such groups of lists, that
    with most samples is taken.

    Args:
        places: Where the files of the data lie, by their paths as text.
        patterns: The samples.
    """
    ids = _ids(patterns)
    found: dict[tuple[str, str, str], dict[str, list[str]]] = defaultdict(dict)
    for text in sorted(places):
        path = PurePosixPath(text)
        named = _named(path)
        if named and (listed := _read(places[text], ids)):
            before, split, after = named
            found[str(path.parent), before, after][split] = listed
    several = {group: lists for group, lists in found.items() if len(lists) > 1}
    if not several:
        return "", {}
    (folder, *_), lists = max(
        several.items(),
        key=lambda item: (sum(map(len, item[1].values())), bool(_LABELLED.search(item[0][0]))),
    )
    return folder, lists


def _named(path: PurePosixPath) -> tuple[str, str, str] | None:
    """Return the split that a list is called by, between what surrounds it; None for no list."""
    match = SPLIT.fullmatch(path.stem.lower())
    if match is None or path.suffix.lower() not in _SUFFIXES:
        return None
    before, split, after = match.groups()
    if before[-1:].isalpha() or after[:1].isalpha():
        return None  # "trainval"
    return before, split_called(split), after


def _ids(patterns: Patterns) -> dict[str, str | None]:
    """Return the sample that each way to write its name stands for, None for several samples."""
    ids: dict[str, str | None] = {}
    for pair, sample_id in zip(patterns.pairs, patterns.ids, strict=True):
        image = pair.image
        for name in {pair.shared, image.stem, image.name, str(image), sample_id}:
            ids[name] = sample_id if ids.get(name, sample_id) == sample_id else None
    return ids


def _read(path: Path, ids: Mapping[str, str | None]) -> list[str]:
    """Return the ids of the samples that a list names; none where most lines name no sample."""
    if path.stat().st_size > _LARGEST_FILE:
        return []
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    entries = [line.strip() for line in lines if line.strip()]
    listed = [sample for entry in entries if (sample := _sample(entry, ids))]
    return listed if 2 * len(listed) >= len(entries) else []


def _sample(entry: str, ids: Mapping[str, str | None]) -> str | None:
    """Return the id of the sample that a line names: by all of it, or by its first word."""
    for text in (entry, _AFTER_NAME.split(entry)[0].strip("\"'")):
        path = PurePosixPath(text.replace("\\", "/"))
        for name in (str(path).lstrip("/"), path.name, path.stem):
            if found := ids.get(name):
                return found
    return None


_MOST_COLORS = 64
_ONE_LINE = 1 << 30
_TRAIN_IDS: dict[Raw, str] = {**dict(enumerate(CLASS_NAMES)), IGNORE_INDEX: "ignored"}
_CITYSCAPES_IDS: dict[Raw, str] = {c.label_id: c.name for c in CLASSES}

_HEAD = """\
# The card of a dataset, drafted from {pairs} pairs of images and labels.{left_out}
# Change what is wrong and fill in what is missing; lines that begin with '#' are for you. Then:
#   pinmem data prepare {name} --card {name}.yaml --from FOLDER
#   pinmem data preview {name}

# What you type.
name: "{name}"
# What reports call it.
title: "{name}"
# Where to read about it.
homepage: ""
# How to cite it.
citation: ""
# Its licence or terms of use, in a sentence.
terms: ""
"""
_LAYOUT = """\
# Where the files lie, at any depth below the folder. A field in braces stands for any text without
# a slash, or for what its colon leads to: a|b is a or b, (?!a) and (?<!a) keep a out. A doubled
# brace stands for itself. The case of letters does not matter.
layouts:
  - name: "my folders"
    # The images.
    image: {image}
    # The label of an image, by the image's fields.
    label: {label}
    # How labels are read: ids, colors, ids16 (in 16-bit RGB pictures) or polygons (JSON).
    encoding: "{encoding}"
    # What their values mean: trainids, cityscapes-ids, or a map of your own as below.
    label_maps: ["{label_map}"]
    # What a pair is called; no two may be called the same.
    id: "{id}"
"""
_DOMAIN = """\
    # What tells places, weathers or cameras apart: models are to generalize from some to others.
    domain: "{domain}"
"""
_NO_DOMAIN = """\
    # No folder tells domains (places, weathers, cameras) apart: all pairs are of one.
"""
_SPLIT = """\
    # The split of a pair. Found: {found}.
    split: "{split}"
"""
_NO_SPLIT = """\
    # No folder tells splits apart: the last fifth of each domain becomes val, the rest train.
"""
_LISTED = """\
    # The split of a pair is what 'split_lists' below says.
"""
_SPLIT_LISTS = """\
# The samples of each split, as the lists in {folder} say: {found}. Others are left out.
split_lists:
{entries}
"""
_DOMAINS = """\
# All domains, with a few words on each.
domains:
{entries}
"""
_STANDARD_MAP = """\
# The labels look like those of the standard map {label_map}. If a preview shows that they are not,
# write "own" above, and here a map like this, with values and names of yours:
#   label_maps:
#     own:
#       values: {{0: sky, 1: street, 2: sign}}
#       classes: {{sky: 0, road: [1]}}
# Found in {files} label files, by share of the {things}:
{values}
"""
_OWN_MAP = """\
# What the values in labels mean. Found in {files} label files, by share of the {things}; 'prepare'
# leaves out labels that hold other values, and names them.{hint}
label_maps:
  own:
    # Every value that may occur, and what you call it.
    values:
{values}
    # The values of each of the 19 classes; those that no class lists are ignored. A line a class,
    # such as
    #   road: [{example}]
    # Classes: {names}.
    classes:{classes}
"""


_MAYBE_TRAIN_IDS = """
# If these are the trainIds of Cityscapes, write label_maps: ["trainids"] above instead of "own"."""


@dataclass(frozen=True)
class _Value:
    """A raw value as a card lists it, and its class where that is known."""

    raw: str
    name: str
    share: float
    class_name: str | None


def draft(
    name: str,
    patterns: Patterns,
    values: LabelValues,
    lists_folder: str = "",
    lists: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return the card of a dataset.

    Args:
        name: What to call it.
        patterns: Where its files lie.
        values: What its labels hold.
        lists_folder: Where the lists of its splits lie.
        lists: The samples of each split, where such lists are there.
    """
    parts = [
        _head(name, patterns),
        _layout(patterns, values, listed=bool(lists)),
        _split_lists(lists_folder, lists or {}),
        _domains(patterns.domains),
        _standard_map(values) if values.standard_map else _own_map(values),
    ]
    return "\n".join(part for part in parts if part)


def _head(name: str, patterns: Patterns) -> str:
    more = patterns.left_out
    left_out = f"\n# {more} more pairs lie deeper or less deep, and need a layout of their own."
    return _HEAD.format(name=name, pairs=len(patterns.pairs), left_out=left_out if more else "")


def _layout(patterns: Patterns, values: LabelValues, *, listed: bool) -> str:
    layout = _LAYOUT.format(
        image=_quoted(patterns.image),
        label=_quoted(patterns.label),
        encoding=values.encoding,
        label_map=values.standard_map or "own",
        id=patterns.id,
    )
    found = ", ".join(f"{split} {count}" for split, count in patterns.splits.items())
    domain = _DOMAIN.format(domain=patterns.domain) if patterns.domain else _NO_DOMAIN
    split = _SPLIT.format(split=patterns.split, found=found) if patterns.split else _NO_SPLIT
    return layout + domain + (_LISTED if listed else split)


def _split_lists(folder: str, lists: Mapping[str, Sequence[str]]) -> str:
    found = ", ".join(f"{split} {len(ids)}" for split, ids in lists.items())
    entries = (f"  {split}: [{', '.join(map(_quoted, ids))}]" for split, ids in lists.items())
    return _SPLIT_LISTS.format(folder=folder, found=found, entries=_text(entries)) if lists else ""


def _domains(domains: Mapping[str, int]) -> str:
    entries = (f'  {_quoted(name)}: "{count} pairs"' for name, count in domains.items())
    return _DOMAINS.format(entries="\n".join(entries)) if domains else ""


def _standard_map(values: LabelValues) -> str:
    meanings = _TRAIN_IDS if values.standard_map == "trainids" else _CITYSCAPES_IDS
    found = ((raw, meanings.get(raw), share) for raw, share in values.shares.items())
    lines = [
        f"#   {raw}{f' ({meaning})' if meaning else ''}: {_percent(share)}"
        for raw, meaning, share in found
    ]
    return _STANDARD_MAP.format(
        label_map=values.standard_map, **_origin(values), values=_text(lines)
    )


def _own_map(values: LabelValues) -> str:
    listed = _listed(values)
    lines = [f"      {v.raw}: {_quoted(v.name)}  # {_percent(v.share)}" for v in listed]
    if len(values.shares) > len(listed):
        rest = len(values.shares) - len(listed)
        lines.append(f"      # and {rest} rarer ones: have these labels been shrunk or smoothed?")
    return _OWN_MAP.format(
        **_origin(values),
        values=_text(lines),
        example=listed[-1].raw,
        names=_wrapped(CLASS_NAMES),
        classes=_classes(listed),
        hint=_MAYBE_TRAIN_IDS if values.may_be_train_ids else "",
    )


def _listed(values: LabelValues) -> list[_Value]:
    """Return the values that a map of one's own has to list."""
    classes = values.classes
    if values.encoding == "polygons":
        names = dict.fromkeys((UNLABELED, *map(str, values.shares)))
        return [
            _Value(str(number), name, values.shares.get(name, 0), classes.get(name))
            for number, name in enumerate(names)
        ]
    found = list(values.shares.items())
    return [
        _Value(_quoted(raw) if isinstance(raw, str) else str(raw), "?", share, classes.get(raw))
        for raw, share in (found[:_MOST_COLORS] if values.encoding == "colors" else found)
    ]


def _classes(listed: Iterable[_Value]) -> str:
    """Return the classes that are known of some values, for behind 'classes:'."""
    known = [value for value in listed if value.class_name]
    return "".join(f"\n      {v.class_name}: [{v.raw}]" for v in known) or " {}"


def _origin(values: LabelValues) -> dict[str, object]:
    things = "polygons" if values.encoding == "polygons" else "pixels"
    return {"files": values.files, "things": things}


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 0.0001 or not share else "< 0.01%"


def _quoted(text: str) -> str:
    """Return text as YAML holds it in quotes, on one line, with what cannot be printed escaped."""
    quoted = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=_ONE_LINE)
    return quoted.removesuffix("\n")


def _wrapped(names: Iterable[str]) -> str:
    return fill(", ".join(names), 88, subsequent_indent="    # ")


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines)


_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_EXAMPLES = 3


def new_card(folder: Path, name: str) -> str:
    """Return a card as YAML, filled in and commented as far as looking at the data tells.

    Args:
        folder: Where images and labels lie, at any depth.
        name: What to call the dataset.

    Raises:
        ConfigError: The name is not fit for a dataset, or taken.
        DataError: The folder shows no pairs of images and labels, or no label can be read.
    """
    _refuse_name(name)
    folder = expanded(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder.", "Name the folder that holds your data.")
    places = {as_text(path): path for path in iter_files(folder)}
    found = candidates(map(PurePosixPath, places))
    pairing = best_pairing(found)
    patterns = patterns_of(pairing, found.depth, found.all_images) if pairing else None
    if patterns is None:
        raise _nothing_pairs(folder, found)
    labels = [folder / places[str(pair.label)] for pair in patterns.pairs]
    lists = (
        ("", {})
        if patterns.split
        else split_lists({text: folder / path for text, path in places.items()}, patterns)
    )
    return draft(name, patterns, label_values(labels), *lists)


def _refuse_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot be the name of a dataset.",
            "Use lower-case letters, digits, '-' and '_', and begin with a letter or digit: "
            "'--name mycity'.",
        )
    if name in shipped_cards():
        raise ConfigError(f"'{name}' is a dataset that pinmem knows.", "Give yours another name.")


def _nothing_pairs(folder: Path, found: Candidates) -> DataError:
    images = _some(found.all_images, "images")
    if not found.labels and found.lossy:
        return DataError(
            f"{folder} shows no labels but JPEG files, such as {found.lossy[0]}.",
            "JPEG changes pixels, and with them classes: export the labels as PNG.",
        )
    return DataError(
        f"{folder} shows no pairs of images and labels: {images}; {_some(found.labels, 'labels')}.",
        "A label is told by a folder or a name like labels, masks, gt or '001_gt.png', and is its "
        "image's by what else is in their names. Rename the files, or write the card by hand.",
    )


def _some(paths: Sequence[PurePosixPath], kind: str) -> str:
    examples = ", ".join(map(str, paths[:_EXAMPLES]))
    return f"{len(paths)} possible {kind}" + (f", e.g. {examples}" if paths else "")
