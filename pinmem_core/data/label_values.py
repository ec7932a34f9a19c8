"""The values in label files, for the draft of a card."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pinmem_core.data.encodings.polygons import read_scene
from pinmem_core.data.label_maps import STANDARD_MAPS
from pinmem_core.errors import DataError
from pinmem_core.label_files import read_colors, read_ids, read_rgb16
from pinmem_core.label_space import CLASSES, IGNORE_INDEX, TRAIN_ID

_FILES_SAMPLED = 32
_GROUP = "group"
_TRAIN_IDS = {*TRAIN_ID.values(), IGNORE_INDEX}
_CITYSCAPES = STANDARD_MAPS["cityscapes-ids"].values
_TYPICAL = [c for c in CLASSES if c.name in ("road", "building", "vegetation", "sky", "car")]
"""Classes in nearly every street scene: small ids alone do not identify a label map."""

Raw = int | str
"""An id, a colour "red,green,blue", or the label of a polygon."""


@dataclass(frozen=True)
class LabelValues:
    """The raw values in a sample of label files.

    Attributes:
        encoding: Name of the encoding of most files.
        shares: Share of the pixels, or of the polygons, by value; ids in ascending order, other
            values by descending share.
        files: Number of files read.
        called_train_ids: Whether the file names say that the labels hold trainIds.
    """

    encoding: str
    shares: Mapping[Raw, float]
    files: int
    called_train_ids: bool = False

    @property
    def unit(self) -> str:
        """The unit of `shares`."""
        return "polygons" if self.encoding == "polygons" else "pixels"

    @property
    def standard_map(self) -> str | None:
        """The standard label map that the values match.

        Consecutive ids from 0 may belong to any dataset, unless they reach the last trainId, 255
        is among them, or the file names say what they are.
        """
        values = set(self.shares)
        if self.encoding == "polygons":
            return "cityscapes-ids" if values <= set(_CITYSCAPES.values()) else None
        if self.encoding != "ids":
            return None
        has_gap = values != set(range(len(values)))
        typical = values >= {c.train_id for c in _TYPICAL} and (
            has_gap or len(TRAIN_ID) - 1 in values
        )
        if values <= _TRAIN_IDS and (self.called_train_ids or typical):
            return "trainids"
        ids = {c.label_id for c in _TYPICAL}
        return "cityscapes-ids" if ids <= values <= set(_CITYSCAPES) else None

    @property
    def may_be_train_ids(self) -> bool:
        """Whether the values could be trainIds, but do not prove it."""
        return self.encoding == "ids" and not self.standard_map and set(self.shares) <= _TRAIN_IDS

    @property
    def classes(self) -> dict[Raw, str]:
        """The class of each value that has the name or, among Cityscapes' colours, the colour."""
        if self.encoding == "polygons":
            return {name: str(name) for name in self.shares if name in TRAIN_ID}
        by_color: dict[Raw, str] = {_color(c.color): c.name for c in CLASSES}
        if self.encoding == "colors" and set(self.shares) <= {*by_color, "0,0,0"}:
            return {color: by_color[color] for color in self.shares if color in by_color}
        return {}


def label_values(labels: Sequence[Path]) -> LabelValues:
    """Return the raw values in evenly spaced label files, in the encoding of most of them.

    Raises:
        DataError: None of them can be read.
    """
    by_encoding: dict[str, list[Counter[Raw]]] = defaultdict(list)
    errors = []
    for path in labels[:: -(-len(labels) // _FILES_SAMPLED)]:
        try:
            encoding, counts = _read(path)
            by_encoding[encoding].append(counts)
        except DataError as error:
            errors.append(error)
    if not by_encoding:
        raise errors[0]
    encoding = max(by_encoding, key=lambda name: len(by_encoding[name]))
    total = sum(by_encoding[encoding], Counter[Raw]())
    values = sorted(total.items()) if encoding.startswith("ids") else total.most_common()
    shares = {value: count / total.total() for value, count in values}
    called_train_ids = "trainid" in labels[0].name.lower()
    return LabelValues(encoding, shares, len(by_encoding[encoding]), called_train_ids)


def _read(path: Path) -> tuple[str, Counter[Raw]]:
    """Return the encoding of a label file, and how often each value occurs."""
    if path.suffix.lower() == ".json":
        return "polygons", _polygons(path)
    try:
        return "ids16", _ids(read_rgb16(path)[..., 0])
    except DataError:
        pass
    try:
        return "ids", _ids(read_ids(path))
    except DataError:
        packed = read_colors(path).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        colors = _ids(packed).items()
        return "colors", Counter({_color(int(value).to_bytes(3)): n for value, n in colors})


def _ids(pixels: NDArray[np.integer]) -> Counter[Raw]:
    values, counts = np.unique(pixels, return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def _color(color: Iterable[int]) -> str:
    return ",".join(map(str, color))


def _polygons(path: Path) -> Counter[Raw]:
    try:
        shapes = read_scene(path)["objects"]
        labels = [str(shape["label"]) for shape in shapes if not shape.get("deleted")]
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} does not hold polygons in the format of Cityscapes.",
            "Name a folder whose labels are images, or JSON with 'objects' that have a 'label'.",
        ) from error
    names = set(_CITYSCAPES.values())
    known = {*labels, *names}
    base = [(label, label.removesuffix(_GROUP)) for label in labels]  # "cargroup": several cars
    return Counter(b if b in known and label not in names else label for label, b in base)
