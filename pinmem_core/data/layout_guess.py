"""A guess of the layout of a folder: pairs of images and labels, and their patterns."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from operator import itemgetter
from pathlib import PurePosixPath
from posixpath import commonpath
from random import Random
from typing import Literal

from pinmem_core.data.raw_files import NUMBER, SPLIT
from pinmem_core.paths import as_id

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
_LABELS = {".png", ".json", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm"}
_NEITHER = re.compile(r"instance|panoptic|depth|disparity|confidence|uncertainty", re.IGNORECASE)
_LABEL_FOLDER = re.compile(
    r"label|mask|annot|ground.?truth|gt(fine|coarse)|semantic|segment|polygon"
    r"|(?<![a-z])(gt|anno?|seg|sem|targets?)(?![a-z])",
    re.IGNORECASE,
)
_LABEL_STEM = re.compile(
    r"(.*[_\-. ])?(label|mask|annot|semantic|segm|polygon|(gt|seg)(?![a-z]))|.*[_\-. ]L$"
)
_IMAGE_FOLDER = re.compile(
    r"image|img|photo|picture|frame|stills|camera|(?<![a-z])(rgb|raw|input)(?![a-z])",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+")
_BETWEEN_WORDS = re.compile(r"(?=[_\-. ])|(?<=[_\-. ])")
_LIKELIHOOD = ((r"\.json$", 0), (r"colou?r|palette|(?<![a-z])vis", 1), ("trainid", 3), ("", 2))
"""Of several kinds of labels for the same images, the likeliest is meant; first match counts."""

_LOOKED_AT = 256
_TRIED = 8

Affixes = tuple[str, str]
"""What is before and after the part of a name that an image and its label share."""

Role = Literal["image", "label", "either"]


@dataclass(frozen=True)
class Pair:
    """An image and its label, by paths below the folder, and what their names share."""

    image: PurePosixPath
    label: PurePosixPath
    shared: str


@dataclass(frozen=True)
class Pairing:
    """Pairs of one kind.

    Attributes:
        pairs: The pairs, sorted.
        image: What surrounds the shared part in the names of images.
        label: Likewise of labels.
    """

    pairs: tuple[Pair, ...]
    image: Affixes
    label: Affixes


@dataclass(frozen=True)
class Candidates:
    """Files that may be images or labels, by what their names say."""

    images: tuple[PurePosixPath, ...]
    pictures: tuple[PurePosixPath, ...]
    labels: tuple[PurePosixPath, ...]

    @property
    def all_images(self) -> tuple[PurePosixPath, ...]:
        """Those that may be images, with or without a name that says so."""
        return (*self.images, *self.pictures)

    @property
    def lossy(self) -> list[PurePosixPath]:
        """Those that would be labels, were they not stored as JPEG."""
        return [path for path in self.all_images if _says_label(path)]

    @property
    def depth(self) -> int:
        """How many outer folders all of them share."""
        everything = (*self.images, *self.pictures, *self.labels)
        return len(PurePosixPath(commonpath([path.parent for path in everything])).parts)


def candidates(paths: Iterable[PurePosixPath]) -> Candidates:
    """Return the files below a folder by their roles; `pictures` are those that say neither."""
    by_role = defaultdict(list)
    for path in sorted(paths):
        by_role[_role(path)].append(path)
    return Candidates(*(tuple(by_role[role]) for role in ("image", "either", "label")))


def best_pairing(found: Candidates) -> Pairing | None:
    """Return the pairing with most pairs, the likeliest of equals; None if nothing pairs."""
    pairings = [
        pairing
        for images in (found.images, found.pictures)
        for labels in _kinds(found.labels, images)
        for pairing in _pairings(images, labels)
    ]
    return max(pairings, key=lambda p: (len(p.pairs), _likelihood(p)), default=None)


def _role(path: PurePosixPath) -> Role | None:
    """Return what a file is by its own name, else by the innermost folder that tells."""
    is_picture = path.suffix.lower() in _PICTURES
    may_be_label = path.suffix.lower() in _LABELS
    if _NEITHER.search(str(path)) or not (is_picture or may_be_label):
        return None
    if may_be_label and _LABEL_STEM.match(path.stem):
        return "label"
    for folder in reversed(path.parent.parts):
        if _LABEL_FOLDER.search(folder) and may_be_label:
            return "label"
        if _IMAGE_FOLDER.search(folder):
            return "image" if is_picture else None
    return "either" if is_picture else None


def _says_label(path: PurePosixPath) -> bool:
    """Return whether the name of a file, or of the folder that it lies in, is that of labels."""
    return bool(_LABEL_STEM.match(path.stem) or _LABEL_FOLDER.search(path.parent.name))


def _kinds(
    labels: Iterable[PurePosixPath], images: Iterable[PurePosixPath]
) -> list[list[PurePosixPath]]:
    """Return labels grouped by suffix and by those of their folders that hold no images."""
    shared = {folder for path in images for folder in path.parent.parts}
    groups = defaultdict(list)
    for path in labels:
        own = [SPLIT.sub(r"\1*\3", folder) for folder in path.parent.parts if folder not in shared]
        groups[path.suffix.lower(), *own].append(path)
    return list(groups.values())


def _pairings(
    images: Sequence[PurePosixPath], labels: Sequence[PurePosixPath]
) -> Iterator[Pairing]:
    """Yield pairings by the likeliest affixes: those by which most of some labels find images."""
    some = Random(0).sample(labels, min(len(labels), _LOOKED_AT))
    wanted = {shared for label in some for _, shared, _ in _runs(label.stem)}
    index = defaultdict(list)
    for image in images:
        for before, shared, after in _runs(image.stem):
            if shared in wanted:
                index[shared].append((str(image.parent), (before, after)))
    votes = Counter(vote for label in some if (vote := _vote(label, index)))
    for (image_affixes, label_affixes), _ in votes.most_common(_TRIED):
        pairs = _pairs(images, labels, image_affixes, label_affixes)
        yield Pairing(tuple(pairs), image_affixes, label_affixes)


def _vote(
    label: PurePosixPath, index: Mapping[str, Sequence[tuple[str, Affixes]]]
) -> tuple[Affixes, Affixes] | None:
    """Return the affixes by which a label finds the image that shares most of its name."""
    folder = str(label.parent)
    for before, shared, after in _runs(label.stem):
        if shared in index:
            _, affixes = max(index[shared], key=lambda hit: _closeness(hit[0], folder))
            return affixes, (before, after)
    return None


def _runs(stem: str) -> list[tuple[str, str, str]]:
    """Return every run of words in a name, with what is before and after it, longest first."""
    words = [word for word in _BETWEEN_WORDS.split(stem) if word]
    runs = [
        ("".join(words[:start]), "".join(words[start:end]), "".join(words[end:]))
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
        if not {words[start], words[end - 1]} & set("_-. ")
    ]
    return sorted(runs, key=lambda run: len(run[1]), reverse=True)


def _pairs(
    images: Iterable[PurePosixPath],
    labels: Iterable[PurePosixPath],
    image_affixes: Affixes,
    label_affixes: Affixes,
) -> list[Pair]:
    """Return each image with the closest of its labels, and each label with a single image."""
    by_shared = defaultdict(list)
    for label in labels:
        if shared := _between(label.stem, label_affixes):
            by_shared[shared].append((str(label.parent), label))
    closest: dict[PurePosixPath, tuple[tuple[int, int], Pair]] = {}
    for image in images:
        shared = _between(image.stem, image_affixes)
        if shared and shared in by_shared:
            folder = str(image.parent)
            scored = ((_closeness(folder, other), label) for other, label in by_shared[shared])
            closeness, label = max(scored, key=itemgetter(0))
            if label not in closest or closeness > closest[label][0]:
                closest[label] = closeness, Pair(image, label, shared)
    return [pair for _, pair in closest.values()]


@lru_cache(1 << 16)
def _closeness(image_folder: str, label_folder: str) -> tuple[int, int]:
    """Return how many of an image's folders, and of the words in their names, a label shares."""
    image_folder, label_folder = image_folder.lower(), label_folder.lower()
    folders = label_folder.split("/")
    return (
        sum(folder in folders for folder in image_folder.split("/")),
        sum(word in label_folder for word in _WORD.findall(image_folder)),
    )


def _between(stem: str, affixes: Affixes) -> str | None:
    """Return what is between the affixes; None where they are not there."""
    before, after = affixes
    if stem.startswith(before) and stem.endswith(after):
        return stem[len(before) : len(stem) - len(after)] or None
    return None


def _likelihood(pairing: Pairing) -> int:
    label = str(pairing.pairs[0].label)
    return next(rank for words, rank in _LIKELIHOOD if re.search(words, label, re.IGNORECASE))


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
