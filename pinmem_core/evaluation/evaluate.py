"""Scoring a predictor on a domain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pinmem_core.datasets import get_card
from pinmem_core.evaluation.scores import ConfusionMatrix, Scores
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.inference import Predictor
from pinmem_core.preparation import Sample, Selection, select


@dataclass(frozen=True)
class Target:
    """A domain to score on.

    Attributes:
        name: As the user wrote it.
        split: Which split is scored, or "all".
        samples: The images and labels.
    """

    name: str
    split: str
    samples: tuple[Sample, ...]


def load_target(text: str, trained_on: Iterable[str], max_images: int | None = None) -> Target:
    """Return the samples that `dataset[:domain][@split]` means as a target.

    Without a split, the card decides; but a domain that was trained on is scored on its
    validation split only.

    Args:
        text: The target.
        trained_on: Sources of the model that is scored.
        max_images: At most so many images, evenly spread; None for all.

    Raises:
        ConfigError: The dataset, domain or split does not exist.
        DataError: The dataset is not prepared, or the target holds no samples.
    """
    selection = Selection.parse(text)
    seen = any(Selection.parse(source).covers(selection) for source in trained_on)
    split = selection.split or ("val" if seen else get_card(selection.dataset).evaluate)
    samples = select(selection, split)
    if max_images and len(samples) > max_images:
        chosen = np.linspace(0, len(samples) - 1, max_images).round().astype(int)
        samples = [samples[i] for i in chosen]
    return Target(text, split, tuple(samples))


def evaluate(
    predictor: Predictor, samples: Sequence[Sample], *, on_event: Listener = ignore, task: str
) -> Scores:
    """Predict every sample and score it against its label.

    Args:
        predictor: The model and its protocol.
        samples: At least one.
        on_event: Hears of the progress.
        task: What the progress is called.

    Raises:
        DataError: A file cannot be read, or a label has another size than its image.
    """
    matrix = ConfusionMatrix()
    for done, sample in enumerate(samples, start=1):
        image, truth = sample.read()
        matrix.add(truth, predictor.predict(image))
        on_event(Progress(task, done, len(samples)))
    return Scores.of(matrix, len(samples))
