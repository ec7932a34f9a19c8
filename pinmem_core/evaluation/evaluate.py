"""Evaluate a predictor on target domains."""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.data.samples import Sample
from pinmem_core.distributed import all_gather, rank, world_size
from pinmem_core.errors import DataError
from pinmem_core.evaluation.metrics import Calibration, ConfusionMatrix
from pinmem_core.evaluation.results import DomainResult, ImageResult
from pinmem_core.evaluation.scored_classes import SAME_CLASSES, ScoredClasses
from pinmem_core.evaluation.targets import Target
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.inference import Predictor, Protocol, TiledPredictor
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.parallel import parallel_map
from pinmem_core.visualize import caption, colorize, overlay, side_by_side, stacked

T = TypeVar("T")

_AHEAD = 4
"""Number of prefetched images: enough for a fast GPU, few enough for large photos."""
_EXAMPLE_WIDTH = 400
"""Maximum width of an example image in pixels."""
_TILE_WIDTH = 384
"""Width of a column of a comparison in pixels."""


class Labelled(NamedTuple):
    """A sample after the protocol's view is applied.

    Attributes:
        id: Id of the sample.
        image: RGB image, (H, W, 3).
        truth: TrainIds, (H, W); 255 is ignored.
    """

    id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]


def read_shard(
    samples: Sequence[Sample], protocol: Protocol, *, on_event: Listener, task: str
) -> Generator[Labelled, None, None]:
    """Yield this process's shard of the samples; `gather_in_order` collects the results.

    Args:
        samples: Samples of all processes.
        protocol: Protocol whose view is applied.
        on_event: Callback for progress events, one per sample when the next is requested.
        task: Name of the task in progress events.

    Raises:
        DataError: A file cannot be read, or the sizes of a label and its image differ.
    """

    def read(sample: Sample) -> Labelled:
        return Labelled(sample.id, *protocol.view_of(*sample.read()))

    mine = samples[rank() :: world_size()]
    with closing(parallel_map(read, mine, _AHEAD, waiting=_AHEAD)) as shown:
        for done, labelled in enumerate(shown, start=1):
            yield labelled
            on_event(Progress(task, done, len(mine)))


def gather_in_order(results: Sequence[T]) -> list[T]:
    """Gather the results of all processes on every process, in the order of the samples."""
    shares = all_gather(results)
    total = sum(len(share) for share in shares)
    return [shares[number % len(shares)][number // len(shares)] for number in range(total)]


@dataclass(frozen=True, eq=False)
class Example:
    """One image in reduced size.

    Attributes:
        id: Id of the sample.
        miou: mIoU of the image over the classes that occur in it, in 0..1.
        image: RGB image, (H, W, 3).
        truth: Overlay of the true classes, (H, W, 3) RGB.
        prediction: Overlay of the predicted classes, (H, W, 3) RGB.
    """

    id: str
    miou: float
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


@dataclass(frozen=True)
class Examples:
    """Worst and best examples, without duplicates.

    Attributes:
        worst: Examples with the lowest mIoU, ascending.
        best: Examples with the highest mIoU, descending.
    """

    worst: tuple[Example, ...] = ()
    best: tuple[Example, ...] = ()


class Gallery:
    """Collect examples and predictions for a report while a target is evaluated.

    The collection avoids a second prediction. It keeps only a few reduced examples and the
    predictions of the named samples in memory.

    Args:
        count: Maximum number of worst examples, and of best examples.
        named: Ids of the samples whose predictions are kept.
        space: Label space of the trainIds.

    Attributes:
        predictions: Predicted trainIds, (H, W), of the named samples, by id.
    """

    def __init__(
        self, count: int, named: Collection[str] = (), space: LabelSpace = CITYSCAPES
    ) -> None:
        self.predictions: dict[str, NDArray[np.uint8]] = {}
        self._space = space
        self._count, self._named, self._added = count, frozenset(named), 0
        self._worst: dict[tuple[float, int], Example] = {}
        self._best: dict[tuple[float, int], Example] = {}

    def add(self, labelled: Labelled, prediction: NDArray[np.uint8], miou: float) -> None:
        """Add an image; an image without labelled pixels is never an example.

        Args:
            labelled: Image with its label.
            prediction: Predicted trainIds, (H, W).
            miou: mIoU of the image in 0..1; NaN without labelled pixels.
        """
        if labelled.id in self._named:
            self.predictions[labelled.id] = prediction
        if np.isnan(miou):
            return
        self._added += 1
        example = None
        orders = (miou, self._added), (-miou, -self._added)
        for kept, key in zip((self._worst, self._best), orders, strict=True):
            if len(kept) < self._count or key < max(kept):
                example = example or _example(labelled, prediction, miou, self._space)
                kept[key] = example
                if len(kept) > self._count:
                    del kept[max(kept)]

    def examples(self) -> Examples:
        """Return the examples among all added images."""
        worst, best = (tuple(kept[r] for r in sorted(kept)) for kept in (self._worst, self._best))
        shown = {example.id for example in worst}
        return Examples(worst, tuple(example for example in best if example.id not in shown))


def _example(
    labelled: Labelled, prediction: NDArray[np.uint8], miou: float, space: LabelSpace
) -> Example:
    height, width = labelled.truth.shape
    scale = min(1, _EXAMPLE_WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(labelled.image).resize(size, Image.Resampling.BICUBIC))
    truth, predicted = (
        overlay(
            small, np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST)), space
        )
        for ids in (labelled.truth, prediction)
    )
    return Example(labelled.id, miou, small, truth, predicted)


def confusion_matrix(
    predictor: Predictor,
    samples: Sequence[Sample],
    *,
    classes: ScoredClasses = SAME_CLASSES,
    on_event: Listener = ignore,
    task: str,
) -> ConfusionMatrix:
    """Predict every sample and count its pixels; distributed processes share the work.

    Args:
        predictor: Model and protocol.
        samples: Samples, at least one, with labels in the label space of `classes`.
        classes: Classes of the matrix.
        on_event: Callback for progress events.
        task: Name of the task in progress events.

    Raises:
        DataError: A file cannot be read, or the sizes of a label and its image differ.
    """
    matrix = ConfusionMatrix.empty(len(classes.space))
    for _, image, truth in read_shard(samples, predictor.protocol, on_event=on_event, task=task):
        matrix.add(truth, classes.predicted(predictor.predict(image)))
    return reduce(add, all_gather(matrix))


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
    results, calibration, classes = [], Calibration(), target.classes
    wanted = {"confidence": True} | ({} if classes.table is None else {"probabilities": True})
    shown = read_shard(target.samples, predictor.protocol, on_event=on_event, task=task)
    for sample in shown:
        prediction = predictor.analyze(sample.image, **wanted)
        predicted = classes.predicted(prediction.train_ids)
        matrix = ConfusionMatrix.empty(len(classes.space))
        matrix.add(sample.truth, predicted)
        results.append(ImageResult(sample.id, matrix.counts, matrix.missed))
        calibration += Calibration.of(classes.confidence(prediction), sample.truth, predicted)
        if gallery:
            gallery.add(sample, predicted, matrix.miou())
    calibration = reduce(add, all_gather(calibration))
    result = DomainResult(
        target.name,
        target.split,
        tuple(gather_in_order(results)),
        calibration,
        target.seen,
        target.trained_images,
        space=classes.space,
    )
    if not result.matrix.pixels:
        raise _unlabelled(target)
    return result


def _unlabelled(target: Target) -> DataError:
    of = f"in the {len(target.samples)} images of {target.name} (split '{target.split}')"
    hint = "Labels of test sets are often not published; evaluate another split."
    own, scored = target.labels, target.classes.space
    if own is None or own.same_as(scored):
        return DataError(f"no pixel is labelled {of}.", hint)
    return DataError(
        f"no pixel is labelled with one of the classes '{scored.name}' {of}.",
        f"{hint} The card assigns the classes '{own.name}' to them: "
        f"'label_space: maps: {scored.name}: ...'.",
    )


def comparison_sheet(
    predictors: Mapping[str, TiledPredictor],
    samples: Sequence[Sample],
    classes: ScoredClasses = SAME_CLASSES,
) -> NDArray[np.uint8]:
    """Return an RGB sheet with one row per sample: image, ground truth, and each prediction.

    Args:
        predictors: Predictors by column title.
        samples: Samples, at least one, with labels in the label space of `classes`.
        classes: Classes to show, for predictors of one label space.
    """
    rows = [caption(["image", "ground truth", *predictors], _TILE_WIDTH)]
    for sample in samples:
        image, truth = sample.read()
        predicted = (classes.predicted(each.predict(image)) for each in predictors.values())
        shown = [colorize(train_ids, classes.space) for train_ids in (truth, *predicted)]
        rows.append(side_by_side([image, *shown], _TILE_WIDTH))
    return stacked(rows)
