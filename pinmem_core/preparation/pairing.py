"""Guessing which files of a folder are images, and which labels belong to them."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import PurePosixPath
from posixpath import commonpath
from random import Random
from typing import Literal

from pinmem_core.preparation.split_names import SPLIT

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
