"""The values in label files, for the draft of a card."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinmem_core.data.encodings.coco import read_coco_file
from pinmem_core.data.encodings.labelme import MAX_BYTES, shapes_of
from pinmem_core.data.encodings.polygons import read_scene
from pinmem_core.data.encodings.shapes import malformed
from pinmem_core.data.encodings.yolo import lines_of
from pinmem_core.data.label_maps import STANDARD_MAPS
from pinmem_core.data.samples import evenly_spaced
from pinmem_core.documents import read_json_object
from pinmem_core.errors import DataError
from pinmem_core.images import open_image
from pinmem_core.label_files import read_colors, read_ids, read_rgb16
from pinmem_core.label_space import CITYSCAPES, IGNORE_INDEX

_IMAGES_SAMPLED = 128
_TEXTS_SAMPLED = 2048
_GROUP = "group"
_TRAIN_IDS = {*range(len(CITYSCAPES)), IGNORE_INDEX}
_CITYSCAPES = STANDARD_MAPS["cityscapes-ids"].values
_TYPICAL = [CITYSCAPES.names.index(n) for n in ("road", "building", "vegetation", "sky", "car")]
"""TrainIds of classes in nearly every street scene: small ids alone do not identify a label map."""
_NAMED = ("polygons", "labelme", "coco")
"""Encodings whose labels are names."""
_MOST_UNNAMED = 0.5
"""Share of the pixels without a name above which colours are not those of a list of names."""

Raw = int | str
"""An id, a colour "red,green,blue", or the label of a polygon."""


@dataclass(frozen=True)
class LabelValues:
    """The raw values in a sample of label files.

    Attributes:
        encoding: Name of the encoding of most files.
        shares: Share of the pixels, or of the shapes, by value; ids in ascending order, values with
            names in the order of the names, others by descending share.
        files: Number of files read.
        called_train_ids: Whether the file names say that the labels hold trainIds.
        names: Names of the values that the data name.
    """

    encoding: str
    shares: Mapping[Raw, float]
    files: int
    called_train_ids: bool = False
    names: Mapping[Raw, str] = field(default_factory=dict)

    @property
    def has_names(self) -> bool:
        """Whether the values are names of classes."""
        return self.encoding in _NAMED

    @property
    def has_shapes(self) -> bool:
        """Whether pixels may lie outside of all labelled shapes."""
        return self.has_names or self.encoding == "yolo"

    @property
    def unit(self) -> str:
        """The unit of `shares`."""
        return "shapes" if self.has_shapes else "pixels"

    @property
    def standard_map(self) -> str | None:
        """The standard label map that the values match.

        Consecutive ids from 0 may belong to any dataset, unless they reach the last trainId or the
        last id of Cityscapes, 255 is among them, or the file names say what they are.
        """
        values = set(self.shares)
        if self.has_names:
            is_known = values <= set(_CITYSCAPES.values()) and len(values & {*CITYSCAPES.names}) > 1
            return "cityscapes-ids" if is_known else None
        if self.encoding != "ids" or self.names:
            return None
        has_gap = values != set(range(len(values)))
        typical = values >= {*_TYPICAL} and (has_gap or len(CITYSCAPES) - 1 in values)
        if values <= _TRAIN_IDS and (self.called_train_ids or typical):
            return "trainids"
        ids = {CITYSCAPES.label_ids[train_id] for train_id in _TYPICAL}
        has_gap |= max(CITYSCAPES.label_ids) in values
        return "cityscapes-ids" if has_gap and ids <= values <= set(_CITYSCAPES) else None

    @property
    def may_be_train_ids(self) -> bool:
        """Whether the values could be trainIds, but do not prove it."""
        is_unclear = self.encoding == "ids" and not self.standard_map and not self.names
        return is_unclear and set(self.shares) <= _TRAIN_IDS

    @property
    def colors_of_cityscapes(self) -> dict[Raw, str]:
        """The class of each colour, if all colours are those of Cityscapes."""
        by_color: dict[Raw, str] = {_color(c): n for n, c in CITYSCAPES.classes.items()}
        if self.encoding == "colors" and set(self.shares) <= {*by_color, "0,0,0"}:
            return {color: by_color[color] for color in self.shares if color in by_color}
        return {}


def label_values(
    labels: Sequence[Path], encoding: str | None = None, names: Mapping[Raw, str] | None = None
) -> LabelValues:
    """Return the raw values in evenly spaced label files, in the encoding of most of them.

    Args:
        labels: Label files.
        encoding: Encoding of the labels; None for that of most files, which are images or polygons
            of Cityscapes.
        names: Name of each id or colour, if the data say it.

    Raises:
        DataError: None of them can be read.
    """
    names = names or {}
    has_colors = any(isinstance(raw, str) for raw in names)
    values = _sampled(labels, "colors" if has_colors and encoding is None else encoding, names)
    unnamed = sum(share for raw, share in values.shares.items() if raw not in names)
    if has_colors and unnamed > _MOST_UNNAMED:  # the labels are ids, in the order of the names
        return _sampled(labels, encoding, dict(enumerate(names.values())))
    return values


def _sampled(labels: Sequence[Path], encoding: str | None, names: Mapping[Raw, str]) -> LabelValues:
    by_encoding: dict[str, list[Counter[Raw]]] = defaultdict(list)
    ids = []
    errors = []
    files = [*dict.fromkeys(labels)]
    most = _IMAGES_SAMPLED if encoding in (None, "colors") else _TEXTS_SAMPLED
    for path in evenly_spaced(files, most):
        try:
            kind, counts = (encoding, _READERS[encoding](path)) if encoding else _read(path)
            by_encoding[kind].append(counts)
            ids += [path] if kind == "ids" else []
        except DataError as error:
            errors.append(error)
    if not by_encoding:
        raise errors[0]
    if ids and _are_colors(ids, alone="colors" not in by_encoding):
        return _sampled(labels, "colors", names)
    kind = max(by_encoding, key=lambda name: len(by_encoding[name]))
    total = sum(by_encoding[kind], Counter[Raw]())
    fitting = {
        raw: name for raw, name in names.items() if isinstance(raw, str) == (kind == "colors")
    }
    known: Mapping[Raw, str] = {} if kind in _NAMED else fitting
    if kind == "coco":
        known = {name: name for path in files for name in read_coco_file(path).names.values()}
    values = [*dict.fromkeys([*known, *(raw for raw, _ in total.most_common())])]
    if not total:
        raise DataError(
            f"the labels, such as {files[0]}, hold no shapes.",
            "Export masks or polygons; boxes alone do not say which pixels belong to a class.",
        )
    if kind.startswith("ids") or kind == "yolo":
        values.sort()
    shares = {value: total[value] / max(total.total(), 1) for value in values}
    called_train_ids = "trainid" in labels[0].name.lower()
    return LabelValues(kind, shares, len(by_encoding[kind]), called_train_ids, fitting)


def _are_colors(labels: Iterable[Path], *, alone: bool) -> bool:
    """Return whether images that can be read as ids hold colours.

    They do if an index has different colours in their palettes, as if each image was optimized by
    itself; or if all have palettes or are RGB, of grey or red by chance, next to other colours.

    Args:
        labels: Label images.
        alone: Whether there are no images that can only be read as colours.
    """
    modes: set[str] = set()
    colors: dict[int, list[int]] = {}
    for path in labels:
        with open_image(path) as image:
            modes.add(image.mode)
            palette = image.getpalette("RGB") or []
            for index in np.unique(np.asarray(image)).tolist() if image.mode == "P" else ():
                color = palette[3 * index : 3 * index + 3]
                if colors.setdefault(index, color) != color:
                    return True
    return not alone and modes <= {"P", "RGB", "RGBA"}


def _read(path: Path) -> tuple[str, Counter[Raw]]:
    """Return the encoding of a label file, and how often each value occurs."""
    if path.suffix.lower() == ".json":
        return "polygons", _polygons(path)
    with suppress(DataError):
        pixels = read_rgb16(path)
        if not pixels[..., 2].any():  # otherwise they are colours
            return "ids16", _ids(pixels[..., 0])
    try:
        return "ids", _ids(read_ids(path))
    except DataError:
        return "colors", _colors(path)


def _colors(path: Path) -> Counter[Raw]:
    packed = read_colors(path).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    return Counter({_color(int(value).to_bytes(3)): n for value, n in _ids(packed).items()})


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


def _labelme(path: Path) -> Counter[Raw]:
    with malformed(f"{path} cannot be read as labelme's JSON"):
        return Counter(label for label, _ in shapes_of(read_json_object(path, MAX_BYTES)))


def _yolo(path: Path) -> Counter[Raw]:
    with malformed(f"{path} cannot be read as polygons of YOLO"):
        return Counter(number for number, _ in lines_of(path))


def _coco(path: Path) -> Counter[Raw]:
    content = read_coco_file(path)
    objects: list[Any] = []
    for annotation in (a for entry in content.entries for a in entry.annotations):
        segments = annotation.get("segments_info")
        has_shape = bool(annotation.get("segmentation"))
        objects += segments if isinstance(segments, list) else [annotation] * has_shape
    numbers = [part.get("category_id") for part in objects if isinstance(part, dict)]
    known = (n for n in numbers if isinstance(n, int | str) and n in content.names)
    return Counter(content.names[number] for number in known)


_READERS: Mapping[str, Callable[[Path], Counter[Raw]]] = {
    "colors": _colors,
    "labelme": _labelme,
    "yolo": _yolo,
    "coco": _coco,
}
