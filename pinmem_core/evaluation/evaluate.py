"""Targets of an evaluation, and their scores."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np

from pinmem_core.datasets import get_card
from pinmem_core.distributed import all_gather
from pinmem_core.evaluation.reading import my_share
from pinmem_core.evaluation.scores import ConfusionMatrix, Scores
from pinmem_core.evaluation.trained_on import TrainedOn
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.inference import Predictor
from pinmem_core.preparation import PreparedDataset, Sample, Samples, Selection, matching, select


@dataclass(frozen=True)
class Target:
    """A domain to evaluate on.

    Attributes:
        name: Name as the user wrote it.
        split: Evaluated split, or "all".
        samples: Images and labels.
        seen: Whether any image belongs to a domain that the network was trained on; None if
            unknown.
        trained_images: Number of images that the network was trained on; None if unknown.
    """

    name: str
    split: str
    samples: Sequence[Sample]
    seen: bool | None = None
    trained_images: int | None = None

    def warning(self) -> str | None:
        """Return a warning if the target is not known to be unseen, else None."""
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
    """Load a target.

    Without a split, a seen domain is evaluated on its validation split. For an unseen domain, the
    dataset card chooses the split; otherwise it is the published validation split, or else the
    whole domain, because a split made by `prepare` holds out nothing from a training that never
    used the domain.

    Args:
        text: Target as `dataset[:domain][@split]`.
        trained_on: Images that the network was trained on; None if unknown.
        max_images: Maximum number of images, evenly spaced; None for all.

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
    """Return the default split of an unseen domain."""
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
    """Return the validation split of each source, without sources that have none.

    Args:
        sources: Sources as `dataset[:domain][@split]`.
        max_images: Maximum number of images per source, evenly spaced; None for all.
        on_event: Callback for warnings about sources without validation split, and about sources
            that train on their validation images.

    Raises:
        DataError: A source is not prepared.
    """
    targets = []
    for source in sources:
        selection = Selection.parse(source)
        if selection.split in ("all", "val"):
            on_event(Notice(f"{source} trains on its own validation images", warning=True))
        selection = replace(selection, split="val")
        if samples := matching(selection, "val"):
            targets.append(Target(str(selection), "val", _evenly(samples, max_images), seen=True))
        else:
            on_event(Notice(f"{source} has no validation split; it is skipped", warning=True))
    return targets


def _evenly(samples: Samples, count: int | None) -> Samples:
    if count is None or len(samples) <= count:
        return samples
    return samples.take(np.linspace(0, len(samples) - 1, count).round().astype(int))


def evaluate(
    predictor: Predictor, samples: Sequence[Sample], *, on_event: Listener = ignore, task: str
) -> Scores:
    """Predict every sample and score it against its label; distributed processes share the work.

    Args:
        predictor: Model and protocol.
        samples: Samples, at least one.
        on_event: Callback for progress events.
        task: Name of the task in progress events.

    Raises:
        DataError: A file cannot be read, or the sizes of a label and its image differ.
    """
    matrix = ConfusionMatrix()
    for _, image, truth in my_share(samples, predictor.protocol, on_event=on_event, task=task):
        matrix.add(truth, predictor.predict(image))
    return Scores.of(reduce(add, all_gather(matrix)), len(samples))
