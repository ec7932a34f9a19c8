"""From pairs of paths to the patterns of a layout."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePosixPath

from pinmem_core.preparation.pairing import SPLIT, Affixes, Pair, Pairing

_MOST_DOMAINS = 32
"""Folders that vary more are no domains: drives, for instance, or hours."""

_ANYTHING = "[^/]+"


@dataclass(frozen=True)
class Patterns:
    """A layout, and what it says of some pairs.

    Attributes:
        image: Pattern of the images.
        label: Path of an image's label.
        id: Name of a sample.
        domain: Its domain, None where folders tell none.
        split: Its split, likewise.
        pairs: Those pairs whose paths are like that.
        domains: How many of them are in each domain.
        splits: How many of them are in each split.
    """

    image: str
    label: str
    id: str
    domain: str | None
    split: str | None
    pairs: tuple[Pair, ...]
    domains: dict[str, int]
    splits: dict[str, int]


@dataclass(frozen=True)
class _Field:
    """A part of the paths that varies: its name, and its value in each pair."""

    name: str
    values: tuple[str, ...]


def patterns_of(pairing: Pairing, outer: int = 0) -> Patterns | None:
    """Return the patterns that fit most pairs; None where images do not tell where labels are.

    Args:
        pairing: The pairs.
        outer: How many outer folders can be left away, as everything lies in them.
    """
    pairs = _equally_deep(pairing.pairs)
    images, fields = _image_folders(pairs)
    fields.append(_Field("name", tuple(pair.shared for pair in pairs)))
    labels = _label_folders(pairs, fields)
    if labels is None:
        return None
    images, labels = images[outer:], labels[outer:]
    domain, split = (_find(fields, name) for name in ("domain", "split"))
    return Patterns(
        image=_image_pattern(pairing, pairs, images, labels, fields),
        label="/".join([*labels, "{name}".join(pairing.label) + pairs[0].label.suffix]),
        id=_id(fields),
        domain="{domain}" if domain else None,
        split="{split}" if split else None,
        pairs=tuple(pairs),
        domains=_counts(domain),
        splits=_counts(split),
    )


def _equally_deep(pairs: Sequence[Pair]) -> list[Pair]:
    depths = [(len(pair.image.parts), len(pair.label.parts)) for pair in pairs]
    usual = Counter(depths).most_common(1)[0][0]
    return [pair for pair, depth in zip(pairs, depths, strict=True) if depth == usual]


def _levels(paths: Iterable[PurePosixPath]) -> Iterator[tuple[str, ...]]:
    """Yield the folders of equally deep paths, level by level."""
    return zip(*(path.parent.parts for path in paths), strict=True)


def _image_folders(pairs: Sequence[Pair]) -> tuple[list[str], list[_Field]]:
    """Return a pattern for each level of the images' folders, and the fields in them."""
    folders: list[str] = []
    fields: list[_Field] = []
    for level in _levels(pair.image for pair in pairs):
        split = _as_split(level)
        told = _told(level, fields)
        if told:
            folders.append(told)
        elif split and not _find(fields, "split"):
            affixes, values = split
            fields.append(_Field("split", values))
            folders.append("{split}".join(affixes))
        else:
            fields.append(_Field(_name(level, fields), level))
            folders.append(f"{{{fields[-1].name}}}")
    return folders, fields


def _as_split(level: Sequence[str]) -> tuple[Affixes, tuple[str, ...]] | None:
    """Return what surrounds the splits in folders' names, and the splits; None without any."""
    matches = [SPLIT.fullmatch(folder) for folder in level]
    found = [match.groups() for match in matches if match]
    affixes = {(before, after) for before, _, after in found}
    if len(found) < len(level) or len(affixes) > 1:
        return None
    return affixes.pop(), tuple(split for _, split, _ in found)


def _name(level: Sequence[str], fields: Sequence[_Field]) -> str:
    if len(set(level)) <= _MOST_DOMAINS and not _find(fields, "domain"):
        return "domain"
    return f"folder{len(fields) + 1}"


def _label_folders(pairs: Sequence[Pair], fields: Sequence[_Field]) -> list[str] | None:
    """Return a pattern for each level of the labels' folders, if the fields tell them all."""
    folders = [_told(level, fields) for level in _levels(pair.label for pair in pairs)]
    return [folder for folder in folders if folder] if all(folders) else None


def _told(level: Sequence[str], fields: Iterable[_Field]) -> str | None:
    """Return what the folders of one level are in terms of the fields, if they are."""
    if len(set(level)) == 1:
        return level[0]
    for field in fields:
        parts = {folder.partition(v) for folder, v in zip(level, field.values, strict=True)}
        affixes = {(before, after) for before, value, after in parts if value}
        if len(affixes) == 1 and all(value for _, value, _ in parts):
            return f"{{{field.name}}}".join(affixes.pop())
    return None


def _id(fields: Sequence[_Field]) -> str:
    """Return the shortest text of fields, the name last, that differs for every pair."""
    *folders, name = fields
    for count in range(len(folders)):
        for some in combinations(folders, count):
            values = list(zip(*(field.values for field in (*some, name)), strict=True))
            if len(set(values)) == len(values):
                return "_".join(f"{{{field.name}}}" for field in (*some, name))
    return "_".join(f"{{{field.name}}}" for field in fields)


def _image_pattern(
    pairing: Pairing,
    pairs: Sequence[Pair],
    folders: Sequence[str],
    label_folders: Sequence[str],
    fields: Sequence[_Field],
) -> str:
    """Return the pattern of the images; its fields are as free as no label matches it."""
    suffixes = {pair.image.suffix[1:] for pair in pairs}
    ending = f"{{suffix:{_any_of(suffixes)}}}" if len(suffixes) > 1 else "".join(suffixes)
    pattern = "/".join([*folders, "{name}".join(pairing.image) + f".{ending}"])
    expressions = {
        field.name: _any_of(field.values)
        for field in fields[:-1]
        if field.name == "split" or all("{" in folder for folder in folders)
    }
    outer = list(label_folders[: len(label_folders) - len(folders)])
    if pairs[0].label.suffix[1:] in suffixes and [*outer, *folders] == list(label_folders):
        if not outer:
            expressions |= _unlike(pairing.label, pairing.image)
        elif "{" not in outer[-1]:
            expressions |= _not_behind(outer[-1], pattern, expressions)
    for name, expression in expressions.items():
        pattern = pattern.replace(f"{{{name}}}", f"{{{name}:{expression}}}", 1)
    return pattern


def _unlike(label: Affixes, image: Affixes) -> dict[str, str]:
    """Return the expression of names where labels, in the same folder, would pass for images."""
    if not (label[0].startswith(image[0]) and label[1].endswith(image[1])):
        return {}
    before, after = label[0].removeprefix(image[0]), label[1].removesuffix(image[1])
    if after:
        return {"name": f"{_ANYTHING}(?<!{re.escape(after)})"}
    return {"name": f"(?!{re.escape(before)}){_ANYTHING}"}


def _not_behind(folder: str, pattern: str, expressions: Mapping[str, str]) -> dict[str, str]:
    """Return the expression of a pattern's first field that keeps the pattern out of a folder."""
    literal, _, rest = pattern.partition("{")
    field = rest.partition("}")[0]
    expression = f"(?:{expressions[field]})" if field in expressions else _ANYTHING
    return {field: f"(?<!{re.escape(f'{folder}/{literal}')}){expression}"}


def _any_of(values: Iterable[str]) -> str:
    return "|".join(re.escape(value) for value in sorted(set(values)))


def _find(fields: Iterable[_Field], name: str) -> _Field | None:
    return next((field for field in fields if field.name == name), None)


def _counts(field: _Field | None) -> dict[str, int]:
    return dict(sorted(Counter(field.values).items())) if field else {}
