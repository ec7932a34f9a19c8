"""Label maps: the raw values of each class in a card, and lookup tables from them to trainIds.

The trainIds of a map are those of its label space.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from pinmem_core.errors import unknown_name
from pinmem_core.label_space import (
    CITYSCAPES,
    IGNORE_INDEX,
    Color,
    Groups,
    LabelSpace,
    label_space,
    label_spaces,
)

IGNORE = "ignore"


class LabelMap:
    """Lookup table from a dataset's label values to trainIds.

    Create one with `from_ids` (8- or 16-bit ids) or `from_colors` (RGB).

    Attributes:
        entries: TrainIds by raw value; colours are packed as 0xRRGGBB.
        of_colors: Whether the raw values are RGB colours.
        ids: Raw ids by class name, if names are known (polygons have names instead of ids).
        space: Label space of the trainIds.
    """

    UNKNOWN = 254
    """Table entry of unknown raw values; it is no trainId and differs from `IGNORE_INDEX`."""

    def __init__(
        self,
        train_ids: Mapping[int, int],
        *,
        colors: bool,
        names: Mapping[int, str] | None = None,
        space: LabelSpace = CITYSCAPES,
    ) -> None:
        self.entries: Mapping[int, int] = dict(sorted(train_ids.items()))
        self.of_colors = colors
        self.ids: Mapping[str, int] = {name: raw for raw, name in (names or {}).items()}
        self.space = space
        if not set(self.entries.values()) <= {*range(len(space)), IGNORE_INDEX}:
            raise ValueError("a label map contains values that are not trainIds")

    @classmethod
    def from_ids(
        cls,
        train_ids: Mapping[int, int],
        names: Mapping[int, str] | None = None,
        space: LabelSpace = CITYSCAPES,
    ) -> "LabelMap":
        """Return a map from ids in 0..65535 to trainIds of `space` or 255."""
        return cls(train_ids, colors=False, names=names, space=space)

    @classmethod
    def from_colors(
        cls, train_ids: Mapping[Color, int], space: LabelSpace = CITYSCAPES
    ) -> "LabelMap":
        """Return a map from RGB colours to trainIds of `space` or 255."""
        packed = {(r << 16) | (g << 8) | b: t for (r, g, b), t in train_ids.items()}
        return cls(packed, colors=True, space=space)

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        size = 1 << 24 if self.of_colors else 1 << 16
        table = np.full(size, self.UNKNOWN, dtype=np.uint8)
        for raw, train_id in self.entries.items():
            table[raw] = train_id
        return table

    @cached_property
    def _byte_table(self) -> bytes:
        return self._table[:256].tobytes()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the entries and the classes; maps with equal digests decode equally."""
        entries = f"{'rgb' if self.of_colors else 'id'}:{sorted(self.entries.items())}"
        if not self.space.same_as(CITYSCAPES):  # the only classes of earlier versions
            entries += f":{self.space.names}"
        return hashlib.sha256(entries.encode()).hexdigest()

    def text(self, raw: int) -> str:
        """Return a raw value in the notation of a card: an id, or "red,green,blue"."""
        return ",".join(map(str, raw.to_bytes(3))) if self.of_colors else str(raw)

    def apply(self, raw: NDArray[np.integer]) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
        """Translate a label image to trainIds.

        Args:
            raw: Ids, (H, W), or RGB colours, (H, W, 3), for a map created by `from_colors`.

        Returns:
            TrainIds, (H, W) uint8, with 255 for unknown raw values; and the unknown raw values
            (ids, or colours packed as 0xRRGGBB).

        Raises:
            ValueError: The shape of `raw` does not match the kind of the map.
        """
        if (raw.ndim == 3) != self.of_colors:
            wanted = "an RGB colour picture" if self.of_colors else "a single-channel id picture"
            raise ValueError(f"the label map needs {wanted}, got shape {raw.shape}")
        keys = _pack(raw) if self.of_colors else raw
        if keys.dtype == np.uint8:  # bytes.translate is several times faster than fancy indexing
            translated = keys.tobytes().translate(self._byte_table)
            train_ids = np.frombuffer(translated, dtype=np.uint8).reshape(keys.shape)
            if self.UNKNOWN not in translated:
                return train_ids, ()
        else:
            train_ids = np.take(self._table, keys)
        unknown = train_ids == self.UNKNOWN
        if not unknown.any():
            return train_ids, ()
        train_ids = np.where(unknown, np.uint8(IGNORE_INDEX), train_ids)
        return train_ids, tuple(int(value) for value in np.unique(keys[unknown]))


def _pack(colors: NDArray[np.integer]) -> NDArray[np.int32]:
    """Pack RGB colours (H, W, 3) into integers 0xRRGGBB, (H, W)."""
    red, green, blue = (colors[..., channel].astype(np.int32) for channel in range(3))
    return (red << 16) | (green << 8) | blue


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


class CardKeyError(ValueError):
    """An error inside the value of a card's key.

    Args:
        message: Message of the error.
        keys: Path of the wrong key below the validated one.
    """

    def __init__(self, message: str, *keys: int | str) -> None:
        super().__init__(message)
        self.keys = keys


def _as_space(value: Any) -> Any:
    """Check a label space: the name of a known one, or its definition."""
    if isinstance(value, str):
        if value not in label_spaces():
            raise _unknown("label space", value, label_spaces())
        return value
    if not isinstance(value, Mapping | LabelSpace):
        raise ValueError("this is neither the name nor the definition of a label space")
    space = _checked(value)
    if not space.same_as(label_spaces().get(space.name, space)):
        raise CardKeyError(
            f"'{space.name}' is a known label space with other classes; choose another name", "name"
        )
    return space


def _unknown(kind: str, name: str, known: Iterable[str], *keys: int | str) -> CardKeyError:
    error = unknown_name(kind, name, known)
    return CardKeyError(f"{error.message} {error.hint}".removesuffix("."), *keys)


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

SpaceRef = Annotated[str | LabelSpace, BeforeValidator(_as_space)]
"""The name of a known label space, or the definition of one."""


class LabelMapSpec(BaseModel):
    """A label map as written in a card."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    space: SpaceRef | None = None
    """Label space of the classes; None for that of the card."""
    like: str | None = None
    """Another map to start from; the other keys override its entries. The classes of another label
    space are mapped to `space`, or ignored if they cannot be mapped."""
    ids_of: SpaceRef | None = None
    """A label space whose trainIds are the raw values, and which is `space` or is mapped to it; the
    keys below override its entries."""
    values: Annotated[dict[Raw, str], BeforeValidator(_unique_values)] = {}
    """Name of every raw value that may occur; values without a class are ignored."""
    classes: Annotated[dict[str, RawValues], AfterValidator(_disjoint_classes)] = {}
    """Raw values of each class by its name; "ignore" removes values from a class."""
    maps: dict[str, Groups] = {}
    """Corrections of the label space's `maps` for data of this label map: own classes of each class
    of another space."""


_CITYSCAPES_NAMES = (
    "unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road, "
    "sidewalk, parking, rail track, building, wall, fence, guard rail, bridge, tunnel, pole, "
    "polegroup, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck, "
    "bus, caravan, trailer, train, motorcycle, bicycle"
)


def standard_maps(space: LabelSpace) -> Mapping[str, LabelMapSpec]:
    """Return the maps that every card may use.

    These are the trainIds of its label space unchanged, and the ids of cityscapesScripts.
    """
    ids = zip(CITYSCAPES.names, CITYSCAPES.label_ids, strict=True)
    return {
        "trainids": LabelMapSpec(
            values={IGNORE_INDEX: IGNORE}, classes={n: (i,) for n, i in space.train_ids.items()}
        ),
        "cityscapes-ids": LabelMapSpec(
            space=CITYSCAPES.name,
            # license plate is -1, which is 255 in eight bits
            values={**dict(enumerate(_CITYSCAPES_NAMES.split(", "))), 255: "license plate"},
            classes={name: (label_id,) for name, label_id in ids},
        ),
    }


STANDARD_MAPS = standard_maps(CITYSCAPES)
"""The maps that every card with the classes of Cityscapes may use."""


def build_label_map(
    name: str, specs: Mapping[str, LabelMapSpec], space: LabelSpace = CITYSCAPES
) -> LabelMap:
    """Return the lookup table of the label map `specs[name]`.

    Args:
        name: Name of the map.
        specs: Label maps by name.
        space: Label space of maps that name none.

    Raises:
        ConfigError: No map has that name.
        CardKeyError: The map is empty, mixes ids and colours, or names unknown classes.
    """
    space, values, classes = _flatten(name, specs, space)
    colors = {isinstance(raw, str) for raw in classes}
    if len(colors) != 1:
        reason = "is empty, or mixes ids and colours"
        raise CardKeyError(f"the label map '{name}' {reason}", "label_maps", name)
    train_ids = {raw: space.train_ids.get(name, IGNORE_INDEX) for raw, name in classes.items()}
    if colors == {True}:
        by_color = {_color(str(raw)): train_id for raw, train_id in train_ids.items()}
        return LabelMap.from_colors(by_color, space)
    names = {int(raw): value for raw, value in values.items()}
    return LabelMap.from_ids({int(raw): t for raw, t in train_ids.items()}, names, space)


def _flatten(
    name: str, specs: Mapping[str, LabelMapSpec], card_space: LabelSpace
) -> tuple[LabelSpace, dict[Raw, str], dict[Raw, str]]:
    """Return the space of a map, and the name and the class of each raw value."""
    if name not in specs:
        raise unknown_name("label map", name, specs)
    spec, keys = specs[name], ("label_maps", name)
    space = resolve_space(spec.space or card_space)
    values: dict[Raw, str] = {}
    classes: dict[Raw, str] = {}
    if spec.like:
        rest = {other: s for other, s in specs.items() if other != name}  # no cycles
        base, values, classes = _flatten(spec.like, rest, card_space)
        space = base if base.same_as(space) else space  # with its corrections
        counterparts = _counterparts(base, space) if base.maps_to(space) else {}
        classes = {raw: counterparts.get(own, IGNORE) for raw, own in classes.items()}
    if spec.ids_of:
        source = resolve_space(spec.ids_of)
        if not source.maps_to(space):
            reason = f"the ids of '{source.name}' cannot be mapped to '{space.name}'"
            raise CardKeyError(reason, *keys, "ids_of")
        counterparts = _counterparts(source, space)
        classes |= {raw: counterparts[own] for raw, own in enumerate(source.names)}
        values = {**dict[Raw, str](enumerate(source.names)), **values}
    values |= spec.values
    classes = dict.fromkeys(values, IGNORE) | classes
    for class_name, raws in spec.classes.items():
        if class_name not in {*space.names, IGNORE}:
            known = [*space.names, IGNORE]
            raise _unknown("class", class_name, known, *keys, "classes", class_name)
        classes |= dict.fromkeys(raws, class_name)
    return _corrected(space, spec.maps, keys), values, classes


def _counterparts(source: LabelSpace, space: LabelSpace) -> dict[str, str]:
    """Return the class of `space`, or "ignore", by the classes of `source`."""
    names = {**dict(enumerate(space.names)), IGNORE_INDEX: IGNORE}
    table = source.table_to(space).tolist()
    return {own: names[table[train_id]] for own, train_id in source.train_ids.items()}


def resolve_space(space: SpaceRef) -> LabelSpace:
    """Return a known label space by name, or `space` itself if it is one."""
    return label_space(space) if isinstance(space, str) else space


def _corrected(space: LabelSpace, maps: Mapping[str, Groups], keys: tuple[str, ...]) -> LabelSpace:
    """Return `space` with some of its `maps` corrected."""
    if not maps:
        return space
    merged = {other: {**space.maps.get(other, {}), **groups} for other, groups in maps.items()}
    return _checked({**space.model_dump(), "maps": {**space.maps, **merged}}, *keys)


def _checked(values: Any, *keys: str) -> LabelSpace:
    """Return the label space of `values`, whose maps have only classes of known spaces."""
    try:
        space = LabelSpace.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        inner = [key for key in first["loc"] if key != "[key]"]
        raise CardKeyError(first["msg"].removeprefix("Value error, "), *keys, *inner) from None
    for other, groups in space.maps.items():
        for name in groups:
            if other in label_spaces() and name not in label_space(other).classes:
                raise _unknown("class", name, label_space(other).names, *keys, "maps", other, name)
    return space


def _color(text: str) -> tuple[int, int, int]:
    red, green, blue = (int(part) for part in text.split(","))
    return red, green, blue
