"""Analyze the memory: its slots, and what images read from it and write to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, cos, isfinite, pi, sin
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from pinmem_core.data.samples import Sample, spread
from pinmem_core.data.transforms import normalize
from pinmem_core.drawing import GRID, MARGIN, Sheet, ramp
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation.evaluate import Target
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.inference import Predictor
from pinmem_core.label_space import CLASS_NAMES, CLASSES, COLOR_TABLE, IGNORE_INDEX, Color
from pinmem_core.models.decoders.base import resize
from pinmem_core.models.memory import CategoricalMemory
from pinmem_core.visualize import (
    FAINT,
    GAP,
    INK,
    beside,
    caption,
    colorize,
    font,
    heading,
    legend,
    stacked,
)

_LARGEST = 2**21
"""Maximum number of pixels of an image, that of Cityscapes images; larger images are reduced."""


@dataclass(frozen=True, eq=False)
class Reading:
    """An image with its classes, its read weights and its written slots.

    Attributes:
        id: Id of the sample.
        image: RGB image, (H, W, 3).
        truth: TrainIds, (H, W); 255 is ignored.
        prediction: Predicted trainIds, (H, W).
        weights: Read weight of each slot at each position of the feature, (K, h, w); weights of a
            position sum to 1.
        written: Slots after writing only this image into an empty memory, (K, D): the mean u of
            each class, of unit length; zeros for a class with fewer pixels than a feature position
            covers.
    """

    id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    weights: NDArray[np.float32]
    written: NDArray[np.float32]

    def weight_of(self, train_id: int) -> NDArray[np.float32]:
        """Return the read weight of a slot at each pixel, (H, W), in 0..1."""
        return self._at_pixels(self.weights[train_id : train_id + 1])[0].numpy()

    @cached_property
    def most_read(self) -> NDArray[np.uint8]:
        """Slot with the largest read weight at each pixel, (H, W)."""
        return self._at_pixels(self.weights).argmax(dim=0).to(torch.uint8).numpy()

    @property
    def labelled(self) -> int:
        """Number of labelled pixels."""
        return int((self.truth != IGNORE_INDEX).sum())

    @property
    def right(self) -> int:
        """Number of labelled pixels that read the slot of their true class most."""
        return int((self.most_read == self.truth).sum())

    def _at_pixels(self, weights: NDArray[np.float32]) -> Tensor:
        return resize(torch.from_numpy(weights)[None], self.truth.shape)[0]


@torch.inference_mode()
def read_memory(
    predictor: Predictor, sample: Sample, prediction: NDArray[np.uint8] | None = None
) -> Reading:
    """Return the read weights and written slots of the memory for a whole sample.

    Image, truth and prediction follow the protocol's view; above 2**21 pixels they are reduced.

    Args:
        predictor: Predictor of a network with memory.
        sample: Sample to analyze.
        prediction: TrainIds, (H, W), predicted before; None to predict the sample.

    Raises:
        ConfigError: The network has no memory.
        DataError: A file cannot be read.
    """
    segmenter, memory = predictor.segmenter, predictor.segmenter.memory
    if memory is None:
        raise ConfigError("the network has no memory.", "Load one that was trained with a memory.")
    image, truth = predictor.protocol.view_of(*sample.read())
    if prediction is None:
        prediction = predictor.predict(image)
    prediction = _within_limit(prediction, Image.Resampling.NEAREST)
    image = _within_limit(image, Image.Resampling.BICUBIC)
    truth = _within_limit(truth, Image.Resampling.NEAREST)
    seen = torch.tensor(image, device=predictor.device).permute(2, 0, 1)[None]
    feature = segmenter.encode(normalize(seen, segmenter.normalization)).feature
    weights = memory.attention(feature, memory.slots).weights[0]
    written = _written(memory, feature, truth, segmenter.config.output_stride**2)
    return Reading(sample.id, image, truth, prediction, _array(weights), _array(written))


def _written(
    memory: CategoricalMemory, feature: Tensor, truth: NDArray[np.uint8], least: int
) -> Tensor:
    """Return the slots (K, D) that a feature (1, D, h, w) writes.

    Classes with fewer than `least` pixels are ignored.
    """
    pixels = np.bincount(truth.ravel(), minlength=256)
    kept = np.where(pixels < least, IGNORE_INDEX, np.arange(256)).astype(np.uint8)
    labels = torch.from_numpy(kept[truth])[None].to(feature.device)
    return memory.write(feature, labels, torch.zeros_like(memory.slots))


def _within_limit(pixels: NDArray[np.uint8], how: Image.Resampling) -> NDArray[np.uint8]:
    """Resize a picture to at most `_LARGEST` pixels, keeping its aspect ratio."""
    height, width = pixels.shape[:2]
    if height * width <= _LARGEST:
        return pixels
    scale = (_LARGEST / (height * width)) ** 0.5
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane of the first two principal components.

    Attributes:
        mean: Mean of the points, (D,).
        axes: Orthonormal axes, (2, D); the component of largest magnitude of each is positive.
        shares: Fraction of the variance along each axis, (2,).
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, points: NDArray[Any]) -> "Plane":
        """Fit the plane to `points`, (N, D), with N and D at least 2."""
        mean = points.mean(axis=0, dtype=np.float64)
        _, lengths, directions = np.linalg.svd(points - mean, full_matrices=False)
        axes = directions[:2]
        largest = np.take_along_axis(axes, abs(axes).argmax(axis=1, keepdims=True), axis=1)
        total = max((lengths**2).sum(), np.finfo(np.float64).tiny)
        return cls(mean, axes * np.sign(largest), lengths[:2] ** 2 / total)

    def project(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Return the coordinates (N, 2) of `points` (N, D) in the plane."""
        return (points - self.mean) @ self.axes.T


Symbol = tuple[tuple[float, float], ...]
"""Corners (x, y) of a polygon around (0, 0)."""


def _symbol(corners: int, turn: float = 0.0, size: float = 1.0, inner: float = 1.0) -> Symbol:
    """Return corners around the origin; every second radius is multiplied by `inner`."""
    angles = [2 * pi * number / corners + turn for number in range(corners)]
    radii = [size * (inner if number % 2 else 1) for number in range(corners)]
    return tuple((r * sin(a), -r * cos(a)) for r, a in zip(radii, angles, strict=True))


SYMBOLS: tuple[Symbol, ...] = (
    _symbol(24),
    _symbol(4, turn=pi / 4, size=1.25),
    _symbol(3, size=1.45),
    _symbol(4, size=1.3),
    _symbol(3, turn=pi, size=1.45),
    _symbol(10, size=1.6, inner=0.4),
    _symbol(8, size=1.6, inner=0.35),
    _symbol(8, turn=pi / 4, size=1.6, inner=0.35),
)
"""Symbols of about equal area: disc, square, triangle, diamond, inverted triangle, three stars."""


def draw_symbol(
    sheet: Sheet,
    symbol: Symbol,
    at: tuple[float, float],
    radius: float,
    color: Color,
    edge: tuple[Color, float],
) -> None:
    """Draw a symbol at a position, with an edge given by its colour and width."""
    for size, fill in ((radius + edge[1], edge[0]), (radius, color)):
        sheet.polygon([(at[0] + size * x, at[1] + size * y) for x, y in symbol], fill)


_DIRECTIONS = np.array([(sin(a), -cos(a)) for a in np.arange(16) * pi / 8 + pi / 2])
_DISTANCES = np.array([4.0, 12.0, 24.0, 40.0, 60.0, 84.0])
_NEVER = 1e6


def place_names(
    marks: NDArray[np.float64],
    radius: float,
    sizes: NDArray[np.float64],
    points: NDArray[np.float64],
    room: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return centres (N, 2) for the labels of N marks.

    Labels do not cover each other or a mark, if possible. Among the remaining positions, those that
    hide few points and lie close to the mark are preferred.

    Args:
        marks: Centres of the marks, (N, 2).
        radius: Radius of the marks.
        sizes: Width and height of each label, (N, 2).
        points: Points to keep visible, (M, 2).
        room: Upper left and lower right corner of the label area, (2, 2).
    """
    taken = np.stack([marks - radius, marks + radius], axis=1)
    centres = np.empty_like(marks)
    for number, (mark, half) in enumerate(zip(marks, sizes / 2, strict=True)):
        reach = _DISTANCES[:, None, None] + radius + half
        candidates = (mark + _DIRECTIONS * reach).reshape(-1, 2)
        boxes = np.stack([candidates - half, candidates + half], axis=1)
        outside = ((boxes[:, 0] < room[0]) | (boxes[:, 1] > room[1])).any(axis=1)
        hidden = _overlaps(boxes, np.stack([points, points], axis=1)).sum(axis=1)
        clashes = _overlaps(boxes, taken).sum(axis=1)
        distances = np.repeat(_DISTANCES, len(_DIRECTIONS))
        best = (_NEVER * (clashes + outside) + hidden + distances / 20).argmin()
        centres[number] = candidates[best]
        taken = np.concatenate([taken, boxes[best : best + 1]])
    return centres


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of N boxes (N, 2, 2) overlap which of M others, (N, M)."""
    low = np.maximum(boxes[:, None, 0], others[None, :, 0])
    high = np.minimum(boxes[:, None, 1], others[None, :, 1])
    return np.all(low <= high, axis=2)


_CELL, _MATRIX = 46, 1800
"""Maximum side of a cell and of the whole matrix, in pixels."""
_READABLE = 34
"""Smallest side of a cell that shows its value, in pixels."""
_ROW_NAMES, _COLUMN_NAMES = 190, 110
_NARROWEST = 720
_NEVER_SEEN = "never seen"
# ColorBrewer's RdBu; colour-blind people can distinguish its ends.
_COSINES = (-1.0, -0.5, 0.0, 0.5, 1.0)
_COSINE_COLORS = ((5, 113, 176), (146, 197, 222), (247, 247, 247), (244, 165, 130), (202, 0, 32))


def slot_name(number: int) -> str:
    """Return the class name of a slot by its trainId."""
    return CLASS_NAMES[number] if number < len(CLASS_NAMES) else f"class {number}"


def plot_memory(slots: NDArray[np.float32], title: str) -> NDArray[np.uint8]:
    """Return an RGB picture (H, W, 3) of the cosine similarities between memory slots.

    Args:
        slots: Slots by trainId, (K, D); a row of zeros is a class that was never seen.
        title: Title of the picture.
    """
    lengths = np.linalg.norm(slots.astype(np.float64), axis=1)
    seen = lengths > 0
    unit = slots / np.where(seen, lengths, 1)[:, None]
    cosines = np.where(np.outer(seen, seen), unit @ unit.T, np.nan)
    cell = max(1, min(_CELL, _MATRIX // len(slots)))
    left, top, side = MARGIN + _ROW_NAMES, MARGIN + 32 + _COLUMN_NAMES, cell * len(slots)
    width = max(_NARROWEST, left + side + 3 * MARGIN)
    sheet = Sheet(width, top + side + 2 * MARGIN)
    sheet.text(MARGIN, 40, title, 24)
    _draw_class_names(sheet, seen, left, top, cell)
    _draw_cells(sheet, cosines, left, top, cell)
    _draw_color_scale(sheet, left + side + 24, top, side)
    sheet.text(MARGIN, top + side + MARGIN, _likeness(cosines))
    return sheet.finished()


def _draw_class_names(
    sheet: Sheet, seen: NDArray[np.bool_], left: float, top: float, cell: int
) -> None:
    size = min(14, cell)
    for number, is_seen in enumerate(seen):
        name = slot_name(number)
        color, middle = INK if is_seen else FAINT, (number + 0.5) * cell
        sheet.slanted(left + middle, top - 8, name, size, color)
        label = name if is_seen else f"{name} ({_NEVER_SEEN})"
        sheet.text(left - 10, top + middle, label, size, color, "rm", room=_ROW_NAMES)


def _draw_cells(
    sheet: Sheet, cosines: NDArray[np.float64], left: float, top: float, cell: int
) -> None:
    for (row, column), cosine in np.ndenumerate(cosines):
        x, y = left + column * cell, top + row * cell
        color = _cosine_color(cosine)
        sheet.rectangle(x, y, x + cell, y + cell, color)
        if cell >= _READABLE and isfinite(cosine):
            ink = INK if sum(color) > 400 else (255, 255, 255)
            sheet.text(x + cell / 2, y + cell / 2, _two_digits(cosine), 12, ink, "mm")


def _cosine_color(cosine: float) -> Color:
    """Return the colour of a cosine; grey for NaN."""
    if not isfinite(cosine):
        return GRID
    channels = zip(*_COSINE_COLORS, strict=True)
    red, green, blue = (round(np.interp(cosine, _COSINES, values)) for values in channels)
    return red, green, blue


def _two_digits(cosine: float) -> str:
    return f"{round(cosine, 2) + 0:.2f}"  # adding 0 turns -0 into 0


def _draw_color_scale(sheet: Sheet, left: float, top: float, height: float) -> None:
    """Draw the colour bar from 1 (top) to -1 (bottom)."""
    steps = 100
    for step in range(steps):
        y = top + height * step / steps
        color = _cosine_color(1 - 2 * (step + 0.5) / steps)
        sheet.rectangle(left, y, left + 14, y + height / steps, color)
    for cosine in _COSINES:
        y = top + height * (1 - cosine) / 2
        sheet.text(left + 22, y, f"{cosine:g}", 12, FAINT)


def _likeness(cosines: NDArray[np.float64]) -> str:
    """Return a sentence on the cosines (K, K) between different slots; NaN entries are ignored."""
    count = len(cosines)
    pairs = cosines[~np.eye(count, dtype=bool)]
    seen = int(np.isfinite(cosines.diagonal()).sum())
    if seen < 2:
        return "Fewer than two classes have been seen: there is nothing to compare."
    mean = _two_digits(float(np.nanmean(pairs)))
    return f"{seen} of {count} classes were seen; the mean cosine of two of their slots is {mean}."


_WIDTH, _HEIGHT, _TOP, _BELOW = 1160, 800, 68, 56
_LEGEND = 220
"""Width of the legend in pixels."""
_EDGE = 40
"""Margin of the chart without marks, in pixels."""
_ROW = 22
_POINT, _SWATCH, _SLOT = 5, 6, 9
"""Radii of the marks in pixels."""
_TEXT = 13
_WHITE: Color = (255, 255, 255)
_BARE = _WHITE, 0


class _Mark(NamedTuple):
    """A mark of a class feature or of a slot; `domain` is the index of the feature's domain."""

    x: float
    y: float
    train_id: int
    domain: int = 0


def plot_projection(
    written: Mapping[str, NDArray[np.float32]], slots: NDArray[np.float32], title: str
) -> NDArray[np.uint8]:
    """Return an RGB picture of memory slots and class features of images, projected by PCA.

    A point is the feature of a class in an image. Its colour shows the class, its shape shows the
    domain (shapes repeat after eight domains). Slots are large and labelled.

    Args:
        written: `Reading.written` of the images of each domain, (images, K, D), by domain; at least
            one domain.
        slots: Memory slots, (K, D); at least two rows must be nonzero. Rows of zeros, here and in
            `written`, are classes that were not seen.
        title: Title of the picture.
    """
    features = np.concatenate([*written.values()])
    domains = np.repeat(np.arange(len(written)), [len(images) for images in written.values()])
    images, classes = np.nonzero(features.any(axis=2))
    (seen,) = np.nonzero(slots.any(axis=1))
    shown = np.concatenate([features[images, classes], slots[seen]])
    plane = Plane.of(shown)
    sheet = Sheet(_WIDTH, max(_HEIGHT, _TOP + (len(written) + len(slots) + 4) * _ROW))
    sheet.text(MARGIN, 36, title, 24)
    room = _draw_frame(sheet, plane)
    places = _fitted(plane.project(shown), room)
    of_points, of_slots = places[: len(images)], places[len(images) :]
    _draw_points(sheet, _marks(of_points, classes, domains[images]))
    _draw_slots(sheet, _marks(of_slots, seen, np.zeros_like(seen)), of_points, room)
    _draw_legend(sheet, sorted({*classes.tolist(), *seen.tolist()}), [*written])
    return sheet.finished()


def _marks(
    places: NDArray[np.float64], classes: NDArray[np.intp], domains: NDArray[np.intp]
) -> list[_Mark]:
    columns = *places.T.tolist(), classes.tolist(), domains.tolist()
    return [_Mark(*values) for values in zip(*columns, strict=True)]


def _draw_frame(sheet: Sheet, plane: Plane) -> NDArray[np.float64]:
    """Draw the frame of the chart; return its upper left and lower right corner, (2, 2)."""
    left, top, bottom = MARGIN, _TOP, sheet.height - _BELOW
    right = sheet.width - 2 * MARGIN - _LEGEND
    sheet.line([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])
    across, up = plane.shares
    note = f"across: {across:.0%} of the variance, up: {up:.0%}; both at the same scale"
    sheet.text(left, bottom + 20, note, _TEXT, FAINT)
    return np.array([[left, top], [right, bottom]], np.float64)


def _fitted(places: NDArray[np.float64], room: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale `places` (N, 2) to the largest size that fits, with equal scale on both axes."""
    low, high = places.min(axis=0), places.max(axis=0)
    free = room[1] - room[0] - 2 * _EDGE
    scale = (free / np.maximum(high - low, 1e-9)).min()
    return room.mean(axis=0) + (places - (low + high) / 2) * (scale, -scale)


def _draw_points(sheet: Sheet, points: Sequence[_Mark]) -> None:
    for x, y, train_id, domain in points:
        symbol = SYMBOLS[domain % len(SYMBOLS)]
        draw_symbol(sheet, symbol, (x, y), _POINT, _color(train_id), (_WHITE, 1))


def _draw_slots(
    sheet: Sheet,
    slots: Sequence[_Mark],
    points: NDArray[np.float64],
    room: NDArray[np.float64],
) -> None:
    names = [slot_name(slot.train_id) for slot in slots]
    sizes = np.array([(font(_TEXT).getlength(name) + 6, _TEXT + 4) for name in names])
    places = np.array([(slot.x, slot.y) for slot in slots])
    centres = place_names(places, _SLOT + 2, sizes, points, room).tolist()
    for slot, (x, y) in zip(slots, centres, strict=True):
        sheet.line([(slot.x, slot.y), (x, y)], INK)
    for slot in slots:
        draw_symbol(sheet, SYMBOLS[0], (slot.x, slot.y), _SLOT, _color(slot.train_id), (INK, 2))
    for name, (x, y), (width, height) in zip(names, centres, (sizes / 2).tolist(), strict=True):
        sheet.rectangle(x - width, y - height, x + width, y + height, _WHITE, 4)
        sheet.text(x, y, name, _TEXT, anchor="mm")


def _draw_legend(sheet: Sheet, classes: Sequence[int], domains: Sequence[str]) -> None:
    x, y, room = sheet.width - MARGIN - _LEGEND, _TOP + 8, _LEGEND - 20
    draw_symbol(sheet, SYMBOLS[0], (x, y), _SLOT, _WHITE, (INK, 2))
    sheet.text(x + 20, y, "slot of the memory", _TEXT, room=room)
    for number, domain in enumerate(domains):
        y += _ROW
        draw_symbol(sheet, SYMBOLS[number % len(SYMBOLS)], (x, y), _POINT, FAINT, _BARE)
        sheet.text(x + 20, y, domain, _TEXT, room=room)
    y += _ROW
    for train_id in classes:
        y += _ROW
        draw_symbol(sheet, SYMBOLS[1], (x, y), _SWATCH, _color(train_id), _BARE)
        sheet.text(x + 20, y, slot_name(train_id), _TEXT, room=room)


def _color(train_id: int) -> Color:
    red, green, blue = COLOR_TABLE[train_id].tolist()
    return red, green, blue


_WIDTH = 1160
"""Width of a sheet in pixels; it fits on a page."""
# ColorBrewer's YlOrRd. A black line is visible on all of its colours.
_HEAT: tuple[Color, ...] = (
    (255, 255, 178),
    (254, 204, 92),
    (253, 141, 60),
    (240, 59, 32),
    (189, 0, 38),
)
_LEAST_RANGE = 1e-4
"""Smallest range of weights that a heat map resolves, so that it does not amplify rounding."""
_SCALE = 160
"""Width of the colour bar in pixels."""


def plot_reading(readings: Sequence[Reading]) -> NDArray[np.uint8]:
    """Return an RGB sheet of image, truth, prediction and the slot that each pixel reads most.

    Args:
        readings: Readings, at least one.
    """
    names = ["image", "truth", "prediction", "slot read most"]
    tile = _WIDTH // len(names) - GAP
    rows, seen = [caption(names, tile)], set[int]()
    for reading in readings:
        classes = [reading.truth, reading.prediction, reading.most_read]
        rows.append(heading(reading.id, _rightness(reading), rows[0].shape[1]))
        rows.append(beside([reading.image, *map(colorize, classes)], tile))
        seen |= {*np.unique(classes).tolist()}
    return stacked([*rows, legend(seen, rows[0].shape[1])])


def _rightness(reading: Reading) -> str:
    if not reading.labelled:
        return "no pixel is labelled"
    return f"own slot read most: {reading.right / reading.labelled:.1%} of the labelled pixels"


def commonest_classes(readings: Sequence[Reading], count: int) -> list[int]:
    """Return up to `count` most frequent trainIds in the truth of all readings, descending."""
    counts = [np.bincount(reading.truth.ravel(), minlength=256) for reading in readings]
    pixels = np.sum(counts, axis=0)[: len(CLASSES)]
    return [int(k) for k in np.argsort(-pixels, kind="stable")[:count] if pixels[k]]


def plot_weights(readings: Sequence[Reading], train_ids: Sequence[int]) -> NDArray[np.uint8]:
    """Return an RGB sheet of heat maps of the read weights of some slots.

    The weights of a network differ little, so the colours of each map span its own range, which is
    printed below it. A black line surrounds the class in the ground truth.

    Args:
        readings: Readings, at least one.
        train_ids: TrainIds of the slots.
    """
    rows = []
    tile = _WIDTH // (1 + len(train_ids)) - GAP
    for reading in readings:
        weights = {train_id: reading.weight_of(train_id) for train_id in train_ids}
        maps = [_heat(weight, reading.truth == k, tile) for k, weight in weights.items()]
        rows.append(beside([reading.image, *maps], tile))
        ranges = [f"{slot_name(k)}: {w.min():.3f} to {w.max():.3f}" for k, w in weights.items()]
        rows.append(caption([reading.id, *ranges], tile))
    return stacked([*rows, _key(rows[0].shape[1])])


def _heat(weight: NDArray[np.float32], mask: NDArray[np.bool_], width: int) -> NDArray[np.uint8]:
    """Return a heat map with a line around a mask that stays visible at a width of `width`."""
    low, high = weight.min(), weight.max()
    picture = ramp((weight - low) / max(high - low, _LEAST_RANGE), _HEAT)
    picture[_outline(mask, ceil(mask.shape[1] / width))] = 0
    return picture


def _outline(mask: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """Return the pixels of a mask (H, W) that are close to a pixel outside of it."""
    picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    return mask & (np.asarray(picture.filter(ImageFilter.BoxBlur(thickness))) < 255)


def _key(width: int) -> NDArray[np.uint8]:
    """Return a row with the colour bar of the heat maps."""
    sheet = Sheet(width, 36)
    left = sheet.text(0, 18, "smallest weight of a map", 13, FAINT)
    for step, (red, green, blue) in enumerate(ramp(np.linspace(0, 1, _SCALE), _HEAT).tolist()):
        sheet.rectangle(left + 10 + step, 12, left + 11 + step, 24, (red, green, blue))
    sheet.text(left + _SCALE + 20, 18, "largest", 13, FAINT)
    return sheet.finished()


SAMPLES_PER_DOMAIN = 4
"""Default number of images per target."""
_MAPS = 4
"""Number of slots per target whose read weights are shown."""
_COSINE_CAPTION = "Cosine similarity between the slots of the memory."
_PROJECTION = (
    "Slots and class features of images, projected by PCA. A point is the mean of "
    "u = normalise(ReLU(F + BN(Conv(F)))) over a class in an image, which is what the image alone "
    "would write into the memory. Slots are means of u, too, so both can be compared. Distant "
    "points differ; close points may differ in other directions."
)


def pictures(
    predictor: Predictor,
    targets: Sequence[Target],
    *,
    samples_per_domain: int = SAMPLES_PER_DOMAIN,
    predictions: Mapping[str, Mapping[str, NDArray[np.uint8]]] | None = None,
    on_event: Listener = ignore,
) -> dict[str, NDArray[np.uint8]]:
    """Return RGB pictures of a network's memory by caption; {} for a network without memory.

    The pictures are the cosines of the slots, the projection of slots and class features, and two
    sheets per target of what its images read. With several processes, each renders all pictures.

    Args:
        predictor: Predictor of the network.
        targets: Targets, at least one.
        samples_per_domain: Number of images per target, evenly spaced.
        predictions: Available predictions, (H, W) trainIds, by target and sample id.
        on_event: Callback for progress events.

    Raises:
        DataError: A file cannot be read.
    """
    memory = predictor.segmenter.memory
    if memory is None:
        return {}
    sheets: dict[str, NDArray[np.uint8]] = {}
    written = {}
    for target in targets:
        known = (predictions or {}).get(target.name, {})
        readings = _read(predictor, target, samples_per_domain, known, on_event)
        sheets |= _sheets(target.name, readings)
        written[target.name] = np.stack([reading.written for reading in readings])
    slots = memory.slots.float().cpu().numpy()
    plots = {_COSINE_CAPTION: plot_memory(slots, "Cosines of the slots")}
    if np.count_nonzero(slots.any(axis=1)) >= 2:
        plots[_PROJECTION] = plot_projection(written, slots, "Slots and class features")
    return plots | sheets


def _read(
    predictor: Predictor,
    target: Target,
    count: int,
    predictions: Mapping[str, NDArray[np.uint8]],
    on_event: Listener,
) -> list[Reading]:
    samples, readings = spread(target.samples, count), []
    for done, sample in enumerate(samples, start=1):
        readings.append(read_memory(predictor, sample, predictions.get(sample.id)))
        on_event(Progress(f"reading the memory for {target.name}", done, len(samples)))
    return readings


def _sheets(name: str, readings: Sequence[Reading]) -> dict[str, NDArray[np.uint8]]:
    most = (
        f"{name}: image, truth, prediction, and the slot that each pixel reads most, in the colour "
        f"of its class. {rightness(readings)}"
    )
    sheets = {most: plot_reading(readings)}
    if classes := commonest_classes(readings, _MAPS):
        slots = len(readings[0].weights)
        how_much = (
            f"{name}: read weights of the slots of the most frequent classes. A uniform read gives "
            f"{1 / slots:.3f} to each slot. The colours of each map range from its smallest to its "
            "largest weight. The black line surrounds the class in the truth."
        )
        sheets[how_much] = plot_weights(readings, classes)
    return sheets


def rightness(readings: Sequence[Reading]) -> str:
    """Return a sentence on how often pixels read the slot of their true class most."""
    labelled = sum(reading.labelled for reading in readings)
    if not labelled:
        return "No pixel of these images is labelled."
    read = sum(reading.right for reading in readings) / labelled
    hits = sum(
        np.count_nonzero((r.prediction == r.truth) & (r.truth != IGNORE_INDEX)) for r in readings
    )
    return (
        f"In these {len(readings)} images, {read:.1%} of the labelled pixels read the slot of "
        f"their true class most; the prediction is right in {hits / labelled:.1%}."
    )
