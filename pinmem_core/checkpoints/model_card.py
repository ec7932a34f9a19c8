"""The model card: a checkpoint's `README.md`, which the Hub shows.

A card that ends with `MARK` is rewritten when its content changes. A card without it belongs to the
user and is never overwritten.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup
from pydantic.dataclasses import dataclass

from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import get_card, shipped_cards
from pinmem_core.documents import json_text
from pinmem_core.errors import PinMemError
from pinmem_core.label_space import CITYSCAPES
from pinmem_core.templates import percent, render

CARD = "README.md"
BASE = "base"
"""Key of the base weights that a checkpoint does not hold in its `config.json`."""
WEIGHTS_LICENCE = "weights_licence"
"""Key of the licence of the pretrained weights in a checkpoint's `config.json`, if it is known."""
STORED = "stored"
"""Key of the precision of weights that are not stored as they are loaded in `config.json`."""
TIME_IS_OVER = "time_is_over"
"""Key in the `config.json` of a checkpoint whose training ended early, by its limit of time."""
INIT_FROM = "init_from"
"""Key of the model that a run started from in a checkpoint's `config.json`."""
MARK = "<!-- Written by pinmem, and again when it changes; without this line it is left alone. -->"
_SCORES = "## Scores"
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&]|(?<!\w)[_#~]|[_~](?!\w)")
"""Characters with a meaning in Markdown or HTML."""
_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"


def seen_in_words(seen: bool | None) -> str:
    """Return the word for `seen` in tables: "seen", "unseen" or "unknown"."""
    return {True: "seen", False: "unseen", None: "unknown"}[seen]


def progress_of(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return how far the training of a checkpoint is, if it is not finished.

    Args:
        config: Content of the checkpoint's `config.json`.

    Returns:
        Number of iterations done, and of all; None for an unknown training, and for one that is
        finished or was ended by its limit of time.
    """
    done, all_ = config.get("iteration"), _training_of(config).get("iterations")
    if type(done) is int and type(all_) is int and done < all_ and not config.get(TIME_IS_OVER):
        return done, all_
    return None


def progress_in_words(progress: tuple[int, int] | None) -> str:
    """Return "unfinished, iteration 5 of 9", or nothing for None."""
    return f"unfinished, iteration {progress[0]} of {progress[1]}" if progress else ""


def parameters_in_words(parameters: Mapping[str, int]) -> str:
    """Return "1,234,567 parameters", and how many are trained unless these are all."""
    trained, total = parameters["trained"], parameters["total"]
    return f"{total:,} parameters" + f", {trained:,} of them trained" * (trained < total)


@dataclass(frozen=True)
class DomainMetrics:
    """Scores of a network on one domain.

    Attributes:
        name: Name of the domain, `dataset[:domain]`.
        seen: Whether the network was trained on it; None if unknown.
        split: Scored split; None if unknown.
        images: Number of scored images.
        miou: mIoU in 0..1 over the classes that occur; None if none occurs.
        iou: IoU in 0..1 by class name; None for a class that does not occur.
        interval: Interval (low, high) of the mIoU; None if unknown.
        label_space: Name of the label space of the classes.
    """

    name: str
    seen: bool | None
    split: str | None
    images: int
    miou: float | None
    iou: Mapping[str, float | None]
    interval: tuple[float, float] | None = None
    label_space: str = CITYSCAPES.name


@dataclass(frozen=True)
class ModelMetrics:
    """Scores of a network, and the protocol that produced them.

    Attributes:
        protocol: Name and description of the protocol, "NAME: DESCRIPTION".
        domains: Scores of each domain.
    """

    protocol: str
    domains: tuple[DomainMetrics, ...]

    @classmethod
    def of_run(cls, scores: Mapping[str, Any], protocol: str) -> Self:
        """Return the scores of a run's `scores.json`.

        Args:
            scores: Content of `scores.json`.
            protocol: Name and description of the protocol.
        """
        domains = (
            _domain(name, saved, seen=True if phase == "source" else None)
            for phase in ("target", "source")
            for name, saved in scores[phase].items()
        )
        return cls(protocol, tuple(domains))

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> Self:
        """Return the scores of a `report.json`."""
        protocol = report["protocol"]
        return cls(
            f"{protocol['name']}: {protocol['description']}, {report['precision']}",
            tuple(_domain(name, saved) for name, saved in report["targets"].items()),
        )


def _domain(name: str, saved: Mapping[str, Any], seen: bool | None = None) -> DomainMetrics:
    """Return the metrics of a domain; `seen` is the default of files that do not say it."""
    interval = saved.get("interval")
    return DomainMetrics(
        name,
        saved.get("seen", seen),
        saved.get("split"),
        saved["images"],
        saved["miou"],
        saved["iou"],
        None if interval is None else (interval["low"], interval["high"]),
        saved.get("label_space", CITYSCAPES.name),
    )


def is_ours(path: Path) -> bool:
    """Return whether a card may be written to `path`: it is absent, or pinmem wrote it."""
    return not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")


def has_scores(path: Path) -> bool:
    """Return whether `path` is a card with scores."""
    return path.exists() and _SCORES in path.read_text(encoding="utf-8", errors="replace")


def model_card(
    config: Mapping[str, Any], metrics: ModelMetrics | None = None, name: str | None = None
) -> str:
    """Return the text of a card.

    Args:
        config: Content of a checkpoint's `config.json`.
        metrics: Metrics of the checkpoint; None where they are not known.
        name: `user/name` on the Hub; None for a checkpoint that is not on the Hub.
    """
    sources, training = _sources(config), _training_of(config)
    title = f"{_method(config)} trained on {', '.join(sources) or 'unknown data'}"
    domains = metrics.domains if metrics else ()
    classes = [*dict.fromkeys(name for domain in domains for name in domain.iou)]
    spaces = [domain.label_space for domain in domains]
    if {*spaces} <= {CITYSCAPES.name}:
        spaces = []
    missing = [n for n in classes if all(percent(of.iou.get(n)) == "-" for of in domains)]
    return render(
        _TEMPLATE,
        _escaped,
        metadata=Markup(_metadata(config, metrics, name or _escaped(title)).to_yaml()),
        name=name and Markup(name),
        title=title,
        details=_details(config),
        metrics=metrics,
        intervals=all(domain.interval for domain in domains),
        seen_in_words=seen_in_words,
        classes=classes,
        spaces=spaces,
        own_classes=None if _is_of_cityscapes(config) else config["classes"]["names"],
        missing=", ".join(missing),
        datasets={dataset: _card_of(dataset) for dataset in _datasets(_all_sources(config))},
        text=_text,
        weights_licence=config.get(WEIGHTS_LICENCE),
        training=Markup(json_text(training, indent=2)) if training else "",
        mark=Markup(MARK),
    )


def _metadata(config: Mapping[str, Any], metrics: ModelMetrics | None, name: str) -> ModelCardData:
    results = []
    protocol = metrics.protocol.partition(":")[0] if metrics else ""
    for domain in metrics.domains if metrics else ():
        if domain.seen is False and domain.miou is not None and math.isfinite(domain.miou):
            own = domain.label_space != CITYSCAPES.name
            dataset, _, part = domain.name.partition("@")[0].partition(":")
            result = EvalResult(
                task_type="image-segmentation",
                dataset_type=dataset,
                dataset_config=part or None,
                dataset_name=domain.name,
                dataset_split=domain.split,
                metric_type="mean_iou",
                metric_name=f"mIoU, protocol {protocol}" + f", {domain.label_space}" * own,
                metric_value=round(domain.miou, 4),
            )
            results.append(result)
    return ModelCardData(
        library_name="pinmem",
        pipeline_tag="image-segmentation",
        tags=[
            "semantic-segmentation",
            "domain-generalization",
            *["street-scenes"] * _is_of_cityscapes(config),
            _method(config),
        ],
        license="other",
        license_name="terms-of-the-training-data",
        datasets=_datasets(_all_sources(config)) or None,
        metrics=["mean_iou"],
        model_name=name,
        eval_results=results or None,
    )


def _details(config: Mapping[str, Any]) -> dict[str, Any]:
    model, training = config["model"], _training_of(config)
    memory, converted = model.get("memory"), config.get("converted", {})
    start, base = config.get(INIT_FROM, {}), config.get(BASE, {})
    parameters = config.get("parameters", {})
    return {
        "method": _method(config),
        "sources": ", ".join(_sources(config)),
        "iterations": progress_in_words(progress_of(config)) or config.get("iteration"),
        "pretrained weights": training.get("init_weights"),
        "licence of pretrained weights": config.get(WEIGHTS_LICENCE),
        "initialised from": start.get("model"),
        "SHA-256 of its weights": start.get("sha256"),
        "sources of that model": ", ".join(map(str, start.get("sources", ()))),
        "network": f"{model['backbone']}, {model['decoder']}, stride {model['output_stride']}",
        "parameters": parameters.get("total"),
        "trained parameters": parameters.get("trained"),
        "base weights, needed for loading": Path(str(base.get("source", ""))).name,
        "SHA-256 of their tensors": base.get("sha256"),
        "classes": "" if _is_of_cityscapes(config) else _classes(config),
        "memory": f"{model['num_classes']} slots of {model['feature_dim']}" if memory else "none",
        "stored in": config.get(STORED),
        "converted from": converted.get("file"),
        "SHA-256 of that file": converted.get("sha256"),
        "assumed": "; ".join(converted.get("assumed", ())),
        "pinmem": config.get("pinmem_version"),
    }


def _is_of_cityscapes(config: Mapping[str, Any]) -> bool:
    return "label_space" not in config["model"]


def _classes(config: Mapping[str, Any]) -> str:
    return f"{config['model']['num_classes']}, {config['model']['label_space']['name']}"


def _text(card: DatasetCard, field: str) -> str:
    """Return a text of a dataset's card; links work in the cards that pinmem ships."""
    text: str = getattr(card, field)
    return Markup(text) if card == shipped_cards().get(card.name) else text


def _escaped(value: object) -> str:
    """Return `value` as text with all Markdown and HTML syntax escaped."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    text = _MARKDOWN.sub(r"\\\g<0>", text)
    return text.replace("://", r"\://").replace("www.", r"www\.")


def _training_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    training = config.get("training")
    return training if isinstance(training, Mapping) else {}


def _method(config: Mapping[str, Any]) -> str:
    """Return the method's name; without one, the name that the architecture suggests."""
    name = _training_of(config).get("method") or config.get("converted", {}).get("method")
    return str(name or ("pinmem" if config["model"]["memory"] else "aggregate"))


def _sources(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(map(str, _training_of(config).get("sources", ())))


def _all_sources(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the sources of a network and of the model that its training started from."""
    return (*_sources(config), *map(str, config.get(INIT_FROM, {}).get("sources", ())))


def _datasets(sources: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(source.partition(":")[0] for source in sources))


def _card_of(dataset: str) -> DatasetCard | None:
    """Return the card of a dataset; None for a dataset that is not known here."""
    try:
        return get_card(dataset)
    except PinMemError:
        return None
