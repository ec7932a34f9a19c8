"""Scoring a predictor on a domain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np

from pinmem_core.datasets import get_card
from pinmem_core.evaluation.reading import my_share
from pinmem_core.evaluation.scores import ConfusionMatrix, Scores
from pinmem_core.evaluation.trained_on import TrainedOn
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.inference import Predictor
from pinmem_core.preparation import PreparedDataset, Sample, Samples, Selection, matching, select
from pinmem_core.ranks import from_all


@dataclass(frozen=True)
class Target:
    """A domain to score on.

    Attributes:
        name: As the user wrote it.
        split: Which split is scored, or "all".
        samples: The images and labels.
        seen: Whether any image is of a domain that was trained on; None where that is not known.
        trained_images: How many of the images were trained on; None where that is not known.
    """

    name: str
    split: str
    samples: Sequence[Sample]
    seen: bool | None = None
    trained_images: int | None = None

    def warning(self) -> str | None:
        """Return what a reader of the scores must know about images that are not unseen."""
        if self.seen is None:
            return f"it is not known whether the network was trained on {self.name}"
        if self.trained_images:
            images = f"{self.trained_images:,} of the {len(self.samples):,} images"
            return (
                f"the network was trained on {images} of {self.name}: its scores are of seen data"
            )
        if self.seen:
            return f"the network was trained on other images of {self.name}: the domain is seen"
        return None


def load_target(
    text: str, trained_on: TrainedOn | None = None, max_images: int | None = None
) -> Target:
    """Return the samples that `dataset[:domain][@split]` means as a target.

    Without a split, a domain that was trained on is scored on its validation split. Of any other
    domain the card decides; where it does not, the validation split that the data come with is
    scored, and otherwise the whole domain: what `prepare` holds out of it was held out of nothing.

    Args:
        text: The target.
        trained_on: The images that the network was trained on; None where they are not known.
        max_images: At most so many images, evenly spread; None for all.

    Raises:
        ConfigError: The dataset, domain or split does not exist.
        DataError: The dataset is not prepared, or the target holds no samples.
    """
    selection = Selection.parse(text)
    dataset, trained_on = selection.dataset, trained_on or TrainedOn()
    split = selection.split
    if split is None:
        seen = trained_on.has_seen(dataset, matching(selection, "all"))
        split = "val" if seen else _split_of_unseen(selection)
    samples = _evenly(select(selection, split), max_images)
    seen = trained_on.has_seen(dataset, samples)
    return Target(text, split, samples, seen, trained_on.count(dataset, samples))


def _split_of_unseen(selection: Selection) -> str:
    """Return the split that is scored by default where none of a domain was trained on."""
    card = get_card(selection.dataset)
    if card.evaluate:
        return card.evaluate
    layout = PreparedDataset.open(selection.dataset).summary.get("layout")
    layouts = [known for known in card.layouts if known.name == layout] or card.layouts
    published = bool(card.split_lists) or any(known.split for known in layouts)
    return "val" if published and matching(selection, "val") else "all"


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
            targets.append(Target(str(selection), "val", _evenly(samples, max_images), seen=True))
        else:
            on_event(Notice(f"{source} has no validation split; it is not scored", warning=True))
    return targets


def _evenly(samples: Samples, count: int | None) -> Samples:
    if count is None or len(samples) <= count:
        return samples
    return samples.take(np.linspace(0, len(samples) - 1, count).round().astype(int))


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
