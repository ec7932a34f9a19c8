"""The values that label files contain, for the author of a card."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pinmem_core.data.encodings.polygons import read_scene
from pinmem_core.data.label_maps import STANDARD_MAPS
from pinmem_core.errors import DataError
from pinmem_core.images import read_colors, read_ids, read_rgb16
from pinmem_core.label_space import CLASSES, IGNORE_INDEX, TRAIN_ID

UNLABELED = "unlabeled"
"""What is covered by no polygon."""

_LOOKED_AT = 32
_GROUP = "group"
_TRAIN_IDS = {*TRAIN_ID.values(), IGNORE_INDEX}
_CITYSCAPES = STANDARD_MAPS["cityscapes-ids"].values
_TYPICAL = [c for c in CLASSES if c.name in ("road", "building", "vegetation", "sky", "car")]
"""Classes that streets hardly lack: small ids alone prove nothing."""
_TYPICAL_TRAIN_IDS = {c.train_id for c in _TYPICAL}
_TYPICAL_IDS = {c.label_id for c in _TYPICAL}

Raw = int | str
"""An id, a colour "red,green,blue", or the name of a polygon's label."""


@dataclass(frozen=True)
class LabelValues:
    """The raw values in some label files.

    Attributes:
        encoding: How the files are read.
        shares: Each value's share of the pixels, or of the polygons; ids in their order, others by
            how often they occur.
        files: How many were looked at.
        called_train_ids: Whether the names of the files say that they hold trainIds.
    """

    encoding: str
    shares: Mapping[Raw, float]
    files: int
    called_train_ids: bool = False

    @property
    def standard_map(self) -> str | None:
        """The standard label map that the values look like.

        Ids from 0 on without a gap may be those of any other dataset, unless they end with the
        last trainId, 255 is among them, or the files' names say what they are.
        """
        values = set(self.shares)
        if self.encoding == "polygons":
            return "cityscapes-ids" if values <= set(_CITYSCAPES.values()) else None
        if self.encoding != "ids":
            return None
        if values <= _TRAIN_IDS and (self.called_train_ids or self._are_train_ids(values)):
            return "trainids"
        return "cityscapes-ids" if _TYPICAL_IDS <= values <= set(_CITYSCAPES) else None

    @property
    def may_be_train_ids(self) -> bool:
        """Whether nothing speaks against trainIds, though not enough for them."""
        return self.encoding == "ids" and not self.standard_map and set(self.shares) <= _TRAIN_IDS

    @staticmethod
    def _are_train_ids(values: set[Raw]) -> bool:
        has_gap = values != set(range(len(values)))
        last = len(TRAIN_ID) - 1
        return values >= _TYPICAL_TRAIN_IDS and (has_gap or last in values)

    @property
    def classes(self) -> dict[Raw, str]:
        """The class of each value that tells its own: by its name, or by Cityscapes' colours."""
        if self.encoding == "polygons":
            return {name: str(name) for name in self.shares if name in TRAIN_ID}
        by_color: dict[Raw, str] = {_text(c.color): c.name for c in CLASSES}
        if self.encoding == "colors" and set(self.shares) <= {*by_color, _text((0, 0, 0))}:
            return {color: by_color[color] for color in self.shares if color in by_color}
        return {}


def label_values(labels: Sequence[Path]) -> LabelValues:
    """Return the raw values in evenly spread label files, as most of them are encoded.

    Raises:
        DataError: None of them can be read.
    """
    by_encoding: dict[str, list[Counter[Raw]]] = {}
    failures = []
    for path in labels[:: -(-len(labels) // _LOOKED_AT)]:
        try:
            encoding, counts = _read(path)
        except DataError as error:
            failures.append(error)
        else:
            by_encoding.setdefault(encoding, []).append(counts)
    if not by_encoding:
        raise failures[0]
    encoding = max(by_encoding, key=lambda name: len(by_encoding[name]))
    counts = sum(by_encoding[encoding], Counter[Raw]())
    listed = sorted(counts.items()) if encoding.startswith("ids") else counts.most_common()
    shares = {value: count / counts.total() for value, count in listed}
    called_train_ids = "trainid" in labels[0].name.lower()
    return LabelValues(encoding, shares, len(by_encoding[encoding]), called_train_ids)


def _read(path: Path) -> tuple[str, Counter[Raw]]:
    """Return how a label file is encoded, and how often each value occurs."""
    if path.suffix.lower() == ".json":
        return "polygons", _polygons(path)
    try:
        return "ids16", _ids(read_rgb16(path)[..., 0])
    except DataError:
        pass
    try:
        return "ids", _ids(read_ids(path))
    except DataError:
        return "colors", _colors(read_colors(path))


def _ids(pixels: NDArray[np.integer]) -> Counter[Raw]:
    values, counts = np.unique(pixels, return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def _colors(pixels: NDArray[np.uint8]) -> Counter[Raw]:
    packed = _ids(pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32))
    return Counter({_text(int(value).to_bytes(3)): count for value, count in packed.items()})


def _text(color: Iterable[int]) -> str:
    return ",".join(map(str, color))


def _polygons(path: Path) -> Counter[Raw]:
    try:
        shapes = read_scene(path)["objects"]
        labels = [str(shape["label"]) for shape in shapes if not shape.get("deleted")]
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds no polygons in the form that Cityscapes gives them.",
            "Name a folder whose labels are pictures, or JSON with 'objects' that have a 'label'.",
        ) from error
    known = {*labels, *map(str, _CITYSCAPES.values())}
    return Counter(_base(label, known) for label in labels)


def _base(label: str, known: Iterable[str]) -> str:
    """Return a polygon's label without the ending of several objects drawn as one."""
    base = label.removesuffix(_GROUP)
    return base if base in known and label not in _CITYSCAPES.values() else label
