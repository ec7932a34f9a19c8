"""Label spaces: the classes of a dataset or a model, and how they map to those of another.

A label space is an ordered list of classes; the id of a class, its trainId, is its position. The
known spaces are the files of `label_spaces/`. A dataset card can define its own.

Source of Cityscapes: cityscapesScripts, `labels.py` (names, colours, ids and trainIds).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pinmem_core.errors import ConfigError, unknown_name
from pinmem_core.yaml_text import load_yaml

IGNORE_INDEX = 255
"""TrainId of pixels that training and evaluation ignore."""
MOST_CLASSES = 254
"""Maximum number of classes: 254 and 255 have other meanings in a label."""

Color = tuple[int, int, int]
"""RGB, 0..255."""

_FOLDER = Path(__file__).with_name("label_spaces")


def default_color(number: int) -> Color:
    """Return the colour of class `number` in the palette of PASCAL VOC, without its black."""
    number += 1
    bits = [[number >> 3 * place + channel & 1 for place in range(8)] for channel in range(3)]
    red, green, blue = (sum(bit << 7 - i for i, bit in enumerate(channel)) for channel in bits)
    return red, green, blue


def _as_classes(value: Any) -> Any:
    """Accept a list of names, and colours that are missing or written "red,green,blue"."""
    if isinstance(value, list | tuple):
        repeated = [name for name, times in Counter(_as_names(value)).items() if times > 1]
        if repeated:
            raise ValueError(f"the class '{repeated[0]}' is listed twice")
        value = dict.fromkeys(value)
    if not isinstance(value, Mapping):
        return value
    colors = {}
    for number, (name, color) in enumerate(value.items()):
        if color is None:
            color = default_color(number)
        color = color.split(",") if isinstance(color, str) else color
        if not isinstance(color, list | tuple) or len(color) != 3:
            raise ValueError(f"the colour of '{name}' is not three numbers, as in '128,64,128'")
        colors[name] = color
    return colors


def _as_names(value: Sequence[Any]) -> Sequence[Any]:
    if not all(isinstance(name, str) for name in value):
        raise ValueError("an entry of the list is not the name of a class")
    return value


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_groups(value: Any) -> Any:
    """Accept a list of class names that both spaces have."""
    return {n: n for n in _as_names(value)} if isinstance(value, list | tuple) else value


_ClassName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
_Byte = Annotated[int, Field(ge=0, le=255)]
_Members = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Groups = Annotated[dict[str, _Members], BeforeValidator(_as_groups)]
"""Classes of one label space by the class of another to which they belong."""


class LabelSpace(BaseModel):
    """The classes of a dataset or a model.

    Two spaces are the same if their classes have the same names in the same order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=100)
    """Name of the space, e.g. "cityscapes-19"."""
    classes: Annotated[
        dict[_ClassName, tuple[_Byte, _Byte, _Byte]], BeforeValidator(_as_classes)
    ] = Field(min_length=2, max_length=MOST_CLASSES)
    """RGB colours by class name, in the order of trainIds. In YAML, a list of names is enough."""
    maps: dict[str, Groups] = {}
    """Own classes of each class of another space, by the name of that space. Own classes that are
    not listed are ignored there. In YAML, a list names classes that both spaces have."""
    label_ids: tuple[_Byte, ...] = ()
    """Ids of the classes in the dataset's own label files, if a benchmark server expects them."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if "ignore" in self.classes:
            raise ValueError("'ignore' cannot be a class")
        if self.label_ids and len(self.label_ids) != len(self.classes):
            raise ValueError("label_ids needs one id for each class")
        for other, groups in self.maps.items():
            members = [name for group in groups.values() for name in group]
            for name, times in Counter(members).items():
                if name not in self.classes:
                    raise ValueError(f"maps.{other}: '{name}' is not a class of {self.name}")
                if times > 1:
                    raise ValueError(f"maps.{other}: '{name}' is listed twice")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of trainIds."""
        return tuple(self.classes)

    @cached_property
    def train_ids(self) -> Mapping[str, int]:
        """TrainIds by class name."""
        return {name: train_id for train_id, name in enumerate(self.classes)}

    @cached_property
    def color_table(self) -> NDArray[np.uint8]:
        """RGB colours by trainId, (256, 3); black for ignored pixels."""
        return _byte_table(dict(enumerate(self.classes.values())), (0, 0, 0))

    @cached_property
    def label_id_table(self) -> NDArray[np.uint8] | None:
        """Ids of the dataset's own label files by trainId, (256,); 0 for ignored pixels."""
        return _byte_table(dict(enumerate(self.label_ids)), 0) if self.label_ids else None

    @cached_property
    def subsets(self) -> Mapping[str, NDArray[np.bool_]]:
        """Whether each class belongs to the space's own set and to each known subset, (K,).

        The keys are the numbers of classes, the largest first. Only Cityscapes has subsets, those
        of the literature for models trained on SYNTHIA; for another space, there is no entry.
        """
        inner = [s for s in label_spaces().values() if s.name in self.maps and _is_subset(s, self)]
        sets = [self, *sorted(inner, key=lambda space: -len(space))] if inner else []
        return {str(len(s)): np.isin(self.names, s.names) for s in sets}

    @property
    def canonical(self) -> "LabelSpace":
        """The known space with this name and these classes, or this space if there is none.

        The maps of a dataset's space may differ from those of the known space.
        """
        known = label_spaces().get(self.name)
        return known if known and known.same_as(self) else self

    def __len__(self) -> int:
        return len(self.classes)

    # Pydantic would compare the cached tables, and ignore the order of the classes.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelSpace) and self.model_dump_json() == other.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def same_as(self, other: "LabelSpace") -> bool:
        """Return whether the classes of both have the same names in the same order."""
        return self.names == other.names

    def table_to(self, other: "LabelSpace") -> NDArray[np.uint8]:
        """Return the trainIds of `other` by the trainIds of this space, (256,) uint8.

        Classes without a counterpart become 255. A map exists if the spaces are the same, if
        `maps` leads to `other` directly or through known spaces, or if all class names of this
        space are class names of `other`.

        Raises:
            ConfigError: There is no map, e.g. because `other` splits a class of this space.
        """
        groups = self._groups_of(other)
        if groups is None:
            raise self._no_map(other)
        table = np.full(256, IGNORE_INDEX, np.uint8)
        for train_id, name in enumerate(other.names):
            table[[self.train_ids[member] for member in groups.get(name, ())]] = train_id
        return table

    def maps_to(self, other: "LabelSpace") -> bool:
        """Return whether `table_to(other)` exists."""
        return self._groups_of(other) is not None

    def _groups_of(self, other: "LabelSpace") -> Mapping[str, tuple[str, ...]] | None:
        """Return the own classes of each class of `other`, or None without a map."""
        if other.name in self.maps and not self.same_as(other):
            return self.maps[other.name]
        if {*self.names} <= {*other.names}:
            return {name: (name,) for name in self.names}
        for name, groups in self.maps.items():
            between = label_spaces().get(name)
            if between and (further := between._groups_of(other)) is not None:
                return {
                    target: tuple(own for member in members for own in groups.get(member, ()))
                    for target, members in further.items()
                }
        return None

    def _no_map(self, other: "LabelSpace") -> ConfigError:
        message = f"the classes '{self.name}' cannot be mapped to the classes '{other.name}'"
        if self.name == other.name:
            message = f"two sets of different classes have the name '{self.name}'"
        groups = other._groups_of(self) or {}
        split = next((name for name, members in groups.items() if len(members) > 1), None)
        if split:
            parts = ", ".join(groups[split])
            return ConfigError(
                f"{message}: '{split}' is several classes there ({parts}).",
                f"Use '--classes {self.name}', to which both can be mapped.",
            )
        shared = [s for s in label_spaces().values() if self.maps_to(s) and other.maps_to(s)]
        if shared:
            finest = max(shared, key=len).name
            return ConfigError(f"{message}.", f"Use '--classes {finest}', which both map to.")
        own, known = (other, self) if self.name in label_spaces() else (self, other)
        return ConfigError(
            f"{message}: no class of '{self.name}' is assigned to one there.",
            f"Assign those of '{own.name}' in its card, 'label_space: maps: {known.name}: ...', "
            "and prepare it again with this card.",
        )


def _is_subset(inner: LabelSpace, outer: LabelSpace) -> bool:
    return len(inner) < len(outer) and {*inner.names} <= {*outer.names}


def _byte_table(values: Mapping[int, object], fill: object) -> NDArray[np.uint8]:
    """Return a lookup table for 8-bit labels; labels without an entry get `fill`."""
    return np.array([values.get(label, fill) for label in range(256)], dtype=np.uint8)


@cache
def label_spaces() -> Mapping[str, LabelSpace]:
    """Return the known label spaces by name, sorted."""
    return {name: _read(name) for name in sorted(file.stem for file in _FOLDER.glob("*.yaml"))}


@cache
def _read(name: str) -> LabelSpace:
    values = load_yaml((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return LabelSpace.model_validate({"name": name, **values})


def label_space(name: str) -> LabelSpace:
    """Return the known label space `name`.

    Raises:
        ConfigError: No label space has this name; the hint suggests the closest one.
    """
    if name not in label_spaces():
        raise unknown_name("label space", name, label_spaces())
    return label_spaces()[name]


def common_space(spaces: Sequence[LabelSpace]) -> LabelSpace:
    """Return the space with the most classes to which all `spaces` can be mapped.

    One of `spaces` is preferred to a known space.

    Args:
        spaces: At least one space.

    Raises:
        ConfigError: No such space is known.
    """
    for candidates in (spaces, label_spaces().values()):
        common = [c for c in candidates if all(space.maps_to(c) for space in spaces)]
        if common:
            return max(common, key=len)
    names = ", ".join(sorted({f"'{space.name}'" for space in spaces}))
    raise ConfigError(
        f"the classes {names} have no known classes in common.",
        "Assign them to a common label space in the cards: 'label_space: maps: ...'.",
    )


CITYSCAPES = _read("cityscapes-19")  # alone, because each command imports this module
"""The 19 evaluated classes of Cityscapes, the default label space."""


def first_classes(count: int) -> LabelSpace:
    """Return the first `count` of Cityscapes' classes, 2..19; earlier versions had no others."""
    if count == len(CITYSCAPES):
        return CITYSCAPES
    classes = dict(list(CITYSCAPES.classes.items())[:count])
    ids = CITYSCAPES.label_ids[:count]
    return LabelSpace(name=f"cityscapes-first-{count}", classes=classes, label_ids=ids)
