"""The 19 classes of street scenes, and lookup tables from any dataset's encoding to them.

Source: cityscapesScripts, `labels.py` (names, colours, ids and trainIds of Cityscapes).
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = 255
"""TrainId of pixels that training and evaluation ignore."""


class StreetClass(NamedTuple):
    """One of the 19 evaluated classes of Cityscapes.

    Attributes:
        train_id: TrainId, 0..18.
        name: Name in Cityscapes.
        color: RGB colour, 0..255.
        label_id: Id in Cityscapes' own label files, 0..33, expected by its benchmark server.
    """

    train_id: int
    name: str
    color: tuple[int, int, int]
    label_id: int


CLASSES: tuple[StreetClass, ...] = (
    StreetClass(0, "road", (128, 64, 128), 7),
    StreetClass(1, "sidewalk", (244, 35, 232), 8),
    StreetClass(2, "building", (70, 70, 70), 11),
    StreetClass(3, "wall", (102, 102, 156), 12),
    StreetClass(4, "fence", (190, 153, 153), 13),
    StreetClass(5, "pole", (153, 153, 153), 17),
    StreetClass(6, "traffic light", (250, 170, 30), 19),
    StreetClass(7, "traffic sign", (220, 220, 0), 20),
    StreetClass(8, "vegetation", (107, 142, 35), 21),
    StreetClass(9, "terrain", (152, 251, 152), 22),
    StreetClass(10, "sky", (70, 130, 180), 23),
    StreetClass(11, "person", (220, 20, 60), 24),
    StreetClass(12, "rider", (255, 0, 0), 25),
    StreetClass(13, "car", (0, 0, 142), 26),
    StreetClass(14, "truck", (0, 0, 70), 27),
    StreetClass(15, "bus", (0, 60, 100), 28),
    StreetClass(16, "train", (0, 80, 100), 31),
    StreetClass(17, "motorcycle", (0, 0, 230), 32),
    StreetClass(18, "bicycle", (119, 11, 32), 33),
)
CLASS_NAMES: tuple[str, ...] = tuple(c.name for c in CLASSES)
TRAIN_ID: Mapping[str, int] = {c.name: c.train_id for c in CLASSES}

_ABSENT_FROM_SYNTHIA = {"terrain", "truck", "train"}
_ABSENT_FROM_13 = _ABSENT_FROM_SYNTHIA | {"wall", "fence", "pole"}
CLASS_SETS: Mapping[int, tuple[int, ...]] = {
    19: tuple(c.train_id for c in CLASSES),
    16: tuple(c.train_id for c in CLASSES if c.name not in _ABSENT_FROM_SYNTHIA),
    13: tuple(c.train_id for c in CLASSES if c.name not in _ABSENT_FROM_13),
}
"""TrainIds of the class sets in the literature; 16 and 13 are for models trained on SYNTHIA."""


def _byte_table(values: Mapping[int, object], fill: object) -> NDArray[np.uint8]:
    """Return a lookup table for 8-bit labels; labels without an entry get `fill`."""
    return np.array([values.get(label, fill) for label in range(256)], dtype=np.uint8)


COLOR_TABLE = _byte_table({c.train_id: c.color for c in CLASSES}, (0, 0, 0))
"""RGB colours by trainId, (256, 3); black for ignored pixels."""
LABEL_ID_TABLE = _byte_table({c.train_id: c.label_id for c in CLASSES}, 0)
"""Cityscapes ids by trainId, (256,); 0 (unlabeled) for ignored pixels."""


Color = tuple[int, int, int]


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
