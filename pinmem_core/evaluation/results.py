"""Evaluate a predictor on a domain, with the counts of every image."""

from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from pinmem_core.distributed import all_gather
from pinmem_core.errors import DataError
from pinmem_core.evaluation.calibration import Calibration
from pinmem_core.evaluation.evaluate import Target
from pinmem_core.evaluation.examples import Gallery
from pinmem_core.evaluation.reading import in_order, my_share
from pinmem_core.evaluation.scores import ConfusionMatrix, Scores
from pinmem_core.events import Listener, ignore
from pinmem_core.inference import Predictor
from pinmem_core.labels import CLASS_NAMES


@dataclass(frozen=True, eq=False)
class ImageResult:
    """Pixel counts of one image, as in `ConfusionMatrix`.

    Attributes:
        id: Id of the sample.
        counts: Confusion matrix, (19, 19) int64.
        missed: Pixels predicted as no class, by true class, (19,) int64.
    """

    id: str
    counts: NDArray[np.int64]
    missed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CLASS_NAMES), np.int64))

    @property
    def matrix(self) -> ConfusionMatrix:
        """Confusion matrix of the image."""
        return ConfusionMatrix(self.counts, self.missed)


@dataclass(frozen=True, eq=False)
class DomainResult:
    """Results of one target.

    Attributes:
        name: Name of the target.
        split: Evaluated split, or "all".
        images: Results of the images, in the order of the target's samples.
        calibration: Calibration counts of all images.
        seen: Whether the network was trained on the domain; None if unknown.
        trained_images: Number of images that the network was trained on; None if unknown.
    """

    name: str
    split: str
    images: tuple[ImageResult, ...]
    calibration: Calibration
    seen: bool | None = None
    trained_images: int | None = None

    @cached_property
    def matrix(self) -> ConfusionMatrix:
        """Confusion matrix of all images."""
        return reduce(add, (image.matrix for image in self.images), ConfusionMatrix())

    @cached_property
    def scores(self) -> Scores:
        """Scores of all images together."""
        return Scores.of(self.matrix, len(self.images))


def evaluate_domain(
    predictor: Predictor,
    target: Target,
    *,
    gallery: Gallery | None = None,
    on_event: Listener = ignore,
    task: str,
) -> DomainResult:
    """Predict and score every image of a target once.

    Distributed processes share the work and return the same result.

    Args:
        predictor: Model and protocol.
        target: Target to evaluate.
        gallery: Collector of example images among those of this process.
        on_event: Callback for progress events.
        task: Name of the task in progress events.

    Raises:
        DataError: A file cannot be read, the sizes of a label and its image differ, or no pixel of
            the target is labelled.
    """
    results, calibration = [], Calibration()
    shown = my_share(target.samples, predictor.protocol, on_event=on_event, task=task)
    for sample in shown:
        prediction = predictor.analyze(sample.image, confidence=True)
        assert prediction.confidence is not None
        matrix = ConfusionMatrix()
        matrix.add(sample.truth, prediction.train_ids)
        results.append(ImageResult(sample.id, matrix.counts, matrix.missed))
        calibration += Calibration.of(prediction.confidence, sample.truth, prediction.train_ids)
        if gallery:
            gallery.add(sample, prediction.train_ids, matrix.miou())
    calibration = reduce(add, all_gather(calibration))
    result = DomainResult(
        target.name,
        target.split,
        tuple(in_order(results)),
        calibration,
        target.seen,
        target.trained_images,
    )
    if not result.matrix.pixels:
        raise _unlabelled(target)
    return result


def _unlabelled(target: Target) -> DataError:
    return DataError(
        f"no pixel is labelled in the {len(target.samples)} images of {target.name} (split "
        f"'{target.split}').",
        "Labels of test sets are often not published; evaluate another split, such as '@val'.",
    )
