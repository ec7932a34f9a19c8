"""Scoring a predictor on a domain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np

from pinmem_core.datasets import get_card
from pinmem_core.evaluation.reading import my_share
from pinmem_core.evaluation.scores import ConfusionMatrix, Scores
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.inference import Predictor
from pinmem_core.preparation import Sample, Selection, matching, select
from pinmem_core.ranks import from_all


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
    return Target(text, split, _evenly(select(selection, split), max_images))


def load_validation(
    sources: Iterable[str], max_images: int | None, on_event: Listener
) -> list[Target]:
    """Return the validation split of each source; one that has none is told and left out.

    Args:
        sources: `dataset[:domain][@split]`.
        max_images: At most so many images each, evenly spread; None for all.
        on_event: Hears of what is left out, and of scores that are not of unseen images.

    Raises:
        DataError: A source is not prepared.
    """
    targets = []
    for source in sources:
        selection = Selection.parse(source)
        if selection.split in ("all", "val"):
            on_event(Notice(f"{source} trains on the images that validate it", warning=True))
        selection = replace(selection, split="val")
        if samples := matching(selection, "val"):
            targets.append(Target(str(selection), "val", _evenly(samples, max_images)))
        else:
            on_event(Notice(f"{source} has no validation split; it is not scored", warning=True))
    return targets


def _evenly(samples: Sequence[Sample], count: int | None) -> tuple[Sample, ...]:
    if count is None or len(samples) <= count:
        return tuple(samples)
    return tuple(samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int))


def evaluate(
    predictor: Predictor, samples: Sequence[Sample], *, on_event: Listener = ignore, task: str
) -> Scores:
    """Predict every sample and score it against its label; several ranks share the work.

    Args:
        predictor: The model and its protocol.
        samples: At least one.
        on_event: Hears of the progress.
        task: What the progress is called.

    Raises:
        DataError: A file cannot be read, or a label has another size than its image.
    """
    matrix = ConfusionMatrix()
    for _, image, truth in my_share(samples, predictor.protocol, on_event=on_event, task=task):
        matrix.add(truth, predictor.predict(image))
    return Scores.of(reduce(add, from_all(matrix)), len(samples))
