"""Pictures of a memory: its slots, and what images read from them."""

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
"""Default number of images per target."""
_MAPS = 4
"""Number of slots per target whose read weights are shown."""
_COSINES = "Cosine similarity between the slots of the memory."
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
    plots = {_COSINES: plot_memory(slots, "Cosines of the slots")}
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
