"""Labels stored in the format of COCO: one JSON with the polygons or segments of many images."""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinmem_core.data.encodings.shapes import Canvas, malformed, points_in_line, rle_mask
from pinmem_core.data.label_maps import LabelMap
from pinmem_core.documents import read_json_object
from pinmem_core.errors import DataError
from pinmem_core.images import image_size
from pinmem_core.label_files import read_colors
from pinmem_core.paths import as_text

_MAX_BYTES = 512 << 20  # the polygons of COCO's 118,287 training images have 448 MB
_KEPT_BYTES = 512 << 20  # of JSON that stays parsed
_LONGEST_PATH = 240
_VOID_SEGMENT = 0


@dataclass(frozen=True)
class Entry:
    """The annotations of one image.

    Attributes:
        file: Path of the image in the JSON, in lower case.
        size: Width and height in the JSON; None if it does not say.
        annotations: Annotations as in the JSON.
    """

    file: PurePosixPath
    size: tuple[int, int] | None
    annotations: list[dict[str, Any]]

    def likeness(self, image: PurePath) -> tuple[int, bool]:
        """Return how many last parts of its path an image shares, and whether these are all."""
        own = self.file.parts
        parts = PurePosixPath(folded(image.as_posix())).parts[-len(own) :]
        shared = next((n for n in range(len(parts), 0, -1) if parts[-n:] == own[-n:]), 0)
        return shared, shared == len(own)


class CocoFile:
    """The content of a JSON file in the format of COCO.

    Attributes:
        path: The file.
        names: Name of each category by its id.
        entries: Entries in the order of the file.
        is_panoptic: Whether the segments are in PNG files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_json_object(path, _MAX_BYTES)
        try:
            self.names = {c["id"]: _text(c["name"]) for c in _objects(content, "categories")}
            annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
            for annotation in _objects(content, "annotations"):
                annotations[annotation["image_id"]].append(annotation)
            self.entries = [
                Entry(
                    PurePosixPath(folded(_text(image["file_name"]))),
                    (image["width"], image["height"]) if "width" in image else None,
                    annotations[image["id"]],
                )
                for image in _objects(content, "images")
            ]
        except (KeyError, TypeError, ValueError) as error:
            reason = f"an entry has no {error}" if isinstance(error, KeyError) else error
            raise DataError(f"{path} is not in the format of COCO: {reason}.") from None
        self.is_panoptic = any("segments_info" in a for e in self.entries for a in e.annotations)
        self._by_name: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            self._by_name[entry.file.name].append(entry)

    def entry_of(self, image: Path) -> Entry | None:
        """Return the entry with the name of an image; among several, by the folders in the JSON."""
        entries = self._by_name.get(folded(image.name), [])
        best = max((entry.likeness(image) for entry in entries), default=None)
        alike = [entry for entry in entries if entry.likeness(image) == best]
        return alike[0] if len(alike) == 1 else None


_parsed: OrderedDict[tuple[Path, int, int], CocoFile | DataError] = OrderedDict()
_lock = Lock()


def read_coco_file(path: Path) -> CocoFile:
    """Return the content of a JSON file, which is parsed once for all of its images.

    Raises:
        DataError: It cannot be read, or is not in the format of COCO.
    """
    with _lock:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from None
        key = path, status.st_size, status.st_mtime_ns
        if key not in _parsed:
            try:
                _parsed[key] = CocoFile(path)
            except DataError as error:
                _parsed[key] = error
            while len(_parsed) > 1 and sum(size for _, size, _ in _parsed) > _KEPT_BYTES:
                _parsed.popitem(last=False)
        _parsed.move_to_end(key)
        content = _parsed[key]
    if isinstance(content, DataError):
        raise DataError(content.message, content.hint)
    return content


def likeness(path: Path, image: Path) -> tuple[int, bool]:
    """Return the likeness of an image to its entry in a JSON file; (0, False) without an entry.

    A file that cannot be read may have one.
    """
    try:
        entry = read_coco_file(path).entry_of(image)
    except DataError:
        return 1, False
    return entry.likeness(image) if entry else (0, False)


def images_without_entry(pairs: Iterable[tuple[Path, Path]]) -> set[Path]:
    """Return the images whose entry in their JSON file belongs to another image of the same name.

    It belongs to the image whose path is most like the one in the JSON; to none if several are.

    Args:
        pairs: A JSON file and an image.
    """
    by_name: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path, image in pairs:
        by_name[path, folded(image.name)].append(image)
    without: set[Path] = set()
    for (path, _), images in by_name.items():
        by_entry: dict[PurePosixPath, list[Path]] = defaultdict(list)
        for image in images if len(images) > 1 else ():
            with suppress(DataError):  # decoding gives the reason
                if entry := read_coco_file(path).entry_of(image):
                    by_entry[entry.file].append(image)
        for alike in by_entry.values():
            ranks = [likeness(path, image) for image in alike]
            owner = alike[ranks.index(max(ranks))] if ranks.count(max(ranks)) == 1 else None
            without.update(image for image in alike if image != owner)
    return without


def read_coco(path: Path, label_map: LabelMap, image: Path) -> NDArray[Any]:
    """Return the (H, W) ids of an image, later annotations over earlier ones.

    Annotations are polygons, run-length encodings (compressed or not), or the segments of a
    panoptic PNG in the folder that has the name of the JSON. Other pixels are "unlabeled".

    Raises:
        DataError: The JSON does not hold the image, or an annotation is malformed.
    """
    content = read_coco_file(path)
    entry = content.entry_of(image)
    if entry is None:
        raise DataError(f"{path} has no single entry for {image.name}.")
    with malformed(f"{path} cannot be read for {image.name}"):
        size = image_size(image)
        if entry.size and entry.size != size:
            named = "x".join(f"{side!s:.9}" for side in entry.size)
            raise ValueError(f"it is of an image of {named}, not {size[0]}x{size[1]}")
        canvas = Canvas(size, label_map)
        draw = _draw_segments if content.is_panoptic else _draw
        for annotation in entry.annotations:
            draw(annotation, content, canvas, size)
        return canvas.drawn()


def _draw(
    annotation: dict[str, Any], content: CocoFile, canvas: Canvas, size: tuple[int, int]
) -> None:
    name = _name(annotation, content)
    value = canvas.id_of(name)
    shapes = annotation.get("segmentation") or []
    if isinstance(shapes, dict):
        canvas.mask(partial(rle_mask, shapes, size, name), value)
        return
    for shape in shapes:
        points = points_in_line(shape, name)
        if len(points) < 3:
            raise ValueError(f"a polygon of '{name:.40}' has fewer than three points")
        canvas.polygon(points, value)


def _draw_segments(
    annotation: dict[str, Any], content: CocoFile, canvas: Canvas, size: tuple[int, int]
) -> None:
    png = _segments_of(annotation, content)
    if not png.is_file():
        raise ValueError(f"{png.parent.name}/{png.name} is missing")
    pixels = read_colors(png).astype(np.int64)
    if pixels.shape[1::-1] != size:
        raise ValueError(f"{png.name} is of another size than the image")
    ids = pixels @ np.array([1, 1 << 8, 1 << 16])
    segments, places_of = np.unique(ids, return_inverse=True)
    names = {s["id"]: _name(s, content) for s in annotation["segments_info"]}
    unknown = [n for n in segments.tolist() if n not in names and n != _VOID_SEGMENT]
    if unknown:
        raise ValueError(f"{png.name} holds the segment {unknown[0]}, which the JSON does not list")
    for number, segment in enumerate(segments.tolist()):
        if segment in names:
            canvas.mask(partial(np.equal, places_of, number), canvas.id_of(names[segment]))


def _segments_of(annotation: dict[str, Any], content: CocoFile) -> Path:
    """Return the path of a panoptic PNG, in the folder that has the name of the JSON."""
    file = _text(annotation["file_name"])
    if len(file) > _LONGEST_PATH or ".." in file or file.startswith("/"):
        raise ValueError(f"'{file:.40}' is no file of its folder")
    bases = content.path.parent, content.path.parent.parent
    places = [base / content.path.stem / file for base in bases]
    return next((place for place in places if place.is_file()), places[0])


def segment_files(path: Path, image: Path) -> list[Path]:
    """Return the panoptic PNG files of an image; none if the JSON cannot be read."""
    try:
        content = read_coco_file(path)
        entry = content.entry_of(image)
        annotations = entry.annotations if entry and content.is_panoptic else []
        return [_segments_of(annotation, content) for annotation in annotations]
    except (DataError, ValueError, KeyError):
        return []  # decoding gives the reason


def _name(annotation: dict[str, Any], content: CocoFile) -> str:
    """Return the name of an annotation's category."""
    category = annotation["category_id"]
    if category not in content.names:
        raise ValueError(f"the category {category!r:.40} is not among its categories")
    return content.names[category]


def _objects(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    objects = content[key]
    if not isinstance(objects, list) or not all(isinstance(item, dict) for item in objects):
        raise ValueError(f"its '{key}' are no list of objects")
    return objects


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no text")
    return value


def folded(path: str) -> str:
    """Return a path for comparison: any case, accent encoding and separator."""
    return as_text(path.replace("\\", "/")).casefold()


ENCODINGS = {"coco": read_coco}
MORE_FILES = {"coco": segment_files}
