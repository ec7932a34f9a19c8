"""Label maps of a card: the raw values of each class."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from pinmem_core.errors import unknown_name
from pinmem_core.label_space import CLASSES, IGNORE_INDEX, TRAIN_ID, LabelMap

IGNORE = "ignore"

_ID = re.compile(r"\d{1,5}")
_COLOR = re.compile(r"\d{1,3}(,\d{1,3}){2}")


def _as_raw(value: Any) -> int | str:
    text = str(value).replace(" ", "") if isinstance(value, int | str) else ""
    if _ID.fullmatch(text) and int(text) < 1 << 16:
        return int(text)  # a text where a format has no other keys
    if _COLOR.fullmatch(text) and max(map(int, text.split(","))) < 1 << 8:
        return text
    raise ValueError(
        f"'{str(value)[:100]}' is neither an id (0..65535) nor a colour 'red,green,blue'"
    )


def _as_class(name: str) -> str:
    if name not in {*TRAIN_ID, IGNORE}:
        error = unknown_name("class", name, [*TRAIN_ID, IGNORE])
        raise ValueError(f"{error.message} {error.hint}".removesuffix("."))
    return name


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, int | str) else value


def _unique_values(names: Any) -> Any:
    """Refuse a raw value that is written in two ways, such as 1 and "1"."""
    if isinstance(names, Mapping):
        _refuse_repeated(_as_raw(raw) for raw in names)
    return names


def _disjoint_classes(
    classes: dict[str, tuple[int | str, ...]],
) -> dict[str, tuple[int | str, ...]]:
    """Refuse a raw value of two classes."""
    _refuse_repeated(raw for raws in classes.values() for raw in set(raws))
    return classes


def _refuse_repeated(raws: Iterable[int | str]) -> None:
    repeated = [raw for raw, times in Counter(raws).items() if times > 1]
    if repeated:
        raise ValueError(f"the value {repeated[0]} is listed twice")


Raw = Annotated[int | str, BeforeValidator(_as_raw)]
"""An id, or a colour written "red,green,blue"."""

RawValues = Annotated[tuple[Raw, ...], BeforeValidator(_as_tuple)]
"""One or more raw values; in YAML, a single one needs no brackets."""

ClassName = Annotated[str, AfterValidator(_as_class)]
"""The name of one of the 19 classes, or "ignore"."""


class LabelMapSpec(BaseModel):
    """A label map as written in a card."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    like: str | None = None
    """Another map to start from; the other keys override its entries."""
    values: Annotated[dict[Raw, str], BeforeValidator(_unique_values)] = {}
    """Name of every raw value that may occur; values without a class are ignored."""
    classes: Annotated[dict[ClassName, RawValues], AfterValidator(_disjoint_classes)] = {}
    """Raw values of each class by its name; "ignore" removes values from a class."""


_CITYSCAPES_NAMES = (
    "unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road, "
    "sidewalk, parking, rail track, building, wall, fence, guard rail, bridge, tunnel, pole, "
    "polegroup, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck, "
    "bus, caravan, trailer, train, motorcycle, bicycle"
)

STANDARD_MAPS: Mapping[str, LabelMapSpec] = {
    "trainids": LabelMapSpec(
        values={IGNORE_INDEX: IGNORE}, classes={c.name: (c.train_id,) for c in CLASSES}
    ),
    "cityscapes-ids": LabelMapSpec(
        # license plate is -1, which is 255 in eight bits
        values={**dict(enumerate(_CITYSCAPES_NAMES.split(", "))), 255: "license plate"},
        classes={c.name: (c.label_id,) for c in CLASSES},
    ),
}
"""Maps that every card may use: trainIds unchanged, and the ids of cityscapesScripts."""


def build_label_map(name: str, specs: Mapping[str, LabelMapSpec]) -> LabelMap:
    """Return the lookup table of the label map `specs[name]`.

    Raises:
        ConfigError: No map has that name.
        ValueError: The map is empty, or mixes ids and colours.
    """
    values, train_ids = _flatten(name, specs)
    colors = {isinstance(raw, str) for raw in train_ids}
    if len(colors) != 1:
        raise ValueError(f"the label map '{name}' is empty, or mixes ids and colours")
    if colors == {True}:
        return LabelMap.from_colors({_color(str(raw)): t for raw, t in train_ids.items()})
    names = {int(raw): value for raw, value in values.items()}
    return LabelMap.from_ids({int(raw): t for raw, t in train_ids.items()}, names)


def _flatten(name: str, specs: Mapping[str, LabelMapSpec]) -> tuple[dict[Raw, str], dict[Raw, int]]:
    """Return the names and the trainIds of a map's raw values, including inherited ones."""
    if name not in specs:
        raise unknown_name("label map", name, specs)
    spec = specs[name]
    rest = {other: s for other, s in specs.items() if other != name}  # no cycles
    values, train_ids = _flatten(spec.like, rest) if spec.like else ({}, {})
    values |= spec.values
    train_ids = dict.fromkeys(values, IGNORE_INDEX) | train_ids
    for class_name, raws in spec.classes.items():
        train_ids |= dict.fromkeys(raws, TRAIN_ID.get(class_name, IGNORE_INDEX))
    return values, train_ids


def _color(text: str) -> tuple[int, int, int]:
    red, green, blue = (int(part) for part in text.split(","))
    return red, green, blue
