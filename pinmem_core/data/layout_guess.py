"""Guess the layout of a folder: pairs of images and labels, and the patterns of their paths."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from posixpath import commonpath
from random import Random

from pinmem_core.data.raw_files import NUMBER, SPLIT
from pinmem_core.paths import as_domain, as_id

_LABEL_IMAGES = {".png", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".gif"}
_LABEL_SUFFIXES = {*_LABEL_IMAGES, ".json"}
_IMAGE_SUFFIXES = {*_LABEL_IMAGES, ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".avif", ".pnm"}
_NEITHER = re.compile(r"instance|panoptic|depth|disparity|confidence|uncertainty", re.IGNORECASE)
_LABEL_FOLDER = re.compile(
    r"label|mask|annot|ground.?truth|gt(fine|coarse)|semantic|segment|polygon"
    r"|stuffthing|(?<![a-z])(gt|anno?|seg|sem|targets?)(?![a-z])",
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
_PREFERENCE = ((r"\.json$", 0), (r"colou?r|palette|(?<![a-z])vis", 1), ("trainid", 3), ("", 2))
"""The rank of each kind of label where an image has several; the first match counts."""

_LABELS_SAMPLED = 256
_MOST_AFFIXES = 8
_MOST_DOMAINS = 32
"""Folders with more values are drives or dates, not domains."""
_COUNTERPART = {"train": "val", "training": "validation", "val": "train", "validation": "training"}
"""The split that may be added later where a dataset has only one."""

Affixes = tuple[str, str]
"""The text before and after the part of a name that an image and its label share."""


@dataclass(frozen=True)
class Pair:
    """An image and its label, as paths relative to the folder, and the name that they share."""

    image: PurePosixPath
    label: PurePosixPath
    name: str


@dataclass(frozen=True)
class Pairing:
    """Pairs whose image and label names have the same affixes around the shared name.

    `label` is None if the name of a label does not hold that of its image.
    """

    pairs: list[Pair]
    image: Affixes
    label: Affixes | None


@dataclass(frozen=True)
class Candidates:
    """Files by the role that their names suggest; `unnamed` may be images."""

    images: list[PurePosixPath]
    unnamed: list[PurePosixPath]
    labels: list[PurePosixPath]

    @property
    def all_images(self) -> list[PurePosixPath]:
        """All files that may be images."""
        return self.images + self.unnamed


@dataclass(frozen=True)
class LayoutGuess:
    """A layout in the terms of a card, and the pairs that it covers.

    Attributes:
        image: Pattern of the images.
        label: Path of an image's label.
        id: Name of a sample.
        pairs: Pairs that the layout covers.
        ids: Sample id of each pair.
        domains: Number of pairs of each domain; empty without domains.
        splits: Number of pairs of each split; empty without splits.
        unpaired: Other images, which have no label or lie deeper or less deep.
        more_labels: Paths of other files with labels, if no pattern describes which file holds
            those of an image.
    """

    image: str
    label: str
    id: str
    pairs: list[Pair]
    ids: list[str]
    domains: dict[str, int]
    splits: dict[str, int]
    unpaired: list[PurePosixPath]
    more_labels: tuple[str, ...] = ()


def candidates(
    paths: Iterable[PurePosixPath],
    labels: Iterable[PurePosixPath] | None = None,
    *,
    by_folder: bool = False,
) -> Candidates:
    """Return the files that may be images or labels.

    Args:
        paths: The files.
        labels: Files that are labels by their contents; None to go by names.
        by_folder: Whether the names of folders count more than those of files, such as "001_L.png".
    """
    known = None if labels is None else {*labels}
    roles = defaultdict(list)
    for path in sorted(paths):
        role = _role(path, by_folder=by_folder) if known is None else _role_among(path, known)
        roles[role].append(path)
    return Candidates(roles["image"], roles["either"], roles["label"])


def best_pairing(files: Candidates) -> Pairing | None:
    """Return the pairing with the most pairs, or None if no label matches an image."""
    pairings = [
        pairing
        for images in (files.images, files.unnamed)
        for labels in _kinds(files.labels, images)
        for pairing in _pairings(images, labels)
    ]
    return max(pairings, key=lambda p: (len(p.pairs), _preference(p)), default=None)


def guess_layout(files: Candidates) -> LayoutGuess | None:
    """Return the layout that covers the most pairs, or None if there is none."""
    pairing = best_pairing(files)
    return layout_of(pairing, files) if pairing else None


def layout_of(pairing: Pairing, files: Candidates) -> LayoutGuess | None:
    """Return the layout of some pairs; None if no pattern describes the paths of the labels.

    Args:
        pairing: At least one pair.
        files: All files that may be images or labels.
    """
    depths = Counter((len(p.image.parts), len(p.label.parts)) for p in pairing.pairs)
    usual = depths.most_common(1)[0][0]
    pairs = [p for p in pairing.pairs if (len(p.image.parts), len(p.label.parts)) == usual]
    pool = files.images if pairs[0].image in {*files.images} else files.unnamed
    paired = {pair.image for pair in pairs}
    everything = [path.parent for path in (*files.all_images, *files.labels)]
    outer = len(PurePosixPath(commonpath(everything)).parts)
    fields: list[_Field] = []
    image_folders = [
        _image_folder(level, fields, is_outer=number < outer)
        for number, level in enumerate(_levels(pair.image for pair in pairs))
    ]
    names = _Field("name", tuple(pair.name for pair in pairs))
    whole = pairing.label is None
    levels = _levels((pair.label for pair in pairs), whole=whole)
    label_folders = [_derived(level, [*fields, *([] if whole else [names])]) for level in levels]
    more_labels: tuple[str, ...] = ()
    if None in label_folders and whole:
        every = sorted({pair.label for pair in pairs})
        label_folders = [*map(_doubled, every[0].parts)]
        more_labels = tuple(_doubled(str(path)) for path in every[1:])
    elif None in label_folders:
        return None
    first = next(
        (n for n, part in enumerate(image_folders[:outer]) if part.startswith("{split:")), outer
    )
    id_fields = [names] if len(set(names.values)) == len(pairs) else [*fields, names]
    suffixes = sorted({pair.image.suffix.lower().removeprefix(".") for pair in pairs})
    suffix = _doubled(suffixes[0]) if len(suffixes) == 1 else f"{{suffix:{'|'.join(suffixes)}}}"
    image = [*image_folders[first:], f"{_surrounded(pairing.image, 'name')}.{suffix}"]
    label = [*filter(None, label_folders[first:])]
    if pairing.label is not None:
        label.append(_surrounded(pairing.label, "name") + _doubled(pairs[0].label.suffix))
    return LayoutGuess(
        image="/".join(image),
        label="/".join(label),
        id="_".join(f"{{{field.name}}}" for field in id_fields),
        pairs=pairs,
        ids=[as_id("_".join(v)) for v in zip(*(f.values for f in id_fields), strict=True)],
        domains=_counts(fields, "domain", as_domain),
        splits=_counts(fields, "split", str),
        unpaired=[image for image in pool if image not in paired],
        more_labels=more_labels,
    )


def looks_like_label(path: PurePosixPath) -> bool:
    """Return whether the name of a file, or of its folder, is that of labels."""
    return bool(_LABEL_STEM.match(path.stem) or _LABEL_FOLDER.search(path.parent.name))


def _role(path: PurePosixPath, *, by_folder: bool) -> str | None:
    """Return the role of a file by its own name and by its innermost folder with a role."""
    may_be_image = is_image(path)
    may_be_label = path.suffix.lower() in _LABEL_SUFFIXES
    if _NEITHER.search(str(path)) or not (may_be_image or may_be_label):
        return None
    of_file = "label" if may_be_label and _LABEL_STEM.match(path.stem) else None
    of_folder = next(
        filter(None, (_folder_role(f, may_be_label) for f in path.parent.parts[::-1])), None
    )
    role = (of_folder or of_file) if by_folder else (of_file or of_folder)
    if may_be_image or role == "label":
        return role or "either"
    return None


def _folder_role(folder: str, may_be_label: bool) -> str | None:
    if may_be_label and _LABEL_FOLDER.search(folder):
        return "label"
    return "image" if _IMAGE_FOLDER.search(folder) else None


def _role_among(path: PurePosixPath, labels: set[PurePosixPath]) -> str | None:
    """Return the role of a file where the labels are known."""
    if path in labels or not is_image(path):
        return "label" if path in labels else None
    return "either" if looks_like_label(path) else "image"


def is_image(path: PurePosixPath) -> bool:
    """Return whether a file is an image by its suffix."""
    return path.suffix.lower() in _IMAGE_SUFFIXES


def _kinds(
    labels: Iterable[PurePosixPath], images: Iterable[PurePosixPath]
) -> list[list[PurePosixPath]]:
    """Group labels by suffix and by those of their folders that hold no images."""
    shared = {folder for path in images for folder in path.parent.parts}
    groups = defaultdict(list)
    for path in labels:
        own = [SPLIT.sub(r"\1*\3", folder) for folder in path.parent.parts if folder not in shared]
        groups[path.suffix.lower(), *own].append(path)
    return list(groups.values())


def _pairings(
    images: Sequence[PurePosixPath], labels: Sequence[PurePosixPath]
) -> Iterator[Pairing]:
    """Yield the pairings by the affixes with which most of a sample of labels match images."""
    sampled = Random(0).sample(labels, min(len(labels), _LABELS_SAMPLED))
    wanted = {name for label in sampled for _, name, _ in _runs(label.stem)}
    index = defaultdict(list)
    for image in images:
        for before, name, after in _runs(image.stem):
            if name in wanted:
                index[name].append((str(image.parent), (before, after)))
    votes = Counter(vote for label in sampled if (vote := _vote(label, index)))
    for (image_affixes, label_affixes), _ in votes.most_common(_MOST_AFFIXES):
        pairs = _pairs(images, labels, image_affixes, label_affixes)
        yield Pairing(pairs, image_affixes, label_affixes)


def _vote(
    label: PurePosixPath, index: Mapping[str, Sequence[tuple[str, Affixes]]]
) -> tuple[Affixes, Affixes] | None:
    """Return the affixes by which a label matches the image that shares most of its name."""
    folder = str(label.parent)
    for before, name, after in _runs(label.stem):
        if name in index:
            _, affixes = max(index[name], key=lambda hit: closeness(hit[0], folder))
            return affixes, (before, after)
    return None


def _runs(stem: str) -> list[tuple[str, str, str]]:
    """Return each run of words in a name with the text before and after it, longest first."""
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
    """Pair each image with the closest of its labels, and each label with a single image.

    Of images that are as close, the one that lies less deep is taken.
    """
    by_name = defaultdict(list)
    for label in labels:
        by_name[_between(label.stem, label_affixes)].append(label)
    closest: dict[PurePosixPath, tuple[tuple[int, int, int], Pair]] = {}
    for image in images:
        name = _between(image.stem, image_affixes)
        if name and name in by_name:
            folder = str(image.parent)
            scored = [(closeness(folder, str(lb.parent)), lb) for lb in by_name[name]]
            likeness, label = max(scored, key=lambda item: item[0])
            rank = *likeness, -len(image.parts)
            if label not in closest or rank > closest[label][0]:
                closest[label] = rank, Pair(image, label, name)
    return [pair for _, pair in closest.values()]


@lru_cache(1 << 16)
def closeness(image_folder: str, label_folder: str) -> tuple[int, int]:
    """Return how many of an image's folders, and of the words in their names, a label shares."""
    image_folder, label_folder = image_folder.lower(), label_folder.lower()
    folders = label_folder.split("/")
    return (
        sum(folder in folders for folder in image_folder.split("/")),
        sum(word in label_folder for word in _WORD.findall(image_folder)),
    )


def _between(stem: str, affixes: Affixes) -> str | None:
    before, after = affixes
    if stem.startswith(before) and stem.endswith(after):
        return stem[len(before) : len(stem) - len(after)] or None
    return None


def _preference(pairing: Pairing) -> int:
    label = str(pairing.pairs[0].label)
    return next(rank for words, rank in _PREFERENCE if re.search(words, label, re.IGNORECASE))


@dataclass(frozen=True)
class _Field:
    """A field of the patterns and its value in each pair."""

    name: str
    values: tuple[str, ...]


def _levels(paths: Iterable[PurePosixPath], *, whole: bool = False) -> Iterator[tuple[str, ...]]:
    """Yield the folders of equally deep paths, level by level; `whole` adds the names of files."""
    return zip(*(path.parts if whole else path.parent.parts for path in paths), strict=True)


def _image_folder(level: Sequence[str], fields: list[_Field], *, is_outer: bool) -> str:
    """Return the pattern of one level of the images' folders; a new field joins `fields`."""
    names = {field.name for field in fields}
    pattern = _derived(level, fields)
    split = None if "split" in names else _split(level, exact=is_outer)
    if split and (pattern is None or pattern == _doubled(level[0])):
        affixes, values = split
        fields.append(_Field("split", values))
        later = [_COUNTERPART.get(values[0].lower(), values[0])] if len({*values}) == 1 else []
        expression = "|".join(map(re.escape, sorted({*values, *later})))
        return _surrounded(affixes, f"split:{expression}")
    if pattern is None:
        is_domain = "domain" not in names and len({*level}) <= _MOST_DOMAINS
        fields.append(_Field("domain" if is_domain else f"folder{len(fields) + 1}", tuple(level)))
        return f"{{{fields[-1].name}}}"
    return pattern


def _derived(level: Sequence[str], fields: Iterable[_Field]) -> str | None:
    """Return the pattern of one level of folders in terms of `fields`; None if it is not."""
    is_constant = len(set(level)) == 1
    for field in fields:
        affixes = {_around(*pair) for pair in {*zip(level, field.values, strict=True)}}
        around = affixes.pop() if len(affixes) == 1 else None
        if around and is_constant:
            before, after = around
            if before[-1:].isalnum() or (after[:1].isalnum() and after != "annot"):
                continue
        if around:
            return _surrounded(around, field.name)
    return _doubled(level[0]) if is_constant else None


def _around(folder: str, value: str) -> Affixes | None:
    """Return the text around a value in a folder's name, in any case; None without the value."""
    match = re.search(re.escape(value), folder, re.IGNORECASE)
    return (folder[: match.start()], folder[match.end() :]) if match else None


def _split(level: Sequence[str], *, exact: bool) -> tuple[Affixes, tuple[str, ...]] | None:
    """Return the text around the splits in folder names, and the splits; None without splits."""
    matches = [match for folder in level if (match := SPLIT.fullmatch(folder))]
    affixes = {(match[1], match[3]) for match in matches}
    if len(matches) < len(level):
        return None
    if all(NUMBER.fullmatch(before) and not after for before, after in affixes):
        return ("", ""), tuple(level)  # "1_train" and "2_val"
    if len(affixes) > 1:
        return None
    before, after = affixes.pop()
    is_word = not (before[-1:].isalnum() or after[:1].isalnum())
    if len(set(level)) == 1 and (before + after if exact else not is_word):
        return None  # "latest" is no split, nor is a dataset called "test-drives"
    return (before, after), tuple(match[2] for match in matches)


def _surrounded(affixes: Affixes, field: str) -> str:
    return f"{_doubled(affixes[0])}{{{field}}}{_doubled(affixes[1])}"


def _doubled(text: str) -> str:
    """Escape braces for a pattern."""
    return text.replace("{", "{{").replace("}", "}}")


def _counts(fields: Iterable[_Field], name: str, shown: Callable[[str], str]) -> dict[str, int]:
    values = (shown(value) for field in fields if field.name == name for value in field.values)
    return dict(sorted(Counter(values).items()))
