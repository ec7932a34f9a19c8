"""Label maps: the raw values of each class in a card, and lookup tables from them to trainIds."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from pinmem_core.errors import unknown_name
from pinmem_core.label_space import CLASSES, IGNORE_INDEX, TRAIN_ID, Color

IGNORE = "ignore"


class LabelMap:
    """Lookup table from a dataset's label values to trainIds.

    Create one with `from_ids` (8- or 16-bit ids) or `from_colors` (RGB).

    Attributes:
        of_colors: Whether the raw values are RGB colours.
        ids: Raw ids by class name, if names are known (polygons have names instead of ids).
    """

    UNKNOWN = 254
    """Table entry of unknown raw values; it is no trainId and differs from `IGNORE_INDEX`."""

    def __init__(
        self,
        train_ids: Mapping[int, int],
        *,
        colors: bool,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self._train_ids = dict(sorted(train_ids.items()))
        self.of_colors = colors
        self.ids: Mapping[str, int] = {name: raw for raw, name in (names or {}).items()}
        if not set(self._train_ids.values()) <= {*range(len(CLASSES)), IGNORE_INDEX}:
            raise ValueError("a label map contains values that are not trainIds")

    @classmethod
    def from_ids(
        cls, train_ids: Mapping[int, int], names: Mapping[int, str] | None = None
    ) -> "LabelMap":
        """Return a map from ids in 0..65535 to trainIds in 0..18 or 255."""
        return cls(train_ids, colors=False, names=names)

    @classmethod
    def from_colors(cls, train_ids: Mapping[Color, int]) -> "LabelMap":
        """Return a map from RGB colours to trainIds in 0..18 or 255."""
        packed = {(r << 16) | (g << 8) | b: t for (r, g, b), t in train_ids.items()}
        return cls(packed, colors=True)

    @cached_property
    def _table(self) -> NDArray[np.uint8]:
        size = 1 << 24 if self.of_colors else 1 << 16
        table = np.full(size, self.UNKNOWN, dtype=np.uint8)
        for raw, train_id in self._train_ids.items():
            table[raw] = train_id
        return table

    @cached_property
    def _byte_table(self) -> bytes:
        return self._table[:256].tobytes()

    @property
    def entries(self) -> Mapping[int, int]:
        """TrainIds by raw value; colours are packed as 0xRRGGBB."""
        return self._train_ids

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the table's entries; maps with equal digests decode equally."""
        entries = f"{'rgb' if self.of_colors else 'id'}:{sorted(self._train_ids.items())}"
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
