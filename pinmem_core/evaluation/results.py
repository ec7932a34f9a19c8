"""Scoring a predictor on a domain, image by image, so that every figure can be taken apart."""

from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from pinmem_core.errors import DataError
from pinmem_core.evaluation.calibration import Calibration
from pinmem_core.evaluation.evaluate import Target
from pinmem_core.evaluation.examples import Gallery
from pinmem_core.evaluation.reading import in_order, my_share
from pinmem_core.evaluation.scores import ConfusionMatrix, Scores
from pinmem_core.events import Listener, ignore
from pinmem_core.inference import Predictor
from pinmem_core.labels import CLASS_NAMES
from pinmem_core.ranks import from_all


@dataclass(frozen=True, eq=False)
class ImageResult:
    """The pixel counts of one image, as `ConfusionMatrix` has them.

    Attributes:
        id: Of the sample.
        counts: (19, 19) int64.
        missed: (19,) int64.
    """

    id: str
    counts: NDArray[np.int64]
    missed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(CLASS_NAMES), np.int64))

    @property
    def matrix(self) -> ConfusionMatrix:
        """What scores are read off."""
        return ConfusionMatrix(self.counts, self.missed)


@dataclass(frozen=True, eq=False)
class DomainResult:
    """What came of one target.

    Attributes:
        name: Of the target.
        split: Which split was scored, or "all".
        images: In the order of the target's samples.
        calibration: Of all images.
        seen: Whether the domain was trained on; None where that is not known.
        trained_images: How many of the images were trained on; None where that is not known.
    """

    name: str
    split: str
    images: tuple[ImageResult, ...]
    calibration: Calibration
    seen: bool | None = None
    trained_images: int | None = None

    @cached_property
    def matrix(self) -> ConfusionMatrix:
        """The counts of all images."""
        return reduce(add, (image.matrix for image in self.images), ConfusionMatrix())

    @cached_property
    def scores(self) -> Scores:
        """The scores of all images together."""
        return Scores.of(self.matrix, len(self.images))


def evaluate_domain(
    predictor: Predictor,
    target: Target,
    *,
    gallery: Gallery | None = None,
    on_event: Listener = ignore,
    task: str,
) -> DomainResult:
    """Predict every image of a target once; several ranks share the work and get the same result.

    Args:
        predictor: The model and its protocol.
        target: What to score on.
        gallery: Keeps what pictures need of the images that this rank scores.
        on_event: Hears of the progress.
        task: What the progress is called.

    Raises:
        DataError: A file cannot be read, a label has another size than its image, or no pixel of
            the target is labelled.
    """
    results, calibration = [], Calibration()
    shown = my_share(target.samples, predictor.protocol, on_event=on_event, task=task)
    for sample in shown:
        found = predictor.analyze(sample.image, confidence=True)
        assert found.confidence is not None
        matrix = ConfusionMatrix()
        matrix.add(sample.truth, found.train_ids)
        results.append(ImageResult(sample.id, matrix.counts, matrix.missed))
        calibration += Calibration.of(found.confidence, sample.truth, found.train_ids)
        if gallery:
            gallery.add(sample, found.train_ids, matrix.miou())
    calibration = reduce(add, from_all(calibration))
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
        "Labels of test sets are often kept back: score on another split, such as '@val'.",
    )
