"""Analyze the memory: its slots, and what images read from it and write to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import ceil
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from pinmem_core.data.samples import Sample, evenly_spaced
from pinmem_core.data.transforms import normalize
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation.plots import plot_cosines, plot_projection
from pinmem_core.evaluation.scored_classes import SAME_CLASSES, ScoredClasses
from pinmem_core.evaluation.targets import Target
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.inference import Predictor
from pinmem_core.label_space import IGNORE_INDEX, Color
from pinmem_core.models.decoders.base import resize
from pinmem_core.models.memory import CategoricalMemory
from pinmem_core.visualize import (
    GAP,
    caption,
    color_bar,
    color_ramp,
    colorize,
    heading,
    legend,
    side_by_side,
    stacked,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw: TypeAlias = "Callable[..., Figure]"
"""Function that returns a plot; its argument `theme` sets the colours."""
Picture: TypeAlias = "NDArray[np.uint8] | Draw"
"""RGB image (H, W, 3), or a plot."""
SAMPLES_PER_DOMAIN = 4
"""Default number of images per target."""
MAX_PIXELS = 2**21
"""Pixels to which larger images are reduced: those of Cityscapes."""
_MAPS = 4
"""Number of slots per target whose read weights are shown."""
_COSINE_CAPTION = "Cosine similarity between the slots of the memory."
_PROJECTION = (
    "Slots and class features of images, projected by PCA. A point is the mean of "
    "u = normalise(ReLU(F + BN(Conv(F)))) over a class in an image, which is what the image alone "
    "would write into the memory. Slots are means of u, too, so both can be compared. Distant "
    "points differ; close points may differ in other directions."
)
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


@dataclass(frozen=True, eq=False)
class Reading:
    """An image with its classes, its read weights and its written slots.

    Attributes:
        id: Id of the sample.
        image: RGB image, (H, W, 3).
        truth: TrainIds in the label space of `classes`, (H, W); 255 is ignored.
        prediction: Predicted trainIds in that label space, (H, W).
        weights: Read weight of each slot at each position of the feature, (K, h, w); weights of a
            position sum to 1.
        written: Slots after writing only this image into an empty memory, (K, D): the mean u of
            each class, of unit length; zeros for a class with fewer pixels than a feature position
            covers; only zeros if the network has other classes than the truth.
        classes: Classes of the truth.
    """

    id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    weights: NDArray[np.float32]
    written: NDArray[np.float32]
    classes: ScoredClasses = SAME_CLASSES

    def weight_of(self, train_id: int) -> NDArray[np.float32]:
        """Return the read weight of the slots of a class at each pixel, (H, W), in 0..1."""
        slots = self.weights[self.classes.members(train_id)]
        return self._at_pixels(slots.sum(axis=0, keepdims=True))[0].numpy()

    @cached_property
    def most_read(self) -> NDArray[np.uint8]:
        """Class of the slot with the largest read weight at each pixel, (H, W)."""
        slots = self._at_pixels(self.weights).argmax(dim=0).to(torch.uint8).numpy()
        return self.classes.predicted(slots)

    @property
    def labelled(self) -> int:
        """Number of labelled pixels."""
        return int((self.truth != IGNORE_INDEX).sum())

    @property
    def right(self) -> int:
        """Number of labelled pixels that read a slot of their true class most."""
        return int(((self.most_read == self.truth) & (self.truth != IGNORE_INDEX)).sum())

    def _at_pixels(self, weights: NDArray[np.float32]) -> Tensor:
        return resize(torch.from_numpy(weights)[None], self.truth.shape)[0]


@torch.inference_mode()
def read_memory(
    predictor: Predictor,
    sample: Sample,
    prediction: NDArray[np.uint8] | None = None,
    *,
    classes: ScoredClasses = SAME_CLASSES,
    max_pixels: int = MAX_PIXELS,
) -> Reading:
    """Return the read weights and written slots of the memory for a whole sample.

    Image, truth and prediction follow the protocol's view.

    Args:
        predictor: Predictor of a network with memory.
        sample: Sample to analyze, with a label in the label space of `classes`.
        prediction: TrainIds in that label space, (H, W), predicted before; None to predict the
            sample.
        classes: Classes of the truth.
        max_pixels: Number of pixels to which a larger image is reduced after the prediction; the
            default is the size of Cityscapes images.

    Raises:
        ConfigError: The network has no memory.
        DataError: A file cannot be read.
    """
    segmenter, memory = predictor.segmenter, predictor.segmenter.memory
    if memory is None:
        raise ConfigError("the network has no memory.", "Load one that was trained with a memory.")
    image, truth = predictor.protocol.view_of(*sample.read())
    if prediction is None:
        prediction = classes.predicted(predictor.predict(image))
    prediction = reduced(prediction, max_pixels, Image.Resampling.NEAREST)
    image = reduced(image, max_pixels, Image.Resampling.BICUBIC)
    truth = reduced(truth, max_pixels, Image.Resampling.NEAREST)
    seen = torch.tensor(image, device=predictor.device).permute(2, 0, 1)[None]
    feature = segmenter.encode(normalize(seen, segmenter.normalization)).feature
    weights = memory.attention(feature, memory.slots).weights[0]
    own = truth if classes.table is None else np.full_like(truth, IGNORE_INDEX)
    written = _written(memory, feature, own, segmenter.config.output_stride**2)
    return Reading(sample.id, image, truth, prediction, _array(weights), _array(written), classes)


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


def reduced(pixels: NDArray[np.uint8], max_pixels: int, how: Image.Resampling) -> NDArray[np.uint8]:
    """Return a picture of at most `max_pixels` with the same aspect ratio.

    Args:
        pixels: Picture, (H, W) or (H, W, 3).
        max_pixels: Maximum number of pixels.
        how: Method of Pillow.
    """
    height, width = pixels.shape[:2]
    if height * width <= max_pixels:
        return pixels
    scale = (max_pixels / (height * width)) ** 0.5
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


def reading_sheet(readings: Sequence[Reading]) -> NDArray[np.uint8]:
    """Return an RGB sheet of image, truth, prediction and the slot that each pixel reads most.

    Args:
        readings: Readings of one target, at least one.
    """
    space = readings[0].classes.space
    names = ["image", "truth", "prediction", "slot read most"]
    tile = _WIDTH // len(names) - GAP
    rows, seen = [caption(names, tile)], set[int]()
    for reading in readings:
        classes = [reading.truth, reading.prediction, reading.most_read]
        rows.append(heading(reading.id, _rightness(reading), rows[0].shape[1]))
        shown = [colorize(train_ids, space) for train_ids in classes]
        rows.append(side_by_side([reading.image, *shown], tile))
        seen |= {*np.unique(classes).tolist()}
    return stacked([*rows, legend(seen, rows[0].shape[1], space)])


def _rightness(reading: Reading) -> str:
    if not reading.labelled:
        return "no pixel is labelled"
    return f"own slot read most: {reading.right / reading.labelled:.1%} of the labelled pixels"


def frequent_classes(readings: Sequence[Reading], count: int) -> list[int]:
    """Return up to `count` most frequent trainIds in the truth of all readings, descending."""
    counts = [np.bincount(reading.truth.ravel(), minlength=256) for reading in readings]
    pixels = np.sum(counts, axis=0)[: len(readings[0].classes.space)]
    return [int(k) for k in np.argsort(-pixels, kind="stable")[:count] if pixels[k]]


def weight_sheet(readings: Sequence[Reading], train_ids: Sequence[int]) -> NDArray[np.uint8]:
    """Return an RGB sheet of heat maps of the read weights of the slots of some classes.

    The weights of a network differ little, so the colours of each map span its own range, which is
    printed below it. A black line surrounds the class in the ground truth.

    Args:
        readings: Readings of one target, at least one.
        train_ids: TrainIds of the classes.
    """
    rows = []
    tile = _WIDTH // (1 + len(train_ids)) - GAP
    for reading in readings:
        weights = {train_id: reading.weight_of(train_id) for train_id in train_ids}
        maps = [_heat(weight, reading.truth == k, tile) for k, weight in weights.items()]
        rows.append(side_by_side([reading.image, *maps], tile))
        names = reading.classes.space.names
        ranges = [f"{names[k]}: {w.min():.3f} to {w.max():.3f}" for k, w in weights.items()]
        rows.append(caption([reading.id, *ranges], tile))
    labels = "smallest weight of a map", "largest"
    return stacked([*rows, color_bar(_HEAT, labels, rows[0].shape[1])])


def _heat(weight: NDArray[np.float32], mask: NDArray[np.bool_], width: int) -> NDArray[np.uint8]:
    """Return a heat map with a line around a mask that stays visible at a width of `width`."""
    low, high = weight.min(), weight.max()
    picture = color_ramp((weight - low) / max(high - low, _LEAST_RANGE), _HEAT)
    picture[_outline(mask, ceil(mask.shape[1] / width))] = 0
    return picture


def _outline(mask: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """Return the pixels of a mask (H, W) that are close to a pixel outside of it."""
    picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
    return mask & (np.asarray(picture.filter(ImageFilter.BoxBlur(thickness))) < 255)


def memory_pictures(
    predictor: Predictor,
    targets: Sequence[Target],
    *,
    samples_per_domain: int = SAMPLES_PER_DOMAIN,
    predictions: Mapping[str, Mapping[str, NDArray[np.uint8]]] | None = None,
    on_event: Listener = ignore,
) -> dict[str, Picture]:
    """Return pictures of a network's memory by caption; {} for a network without memory.

    The pictures are plots of the cosines of the slots and of the projection of slots and class
    features (without targets that are scored in other classes than the network's), and two RGB
    sheets (H, W, 3) per target of what its images read. With several processes, each renders all
    pictures.

    Args:
        predictor: Predictor of the network.
        targets: Targets, at least one.
        samples_per_domain: Number of images per target, evenly spaced.
        predictions: Available predictions, (H, W) trainIds, by target and sample id.
        on_event: Callback for progress events.

    Raises:
        DataError: A file cannot be read.
    """
    memory, space = predictor.segmenter.memory, predictor.segmenter.label_space
    if memory is None:
        return {}
    sheets: dict[str, Picture] = {}
    written = {}
    for target in targets:
        known = (predictions or {}).get(target.name, {})
        readings = _read(predictor, target, samples_per_domain, known, on_event)
        sheets |= _sheets(target.name, readings)
        if target.classes.table is None:
            written[target.name] = np.stack([reading.written for reading in readings])
    slots = memory.slots.float().cpu().numpy()
    plots: dict[str, Picture] = {
        _COSINE_CAPTION: partial(plot_cosines, slots, "Cosines of the slots", space)
    }
    if written and np.count_nonzero(slots.any(axis=1)) >= 2:
        drawn = written, slots, "Slots and class features", space
        plots[_PROJECTION] = partial(plot_projection, *drawn)
    return plots | sheets


def _read(
    predictor: Predictor,
    target: Target,
    count: int,
    predictions: Mapping[str, NDArray[np.uint8]],
    on_event: Listener,
) -> list[Reading]:
    samples, readings = evenly_spaced(target.samples, count), []
    for done, sample in enumerate(samples, start=1):
        known = predictions.get(sample.id)
        readings.append(read_memory(predictor, sample, known, classes=target.classes))
        on_event(Progress(f"reading the memory for {target.name}", done, len(samples)))
    return readings


def _sheets(name: str, readings: Sequence[Reading]) -> dict[str, NDArray[np.uint8]]:
    most = (
        f"{name}: image, truth, prediction, and the slot that each pixel reads most, in the colour "
        f"of its class. {reading_summary(readings)}"
    )
    sheets = {most: reading_sheet(readings)}
    if classes := frequent_classes(readings, _MAPS):
        slots = len(readings[0].weights)
        how_much = (
            f"{name}: read weights of the slots of the most frequent classes. A uniform read gives "
            f"{1 / slots:.3f} to each slot. The colours of each map range from its smallest to its "
            "largest weight. The black line surrounds the class in the truth."
        )
        sheets[how_much] = weight_sheet(readings, classes)
    return sheets


def reading_summary(readings: Sequence[Reading]) -> str:
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
