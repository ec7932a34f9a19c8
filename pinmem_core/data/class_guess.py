"""Guess the classes of label values, for the draft of a card."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from pinmem_core.data.encodings.shapes import UNLABELED
from pinmem_core.data.label_maps import STANDARD_MAPS
from pinmem_core.data.label_values import LabelValues, Raw
from pinmem_core.errors import DataError
from pinmem_core.label_space import (
    CITYSCAPES,
    IGNORE_INDEX,
    MOST_CLASSES,
    Color,
    default_color,
)
from pinmem_core.paths import as_text

_VOID = re.compile(r"un ?label?led|void|ignored?|ignore regions?|unknown|out of roi")
_BACKGROUND = "background"
_MOST_COLORS = 64
_ROUNDED = 2
_LONGEST_NAME = 100
_CITYSCAPES_NAMES = STANDARD_MAPS["cityscapes-ids"].values
_TRAIN_ID_NAMES: dict[Raw, str] = {**dict(enumerate(CITYSCAPES.names)), IGNORE_INDEX: "ignored"}


@dataclass(frozen=True)
class ClassGuess:
    """The classes of label values, in the terms of a card.

    Attributes:
        values: Name of each raw value, in the order of the card.
        shares: Share of each raw value.
        classes: Raw values of each class.
        colors: Colour of each class of an own label space; empty if the classes are Cityscapes'.
        cityscapes: Own class of each class of Cityscapes with the same name.
        ignored: Names of values without a class.
        rarer: Number of colours that are left out.
        background: Whether pixels outside of all shapes are a class.
    """

    values: Mapping[Raw, str]
    shares: Mapping[Raw, float]
    classes: Mapping[str, list[Raw]] = field(default_factory=dict)
    colors: Mapping[str, Color] = field(default_factory=dict)
    cityscapes: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    rarer: int = 0
    background: bool = False


def class_guess(labels: LabelValues) -> ClassGuess:
    """Return the classes of label values.

    They are those of Cityscapes if all names are Cityscapes'; otherwise, each value is a class of
    its own, except those that are called "void" or the like.

    Raises:
        DataError: There are fewer than two classes, or too many.
    """
    if labels.standard_map:
        names: Mapping[Raw, str] = (
            _TRAIN_ID_NAMES if labels.standard_map == "trainids" else {**_CITYSCAPES_NAMES}
        )
        return ClassGuess({raw: names.get(raw, "") for raw in labels.shares}, labels.shares)
    values, shares = _values(labels)
    rarer = 0
    if labels.encoding == "colors" and not labels.names:
        rarer = max(0, len(values) - _MOST_COLORS)
        values = dict([*values.items()][:_MOST_COLORS])
    by_color = {} if labels.names else labels.colors_of_cityscapes
    if by_color:
        known = {name: [raw] for raw, name in by_color.items()}
        return ClassGuess(values, shares, known, ignored=("black",) * (len(values) > len(known)))
    used = {raw: name for raw, name in values.items() if not _is_void(raw, name, labels, shares)}
    background = labels.has_shapes and len({*used.values()}) == 1
    if background:
        outside = {raw: _BACKGROUND for raw, name in values.items() if name == UNLABELED}
        used = outside | used
    classes: dict[str, list[Raw]] = {}
    for raw, name in used.items():
        classes.setdefault(_class_name(name), []).append(raw)
    if IGNORE_INDEX not in used and labels.encoding.startswith("ids") and IGNORE_INDEX in values:
        values[IGNORE_INDEX] = labels.names.get(IGNORE_INDEX, "ignored")
    ignored = tuple(name for raw, name in values.items() if raw not in used)
    standard = {name: _plain(name) for name in classes}
    kept = {standard[n]: raws for n, raws in classes.items() if standard[n] in CITYSCAPES.names}
    if len(kept) > 1 and {*standard.values()} <= {*_CITYSCAPES_NAMES.values()}:
        ignored += tuple(name for name in classes if standard[name] not in CITYSCAPES.names)
        return ClassGuess(values, shares, kept, ignored=ignored)
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise DataError(
            f"the labels hold {len(classes)} classes, and 2 to {MOST_CLASSES} are needed.",
            "Name a folder whose labels are classes, not instances or a single value.",
        )
    cityscapes: dict[str, str] = {}
    for name in classes:
        if standard[name] in CITYSCAPES.names:
            cityscapes.setdefault(standard[name], name)
    return ClassGuess(
        values, shares, classes, _colors(classes, standard), cityscapes, ignored, rarer, background
    )


def _values(labels: LabelValues) -> tuple[dict[Raw, str], dict[Raw, float]]:
    """Return the name and the share of each raw value of a card."""
    if labels.has_names:
        names = [*dict.fromkeys((UNLABELED, *map(str, labels.shares)))]
        return dict(enumerate(names)), {n: labels.shares.get(v, 0) for n, v in enumerate(names)}
    values = {raw: labels.names.get(raw) or _default_name(raw) for raw in labels.shares}
    shares = dict(labels.shares)
    if labels.encoding == "yolo":
        outside = IGNORE_INDEX if IGNORE_INDEX not in values else (1 << 16) - 1
        values[outside], shares[outside] = UNLABELED, 0
    return values, shares


def _default_name(raw: Raw) -> str:
    if isinstance(raw, int):
        return f"class {raw}"
    return "#" + "".join(f"{int(channel):02x}" for channel in raw.split(","))


def _is_void(raw: Raw, name: str, labels: LabelValues, shares: Mapping[Raw, float]) -> bool:
    """Return whether a value means that pixels have no class."""
    if _VOID.fullmatch(_plain(name)):
        return True
    if labels.encoding == "colors" and labels.names:
        outside = _plain(name) == _BACKGROUND and len(labels.names) > 2  # of all shapes, in CVAT
        return raw not in labels.names or outside
    if labels.encoding == "coco":
        return not shares[raw]  # a category for others, as Roboflow writes it
    is_unnamed = raw == IGNORE_INDEX and raw not in labels.names
    if not is_unnamed or not labels.encoding.startswith("ids") or len(labels.shares) < 3:
        return False
    steps = [b - a for a, b in pairwise(value for value in labels.shares if isinstance(value, int))]
    is_level = max(steps) - min(steps) <= _ROUNDED and max(steps) > 1  # of grey, as the others
    return not is_level


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _class_name(name: str) -> str:
    return as_text(name.strip())[:_LONGEST_NAME] or "class"


def _colors(classes: Mapping[str, list[Raw]], standard: Mapping[str, str]) -> dict[str, Color]:
    """Return a colour for each class: that of the labels, of Cityscapes, or of VOC's palette."""
    colors: dict[str, Color] = {}
    for name, raws in classes.items():
        if isinstance(raws[0], str):
            red, green, blue = map(int, raws[0].split(","))
            colors[name] = red, green, blue
        elif (known := CITYSCAPES.classes.get(standard[name])) is not None:
            colors[name] = known
    free = (c for n in range(1 << 10) if (c := default_color(n)) not in {*colors.values()})
    return {name: colors[name] if name in colors else next(free) for name in classes}
