"""From pairs of paths to the patterns of a layout."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePosixPath
from typing import Literal

from pinmem_core.paths import as_id
from pinmem_core.preparation.pairing import Affixes, Pair, Pairing
from pinmem_core.preparation.split_names import NUMBER, SPLIT

_MOST_DOMAINS = 32
"""Folders that vary more are no domains: drives, for instance, or hours."""

_ANYTHING = "[^/]+"
_TO_COME = {"train": "val", "training": "validation", "val": "train", "validation": "training"}
"""Where only one split is there, the one that may be added later."""


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
        ids: The name of each pair's sample.
        domains: How many of them are in each domain.
        splits: How many of them are in each split.
        left_out: How many pairs lie at another depth, where the patterns do not find them.
    """

    image: str
    label: str
    id: str
    domain: str | None
    split: str | None
    pairs: tuple[Pair, ...]
    ids: tuple[str, ...]
    domains: dict[str, int]
    splits: dict[str, int]
    left_out: int = 0


@dataclass(frozen=True, eq=False)
class _Field:
    """A part of the paths that varies, or may vary later.

    Attributes:
        kind: "split", "folder", or "name" for the part of the files' names.
        values: Its value in each pair.
    """

    kind: Literal["split", "folder", "name"]
    values: tuple[str, ...]

    @property
    def is_lone(self) -> bool:
        """Whether all pairs have the same value."""
        return len(set(self.values)) == 1


@dataclass(frozen=True)
class _Part:
    """A part of a path: text, or a field and what surrounds it."""

    before: str
    field: _Field | None = None
    after: str = ""


def patterns_of(
    pairing: Pairing, outer: int = 0, images: Iterable[PurePosixPath] = ()
) -> Patterns | None:
    """Return the patterns that fit most pairs; None where images do not tell where labels are.

    Args:
        pairing: The pairs.
        outer: How many outer folders can be left away, as everything lies in them.
        images: All images, those without a label included.
    """
    pairs = _equally_deep(pairing.pairs)
    unpaired = {*images} - {pair.image for pair in pairs}
    folders, fields = _image_folders(pairs, outer, [path.parent.parts for path in unpaired])
    name = _Field("name", tuple(pair.shared for pair in pairs))
    fields.append(name)
    label_folders = _label_folders(pairs, fields)
    if label_folders is None:
        return None
    told = [n for n, part in enumerate(folders[:outer]) if part.field]  # a split, if any
    start = min(told, default=outer)
    folders, label_folders = folders[start:], label_folders[start:]
    names = _names(fields)
    expressions = _expressions(pairing, pairs, folders, label_folders, names)
    ending = _ending(pairs)
    image_parts = [*folders, _Part(pairing.image[0], name, pairing.image[1])]
    label_parts = [*label_folders, _Part(pairing.label[0], name, pairing.label[1])]
    in_id = _in_id(fields)
    domain = next((field for field in fields if names[field] == "domain"), None)
    split = next((field for field in fields if field.kind == "split"), None)
    return Patterns(
        image=_text(image_parts, names, expressions) + ending,
        label=_text(label_parts, names) + _doubled(pairs[0].label.suffix),
        id="_".join(f"{{{names[field]}}}" for field in in_id),
        domain="{domain}" if domain else None,
        split="{split}" if split else None,
        pairs=tuple(pairs),
        ids=tuple(as_id("_".join(v)) for v in zip(*(f.values for f in in_id), strict=True)),
        domains=_counts(domain),
        splits=_counts(split),
        left_out=len(pairing.pairs) - len(pairs),
    )


def _equally_deep(pairs: Sequence[Pair]) -> list[Pair]:
    depths = [(len(pair.image.parts), len(pair.label.parts)) for pair in pairs]
    usual = Counter(depths).most_common(1)[0][0]
    return [pair for pair, depth in zip(pairs, depths, strict=True) if depth == usual]


def _levels(paths: Iterable[PurePosixPath]) -> Iterator[tuple[str, ...]]:
    """Yield the folders of equally deep paths, level by level."""
    return zip(*(path.parent.parts for path in paths), strict=True)


def _image_folders(
    pairs: Sequence[Pair], outer: int, unpaired: Sequence[tuple[str, ...]]
) -> tuple[list[_Part], list[_Field]]:
    """Return what the levels of the images' folders are, and the fields in them."""
    folders: list[_Part] = []
    fields: list[_Field] = []
    in_labels = {folder for pair in pairs[:1] for folder in pair.label.parent.parts}
    for number, level in enumerate(_levels(pair.image for pair in pairs)):
        told = _told(level, fields)
        split = _as_split(level, exact=number < outer)
        if split and not (told and told.field) and not any(f.kind == "split" for f in fields):
            affixes, values = split
            fields.append(_Field("split", values))
            folders.append(_Part(affixes[0], fields[-1], affixes[1]))
        elif told and (told.field or not _may_vary(level[0], number, outer, in_labels, unpaired)):
            folders.append(told)
        else:
            fields.append(_Field("folder", tuple(level)))
            folders.append(_Part("", fields[-1]))
    return folders, fields


def _may_vary(
    folder: str,
    number: int,
    outer: int,
    in_labels: Iterable[str],
    unpaired: Iterable[tuple[str, ...]],
) -> bool:
    """Return whether a folder that all images share is one of several that labels have, too.

    It is not where neighbours of the folder hold images without labels, which would be taken in.
    """
    if number < outer or folder not in in_labels:
        return False
    return all(len(path) <= number or path[number] == folder for path in unpaired)


def _as_split(level: Sequence[str], *, exact: bool) -> tuple[Affixes, tuple[str, ...]] | None:
    """Return what surrounds the splits in folders' names, and the splits; None without any."""
    matches = [SPLIT.fullmatch(folder) for folder in level]
    found = [match.groups() for match in matches if match]
    affixes = {(before, after) for before, _, after in found}
    if len(found) == len(level) and all(NUMBER.fullmatch(a) and not b for a, b in affixes):
        return ("", ""), tuple(level)  # "1_train" and "2_val"
    if len(found) < len(level) or len(affixes) > 1:
        return None
    before, after = affixes.pop()
    lone = len(set(level)) == 1
    if lone and (before + after if exact else before[-1:].isalnum() or after[:1].isalnum()):
        return None  # "latest" is no split, nor is a whole dataset called "test-drives"
    return (before, after), tuple(split for _, split, _ in found)


def _label_folders(pairs: Sequence[Pair], fields: Sequence[_Field]) -> list[_Part] | None:
    """Return what the levels of the labels' folders are, if the fields tell them all."""
    folders = [_told(level, fields) for level in _levels(pair.label for pair in pairs)]
    return [folder for folder in folders if folder] if all(folders) else None


def _told(level: Sequence[str], fields: Iterable[_Field]) -> _Part | None:
    """Return what the folders of one level are in terms of the fields, if they are."""
    if len(set(level)) == 1:
        return next(
            (part for f in fields if f.is_lone and (part := _lone(level[0], f))), _Part(level[0])
        )
    for field in fields:
        affixes = {_around(*pair) for pair in zip(level, field.values, strict=True)}
        if len(affixes) == 1 and (around := affixes.pop()):
            return _Part(around[0], field, around[1])
    return None


def _around(folder: str, value: str) -> Affixes | None:
    """Return what surrounds a value in a folder's name, whatever its case; None without it."""
    match = re.search(re.escape(value), folder, re.IGNORECASE)
    return (folder[: match.start()], folder[match.end() :]) if match else None


def _lone(folder: str, field: _Field) -> _Part | None:
    """Return a folder that all pairs share in terms of a field that is the same for all."""
    around = _around(folder, field.values[0])
    if around is None or (field.kind == "folder" and around != ("", "")):
        return None
    before, after = around
    if before[-1:].isalnum() or (after[:1].isalnum() and after != "annot"):
        return None
    return _Part(before, field, after)


def _names(fields: Iterable[_Field]) -> dict[_Field, str]:
    """Return how fields are called: the first folder that varies, but little, is the domain."""
    folders = [field for field in fields if field.kind == "folder"]
    varying = [f for f in folders if not f.is_lone and len(set(f.values)) <= _MOST_DOMAINS]
    domain = next(iter([*varying, *(f for f in folders if f.is_lone)]), None)
    return {
        field: ("domain" if field is domain else f"folder{number}")
        if field.kind == "folder"
        else field.kind
        for number, field in enumerate(fields, start=1)
    }


def _in_id(fields: Sequence[_Field]) -> list[_Field]:
    """Return the fewest fields, the name last, that differ for every pair.

    A folder that all share is among them, as others may be added later.
    """
    *folders, name = fields
    lone = [field for field in folders if field.kind == "folder" and field.is_lone]
    others = [field for field in folders if field not in lone]
    for count in range(len(others)):
        for some in combinations(others, count):
            chosen = [field for field in folders if field in some or field in lone]
            values = list(zip(*(field.values for field in (*chosen, name)), strict=True))
            if len(set(values)) == len(values):
                return [*chosen, name]
    return [*folders, name]


def _ending(pairs: Iterable[Pair]) -> str:
    """Return the pattern of the images' suffixes, whose case does not matter."""
    suffixes = {pair.image.suffix[1:].lower() for pair in pairs}
    if len(suffixes) == 1:
        return "." + _doubled(suffixes.pop())
    return f".{{suffix:{_any_of(suffixes)}}}"


def _expressions(
    pairing: Pairing,
    pairs: Sequence[Pair],
    folders: Sequence[_Part],
    label_folders: Sequence[_Part],
    names: dict[_Field, str],
) -> dict[_Field, str]:
    """Return the expressions of the images' fields, as free as no label matches the pattern."""
    fields = dict.fromkeys(part.field for part in folders if part.field)
    expressions = {
        field: _any_of([*field.values, *_to_come(field)])
        for field in fields
        if field.kind == "split" or all(part.field for part in folders)
    }
    name = next(field for field in names if field.kind == "name")
    suffixes = {pair.image.suffix.lower() for pair in pairs}
    outer = list(label_folders[: len(label_folders) - len(folders)])
    if pairs[0].label.suffix.lower() in suffixes and [*outer, *folders] == list(label_folders):
        if not outer:
            if unlike := _unlike(pairing.label, pairing.image):
                expressions[name] = unlike
        elif not outer[-1].field:
            first = next((part for part in folders if part.field), None)
            literal = [part.before for part in folders[: folders.index(first)]] if first else []
            field = first.field if first and first.field else name
            before = first.before if first else pairing.image[0]
            start = "/".join([outer[-1].before, *literal, before])
            rest = expressions.get(field)
            inner = f"(?:{rest})" if rest else _ANYTHING
            expressions[field] = f"(?<!{_escaped(start)}){inner}"
    return expressions


def _to_come(field: _Field) -> list[str]:
    later = _TO_COME.get(field.values[0].lower()) if field.is_lone else None
    return [later] if later else []


def _unlike(label: Affixes, image: Affixes) -> str | None:
    """Return the expression of names where labels, in the same folder, would pass for images."""
    if not (label[0].startswith(image[0]) and label[1].endswith(image[1])):
        return None
    before, after = label[0].removeprefix(image[0]), label[1].removesuffix(image[1])
    if after:
        return f"{_ANYTHING}(?<!{_escaped(after)})"
    return f"(?!{_escaped(before)}){_ANYTHING}"


def _text(
    parts: Iterable[_Part], names: dict[_Field, str], expressions: dict[_Field, str] | None = None
) -> str:
    """Return the parts of a path as a pattern; the first use of a field has its expression."""
    left = dict(expressions or {})
    texts = []
    for part in parts:
        text = _doubled(part.before)
        if part.field:
            expression = left.pop(part.field, "")
            text += f"{{{names[part.field]}{':' if expression else ''}{expression}}}"
        texts.append(text + _doubled(part.after))
    return "/".join(texts)


def _doubled(text: str) -> str:
    """Return text as patterns hold it, in which a brace is doubled."""
    return text.replace("{", "{{").replace("}", "}}")


def _escaped(text: str) -> str:
    """Return a regular expression without braces that matches `text`."""
    return re.escape(text).replace("\\{", "\\x7b").replace("\\}", "\\x7d")


def _any_of(values: Iterable[str]) -> str:
    return "|".join(map(_escaped, sorted(set(values))))


def _counts(field: _Field | None) -> dict[str, int]:
    return dict(sorted(Counter(field.values).items())) if field else {}
