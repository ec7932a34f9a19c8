"""The domains to evaluate on, and the validation splits of the sources."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pinmem_core.data.catalog import get_card
from pinmem_core.data.prepared import PreparedDataset, Selection, matching, select
from pinmem_core.data.samples import Sample, Samples, ids_of
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation.scored_classes import SAME_CLASSES, ScoredClasses, with_maps_of_cards
from pinmem_core.evaluation.trained_on import TrainedOn
from pinmem_core.events import Listener, Notice
from pinmem_core.label_space import CITYSCAPES, LabelSpace


@dataclass(frozen=True)
class Target:
    """A domain to evaluate on.

    Attributes:
        name: Name as the user wrote it.
        split: Evaluated split, or "all".
        samples: Images, and labels in the label space of `classes`.
        seen: Whether any image belongs to a domain that the network was trained on; None if
            unknown.
        trained_images: Number of images that the network was trained on; None if unknown.
        classes: Classes of the scores.
        labels: Label space of the label files; None for that of `classes`.
    """

    name: str
    split: str
    samples: Sequence[Sample]
    seen: bool | None = None
    trained_images: int | None = None
    classes: ScoredClasses = SAME_CLASSES
    labels: LabelSpace | None = None

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
    text: str,
    trained_on: TrainedOn | None = None,
    max_images: int | None = None,
    *,
    network: LabelSpace = CITYSCAPES,
    classes: str | None = None,
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
        network: Label space of the network; cards of its classes may add maps.
        classes: Name of the label space of the scores, as for `ScoredClasses.of`.

    Raises:
        ConfigError: The dataset, domain or split does not exist, or the labels cannot be compared
            with the classes of the network.
        DataError: The dataset is not prepared, or the target holds no samples.
    """
    selection = Selection.parse(text)
    dataset, trained_on = selection.dataset, trained_on or TrainedOn()
    split = selection.split
    if split is None:
        seen = trained_on.has_seen(dataset, matching(selection, "all"))
        split = "val" if seen else _split_of_unseen(selection)
    samples = _evenly(select(selection, split), max_images)
    labels = samples.label_space
    scored = _scored(text, with_maps_of_cards(network), labels, classes)
    samples = samples.in_space(scored.space)
    seen = trained_on.has_seen(dataset, samples)
    trained_images = trained_on.count(dataset, samples)
    return Target(text, split, samples, seen, trained_images, scored, labels)


def shared_images(targets: Sequence[Target]) -> list[str]:
    """Return a warning for each pair of targets that have images in common.

    A mean over both counts these images twice, as with `cityscapes` and `cityscapes@val`.

    Args:
        targets: Targets of one evaluation.
    """
    ids: dict[str, dict[str, set[str]]] = {}
    warnings = []
    for target in targets:
        known = ids.setdefault(Selection.parse(target.name).dataset, {})
        own = set(ids_of(target.samples))
        for other, theirs in known.items():
            if count := len(own & theirs):
                shared = f"{target.name} and {other} share {count:,} image{'s' * (count > 1)}"
                warnings.append(f"{shared}, which a mean over both counts twice")
        known[target.name] = own
    return warnings


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
    sources: Iterable[str],
    max_images: int | None,
    on_event: Listener,
    *,
    network: LabelSpace = CITYSCAPES,
) -> list[Target]:
    """Return the validation split of each source, without sources that have none.

    Args:
        sources: Sources as `dataset[:domain][@split]`.
        max_images: Maximum number of images per source, evenly spaced; None for all.
        on_event: Callback for warnings about sources without validation split, and about sources
            that train on their validation images.
        network: Label space of the network.

    Raises:
        ConfigError: The labels cannot be compared with the classes of the network.
        DataError: A source is not prepared.
    """
    targets = []
    for source in sources:
        selection = Selection.parse(source)
        if selection.split and "val" in matching(selection, selection.split).splits:
            on_event(Notice(f"{source} trains on its own validation images", warning=True))
        selection = replace(selection, split="val")
        if samples := matching(selection, "val"):
            scored = _scored(str(selection), network, samples.label_space)
            samples = _evenly(samples, max_images).in_space(scored.space)
            targets.append(Target(str(selection), "val", samples, seen=True, classes=scored))
        else:
            on_event(Notice(f"{source} has no validation split; it is skipped", warning=True))
    return targets


def _scored(
    target: str, network: LabelSpace, labels: LabelSpace, name: str | None = None
) -> ScoredClasses:
    """Return the classes to score a target in; an error names the target."""
    try:
        return ScoredClasses.of(network, labels, name)
    except ConfigError as error:
        raise ConfigError(f"{target}: {error.message}", error.hint) from None


def _evenly(samples: Samples, count: int | None) -> Samples:
    if count is None or len(samples) <= count:
        return samples
    return samples.take(np.linspace(0, len(samples) - 1, count).round().astype(int))
