"""Raw files below some folders, and the version of a dataset that they belong to."""

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pinmem_core.data.archives import MARKER
from pinmem_core.data.card import DatasetCard, Layout
from pinmem_core.data.encodings import ENCODINGS
from pinmem_core.data.label_maps import STANDARD_MAPS, build_label_map
from pinmem_core.data.samples import evenly_spaced
from pinmem_core.documents import read_json_object
from pinmem_core.errors import DataError
from pinmem_core.label_files import read_ids
from pinmem_core.label_space import CITYSCAPES, IGNORE_INDEX
from pinmem_core.paths import as_text, iter_files

_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_ABBREVIATIONS = {"trn", "dev", "tst"}
"""Names that are parts of other words, such as "device"."""
_WORDS = "|".join(
    rf"(?<![a-z]){name}(?![a-z])" if name in _ABBREVIATIONS else name
    for name in sorted(_NAMES, key=len, reverse=True)
)
SPLIT = re.compile(f"(.*?)({_WORDS})(.*)", re.IGNORECASE | re.DOTALL)
"""A name that contains a split: the text before it, the split, the text after it."""
NUMBER = re.compile(r"\d+[_\-. ]+")
"""A number before the name of a folder, for sorting."""


def split_called(name: str) -> str:
    """Return "train", "val" or "test" for one of its other names; other names unchanged."""
    return _NAMES.get(NUMBER.sub("", name.lower(), count=1), name)


class RawFiles:
    """All files below some folders by their paths as text; the case of letters does not matter.

    The name of a folder that an archive was unpacked into is part of the paths: it may stand for
    the folder that the archive lacks.

    Args:
        folders: Folders to list, at any depth.
        split_backslashes: Whether backslashes in names separate folders, as some tools unpack
            archives from Windows.

    Attributes:
        texts: Path of each file below its folder, as returned by `as_text`.
        hold_backslashes: Whether names hold backslashes.
    """

    def __init__(self, folders: Iterable[Path], *, split_backslashes: bool = False) -> None:
        self.texts: list[str] = []
        self._places: list[tuple[Path, str]] = []
        for folder in sorted(folders):
            paths = sorted((as_text(path), path) for path in iter_files(folder))
            prefix = f"{as_text(folder.name)}/" if (folder / MARKER).is_file() else ""
            self.texts += (prefix + text for text, _ in paths)
            self._places += ((folder, path) for _, path in paths)
        self.hold_backslashes = any("\\" in text for text in self.texts)
        if split_backslashes:
            self.texts = [text.replace("\\", "/") for text in self.texts]
        self._tails: dict[int, dict[str, list[int]]] = {}
        self._sorted_tails: dict[int, list[str]] = {}

    def path(self, number: int) -> Path:
        """Return the location of the file with this number in `texts`."""
        folder, path = self._places[number]
        return folder / path

    def ending_with(self, tail: str) -> list[int]:
        """Return the numbers of the files whose paths end with the parts of `tail`."""
        return self._by_tail(tail.count("/") + 1).get(tail.casefold(), [])

    def beginning_with(self, beginning: str, parts: int) -> Iterator[int]:
        """Yield the files whose last `parts` path parts begin with `beginning`.

        No letter or digit follows it: "a/1" is not the beginning of "a/10.png".
        """
        start = beginning.casefold()
        if parts not in self._sorted_tails:
            self._sorted_tails[parts] = sorted(self._by_tail(parts))
        tails = self._sorted_tails[parts]
        first = bisect_left(tails, start)
        for tail in takewhile(lambda tail: tail.startswith(start), islice(tails, first, None)):
            if not re.match("[^\\W_]", tail[len(start) :]):
                yield from self._by_tail(parts)[tail]

    def suffixes(self) -> dict[str, int]:
        """Return the number of files with each suffix, the most frequent first."""
        return dict(Counter(PurePosixPath(text).suffix for text in self.texts).most_common())

    def _by_tail(self, length: int) -> dict[str, list[int]]:
        if length not in self._tails:
            index = defaultdict(list)
            for number, text in enumerate(self.texts):
                index["/".join(text.split("/")[-length:]).casefold()].append(number)
            self._tails[length] = index
        return self._tails[length]


TRAIN_IDS = "trainids"
"""The standard label map of trainIds."""

_LABELS_SAMPLED = 8
_FILES_SAMPLED = 32
_IDS = build_label_map("cityscapes-ids", STANDARD_MAPS)
_ONLY_IDS = slice(len(CITYSCAPES), 34)
"""Cityscapes ids that are no trainIds; among them are classes of nearly every street scene."""
_CONFIG = re.compile(r"config(_v[0-9.]+)?\.json", re.IGNORECASE)
_ROAD = CITYSCAPES.classes["road"]


def reads_ids(card: DatasetCard, layout: Layout) -> bool:
    """Return whether the labels of a layout are read as images of Cityscapes ids.

    The map of a card may add ids, and differ in a few; those that are no trainIds decide.
    """
    label_map = card.label_map(layout.label_maps[0])
    if layout.encoding != "ids" or not label_map.space.same_as(CITYSCAPES):
        return False
    return all(label_map.entries.get(raw) == _IDS.entries[raw] for raw in range(34)[_ONLY_IDS])


def hold_train_ids(labels: Sequence[Path]) -> bool:
    """Return whether labels hold 255 and no value from 19 to 33, as trainIds do and ids do not.

    Evenly spaced files are read; unreadable ones are ignored.
    """
    counts = np.zeros(IGNORE_INDEX + 1, np.int64)
    for path in evenly_spaced(labels, _LABELS_SAMPLED):
        try:
            ids = read_ids(path)
        except (DataError, ValueError):
            continue  # prepare leaves it out
        counts += np.bincount(ids.ravel(), minlength=len(counts))[: len(counts)]
    return bool(counts[IGNORE_INDEX] and not counts[_ONLY_IDS].any())


def count_classes(files: RawFiles) -> int | None:
    """Return the number of classes in the configuration file of a dataset.

    Returns:
        The number; None without a configuration, or if several differ.
    """
    counts = set()
    for number, text in enumerate(files.texts):
        if _CONFIG.fullmatch(PurePosixPath(text).name):
            try:
                labels = read_json_object(files.path(number)).get("labels")
            except DataError:
                continue  # the configuration of something else
            if isinstance(labels, list):
                counts.add(len(labels))
    return counts.pop() if len(counts) == 1 else None


def fits_version(
    card: DatasetCard, layout: Layout, labels: Sequence[Path], classes: int | None, *, named: bool
) -> bool:
    """Return whether labels may be of the version of the dataset that a layout is for.

    The label map that the user names decides; else the palette of the labels; else the number of
    classes in a configuration; else the largest id.

    Args:
        card: Card of the dataset.
        layout: Layout of the card.
        labels: Label files.
        classes: Number of classes in a configuration; None without one.
        named: Whether the user has named the label map of the layout.
    """
    if layout.largest_id is None:
        return True
    low, high = layout.largest_id
    if labels and largest_id(card, layout, labels) > high:
        return False
    if named:
        return True
    road = _road_in_palette(labels)
    if road is not None:
        train_ids, _ = card.label_map(layout.label_maps[0]).apply(np.array([[road]], np.uint8))
        return bool(train_ids[0, 0] == CITYSCAPES.train_ids["road"])
    if classes is not None:
        return low < classes <= high + 1
    return largest_id(card, layout, labels) >= low


def is_assumed(layout: Layout, labels: Sequence[Path], classes: int | None) -> bool:
    """Return whether only small ids indicate the version that a layout is for."""
    if layout.largest_id is None or layout.largest_id[0] > 0:
        return False
    return classes is None and _road_in_palette(labels) is None


def largest_id(card: DatasetCard, layout: Layout, labels: Sequence[Path]) -> int:
    """Return the largest raw id in evenly spaced label files."""
    decode = ENCODINGS.get(layout.encoding)
    largest = 0
    for path in evenly_spaced(labels, _FILES_SAMPLED):
        try:
            largest = max(largest, int(decode(path, card.label_map(layout.label_maps[0])).max()))
        except DataError:
            continue  # prepare leaves it out
    return largest


def _road_in_palette(labels: Sequence[Path]) -> int | None:
    """Return the value with the colour of roads in the palette of the first label, or None."""
    if not labels:
        return None
    try:
        with Image.open(labels[0]) as image:
            palette = image.getpalette() if image.mode == "P" else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    colours = list(zip(*[iter(palette or [])] * 3, strict=True))
    return colours.index(_ROAD) if colours.count(_ROAD) == 1 else None
