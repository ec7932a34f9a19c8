"""What a memory knows, as pictures: its slots, and what images read of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pinmem_core.evaluation.evaluate import Target
from pinmem_core.evaluation.memory_maps import commonest_classes, plot_reading, plot_weights
from pinmem_core.evaluation.memory_matrix import plot_memory
from pinmem_core.evaluation.memory_reading import Reading, read_memory
from pinmem_core.evaluation.memory_scatter import plot_projection
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.inference import Predictor
from pinmem_core.labels import IGNORE_INDEX
from pinmem_core.preparation.spread import spread

SAMPLES_PER_DOMAIN = 4
"""Images of a target that are looked at, unless a caller says otherwise."""
_MAPS = 4
"""Slots whose weights are shown for each target."""
_COSINES = "How alike the slots of the memory are: the cosine of each two of them."
_PROJECTION = (
    "The slots among the class features of images, in the plane where they differ most (PCA). A "
    "point is the mean of u = normalise(ReLU(F + BN(Conv(F)))) over a class in an image, which is "
    "what the image alone would write into the memory; slots are means of u, too, so both can be "
    "compared. What is far apart here differs; what is close may differ in other directions."
)


def pictures(
    predictor: Predictor,
    targets: Sequence[Target],
    *,
    samples_per_domain: int = SAMPLES_PER_DOMAIN,
    predictions: Mapping[str, Mapping[str, NDArray[np.uint8]]] | None = None,
    on_event: Listener = ignore,
) -> dict[str, NDArray[np.uint8]]:
    """Return RGB pictures of a network's memory by caption; none for a network without one.

    They are the cosines of the slots, the slots among what images would write, and two sheets a
    target of what its images read. Where several processes run, each makes all of them.

    Args:
        predictor: Of the network.
        targets: At least one.
        samples_per_domain: Images of each target that are looked at, evenly spread.
        predictions: (H, W) trainIds of images that have been predicted, by target and sample id.
        on_event: Hears of the progress.

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
    found = {_COSINES: plot_memory(slots, "Cosines of the slots")}
    if np.count_nonzero(slots.any(axis=1)) >= 2:
        found[_PROJECTION] = plot_projection(written, slots, "Slots and class features")
    return found | sheets


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
        f"{name}: the slot that each pixel reads most, in the colour of its class, beside image, "
        f"truth and prediction. {rightness(readings)}"
    )
    sheets = {most: plot_reading(readings)}
    if classes := commonest_classes(readings, _MAPS):
        slots = len(readings[0].weights)
        how_much = (
            f"{name}: how much each pixel reads of the slots of the commonest classes. An even "
            f"read gives {1 / slots:.3f} to each. Each map's colours reach from its own smallest "
            "weight to its own largest. The black line surrounds the class in the truth."
        )
        sheets[how_much] = plot_weights(readings, classes)
    return sheets


def rightness(readings: Sequence[Reading]) -> str:
    """Return a sentence on how often the slot that a pixel reads most is that of its class."""
    labelled = sum(reading.labelled for reading in readings)
    if not labelled:
        return "No pixel of these images is labelled."
    read = sum(reading.right for reading in readings) / labelled
    hits = sum(
        np.count_nonzero((r.prediction == r.truth) & (r.truth != IGNORE_INDEX)) for r in readings
    )
    return (
        f"In {read:.1%} of the labelled pixels of these {len(readings)} images it is the slot of "
        f"the true class; the prediction is right in {hits / labelled:.1%}."
    )
