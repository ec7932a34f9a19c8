"""Recognize the annotation files of labelling tools in a folder by their contents."""

import re
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pinmem_core.data.encodings.coco import CocoFile, folded, read_coco_file
from pinmem_core.data.label_values import Raw
from pinmem_core.data.layout_guess import (
    Candidates,
    LayoutGuess,
    Pair,
    Pairing,
    candidates,
    closeness,
    guess_layout,
    is_image,
    layout_of,
    looks_like_label,
)
from pinmem_core.data.samples import evenly_spaced
from pinmem_core.documents import read_json_object, read_text, read_yaml
from pinmem_core.errors import DataError

_SNIFFED_BYTES = 1 << 16
_FILES_SNIFFED = 16
_LARGEST_NAMES = 1 << 20
_COCO = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_LABELME = re.compile(rb'"shapes"\s*:\s*\[')
_OTHER_TASKS = re.compile(r"captions?|keypoints?", re.IGNORECASE)
_NAME_LISTS = ("classes.txt", "obj.names")
"""Files with the name of a class on each line, in the order of the ids."""
_YOLO = re.compile(rb"\s*(\d+(\s+[-+.\deE]+){4,}\s+)*\d+(\s+[-+.\deE]+){4,}\s*")
_COLOR = re.compile(r"\d{1,3},\d{1,3},\d{1,3}")


@dataclass(frozen=True)
class Annotations:
    """The labels of a folder.

    Attributes:
        layout: Layout of images and labels.
        encoding: Encoding of the labels; None if they are images.
        names: Names of the ids or colours that a file of the folder names.
        missing: Number of annotated images that the folder lacks.
    """

    layout: LayoutGuess
    encoding: str | None = None
    names: Mapping[Raw, str] = field(default_factory=dict)
    missing: int = 0


def guess_annotations(paths: Mapping[str, Path]) -> Annotations | None:
    """Return the labels of a folder, in the format with the most pairs; None without pairs.

    Label images come before the formats of tools with as many pairs.

    Args:
        paths: Location of each file by its path as text.

    Raises:
        DataError: There are no pairs, and a file in the format of COCO cannot be read.
    """
    files = [PurePosixPath(text) for text in paths]
    images = [path for path in files if is_image(path)]
    jsons = {path: paths[str(path)] for path in files if path.suffix.lower() == ".json"}
    coco = {path: jsons[path] for path in jsons if _sniff(jsons[path], _COCO)}
    labelme = [path for path in jsons if path not in coco and _sniff(jsons[path], _LABELME)]
    rest = {*files}.difference(coco, labelme)
    by_folder, by_name = (candidates(rest, by_folder=first) for first in (True, False))
    readings = [by_folder, by_name] if by_folder != by_name else [by_folder]
    layouts = (layout for reading in readings for layout in _guessed(reading))
    guesses = [Annotations(layout, names=image_names(paths)) for layout in layouts]
    guesses += (Annotations(lay, "labelme") for lay in _guessed(candidates(files, labelme)))
    yolo = candidates(files, _texts_of_images(images, paths))
    guesses += (Annotations(layout, "yolo", _yolo_names(paths)) for layout in _guessed(yolo))
    errors: list[DataError] = []
    guesses += _coco_annotations(images, coco, errors)
    if errors and not guesses:
        raise errors[0]
    return max(guesses, key=lambda labels: len(labels.layout.pairs), default=None)


def _guessed(files: Candidates) -> Iterator[LayoutGuess]:
    if files.labels and (layout := guess_layout(files)):
        yield layout


def _has_suffix(text: str, *suffixes: str) -> bool:
    return text.lower().endswith(suffixes)


def _sniff(path: Path, pattern: re.Pattern[bytes]) -> bool:
    """Return whether the beginning or the end of a file matches."""
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, 2)
        for start in (0, max(0, size - _SNIFFED_BYTES)):
            file.seek(start)
            if pattern.search(file.read(_SNIFFED_BYTES)):
                return True
    return False


# COCO


def _coco_annotations(
    images: Iterable[PurePosixPath], jsons: Mapping[PurePosixPath, Path], errors: list[DataError]
) -> Iterator[Annotations]:
    """Yield the labels of each group of JSON files with the same categories."""
    wanted = {p: path for p, path in jsons.items() if not _OTHER_TASKS.search(p.name)} or jsons
    groups: dict[object, dict[PurePosixPath, CocoFile]] = defaultdict(dict)
    for label, path in wanted.items():
        try:
            content = read_coco_file(path)
        except DataError as error:
            errors.append(error)
            continue
        groups[content.is_panoptic, frozenset(content.names.items())][label] = content
    by_name: dict[str, list[PurePosixPath]] = defaultdict(list)
    for image in images:
        by_name[folded(image.name)].append(image)
    for group in groups.values():
        pairs = list(_coco_pairs(group, by_name))
        if pairs:
            pairing = Pairing(pairs, ("", ""), None)
            files = Candidates([pair.image for pair in pairs], [], [*group])
            if layout := layout_of(pairing, files):
                names = {e.file for content in group.values() for e in content.entries}
                missing = sum(file.name not in by_name for file in names)
                yield Annotations(layout, "coco", missing=missing)
        elif entries := [(path, e.file) for path in group for e in group[path].entries]:
            errors.append(_no_images(jsons[entries[0][0]], entries[0][1], by_name))


def _no_images(path: Path, image: PurePosixPath, images: Container[str]) -> DataError:
    """Return the error for a JSON file without an annotation of any image of the folder."""
    if image.name in images:
        return DataError(f"{path} has no annotations of its images, such as {image}.")
    return DataError(
        f"{path} has labels of {image} and others, but the folder has no images of these names.",
        "Rename the images, or correct each 'file_name' in the JSON.",
    )


def _coco_pairs(
    group: Mapping[PurePosixPath, CocoFile], by_name: Mapping[str, Sequence[PurePosixPath]]
) -> Iterator[Pair]:
    """Yield the image of each entry of some JSON files; of several, the one closest to its file."""
    taken: set[PurePosixPath] = set()
    for label in sorted(group, key=lambda label: len(group[label].entries)):
        for entry in group[label].entries:
            same = by_name.get(entry.file.name, [])
            if group[label].is_panoptic:
                same = [image for image in same if image.parent.name != label.stem]
            best = max(map(entry.likeness, same), default=None)
            free = [p for p in same if entry.likeness(p) == best and p not in taken]
            if free and entry.annotations:
                image = max(free, key=lambda p: _likeness(p, label))
                taken.add(image)
                yield Pair(image, label, image.stem)


def _likeness(image: PurePosixPath, label: PurePosixPath) -> tuple[bool, tuple[int, int]]:
    place = str(label.with_suffix(""))
    return not looks_like_label(image), closeness(str(image.parent), place)


# YOLO


def _texts_of_images(
    images: Iterable[PurePosixPath], paths: Mapping[str, Path]
) -> list[PurePosixPath]:
    """Return the text files with the names of images if most hold lines of YOLO's format."""
    stems = {image.stem for image in images}
    texts = [p for t in paths if _has_suffix(t, ".txt") and (p := PurePosixPath(t)).stem in stems]
    sampled = evenly_spaced(texts, _FILES_SNIFFED)
    heads = [head for text in sampled if (head := _head(paths[str(text)])).strip()]
    alike = [head for head in heads if _YOLO.fullmatch(head.rpartition(b"\n")[0] or head)]
    return texts if heads and 2 * len(alike) >= len(heads) else []


def _head(path: Path) -> bytes:
    with suppress(OSError), path.open("rb") as file:
        return file.read(1 << 10).removeprefix(BOM_UTF8)
    return b""


def _yolo_names(paths: Mapping[str, Path]) -> dict[Raw, str]:
    """Return the names of the classes in the YAML of a dataset, or in a list of names."""
    for text in _by_depth(paths):
        names: object = None
        if _has_suffix(text, ".yaml", ".yml"):
            with suppress(DataError):  # the settings of something else
                content = read_yaml(paths[text])
                names = content.get("names") if isinstance(content, dict) else None
        elif PurePosixPath(text).name.lower() in _NAME_LISTS:
            names = _lines(paths[text])
        if numbered := _numbered(names):
            return numbered
    return {}


def _lines(path: Path) -> list[str]:
    texts = read_text(path, _LARGEST_NAMES).splitlines()
    return [line.strip() for line in texts if line.strip()]


def _by_depth(paths: Iterable[str]) -> list[str]:
    return sorted(paths, key=lambda text: (text.count("/"), text))


def _numbered(names: object) -> dict[Raw, str]:
    """Return names by number, from a list or from an object whose keys are numbers."""
    items = (
        names.items()
        if isinstance(names, dict)
        else enumerate(names if isinstance(names, list) else ())
    )
    numbered = {str(number): name for number, name in items}
    if all(n.isdecimal() and len(n) < 6 and isinstance(v, str | int) for n, v in numbered.items()):
        return {int(number): str(name) for number, name in numbered.items()}
    return {}


# Images


def image_names(paths: Mapping[str, Path]) -> dict[Raw, str]:
    """Return the names in VOC's labelmap.txt, a model's id2label.json, or a list of names."""
    for text in _by_depth(paths):
        name = PurePosixPath(text).name.lower()
        if name == "labelmap.txt":
            return _labelmap(read_text(paths[text], _LARGEST_NAMES))
        if name == "id2label.json":
            return _numbered(read_json_object(paths[text], _LARGEST_NAMES))
        if name in _NAME_LISTS:
            return _numbered(_lines(paths[text]))
    return {}


def _labelmap(text: str) -> dict[Raw, str]:
    """Return the names of the colours, or of the ids if there are no colours.

    A line is "name:red,green,blue:parts:actions".
    """
    lines = [line.strip() for line in text.splitlines()]
    rows = [line.split(":") for line in lines if line and not line.startswith("#")]
    colors = [row[1].replace(" ", "") if len(row) > 1 else "" for row in rows]
    if all(_COLOR.fullmatch(color) for color in colors):
        return {color: row[0] for color, row in zip(colors, rows, strict=True)}
    return {number: row[0] for number, row in enumerate(rows)}
