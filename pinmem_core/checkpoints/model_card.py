"""The model card: a checkpoint's `README.md`, which the Hub shows.

A card that ends with `MARK` is rewritten when its content changes. A card without it belongs to the
user and is never overwritten.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from huggingface_hub import EvalResult, ModelCardData
from pydantic.dataclasses import dataclass

from pinmem_core.data.card import DatasetCard
from pinmem_core.data.catalog import get_card, shipped_cards
from pinmem_core.documents import json_text
from pinmem_core.errors import PinMemError

CARD = "README.md"
MARK = "<!-- Written by pinmem, and again when it changes; without this line it is left alone. -->"
_SCORES = "## Scores"
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&]|(?<!\w)[_#~]|[_~](?!\w)")
"""Characters with a meaning in Markdown or HTML."""
_PAPER = """@inproceedings{kim2022pin,
  title     = {Pin the Memory: Learning to Generalize Semantic Segmentation},
  author    = {Kim, Jin and Lee, Jiyoung and Park, Jungin and Min, Dongbo and Sohn, Kwanghoon},
  booktitle = {CVPR},
  year      = {2022}
}"""
_USE = """## Use

```
pinmem predict street.jpg -o mask.png --model {name}
```

```python
import pinmem_core
from pinmem_core.models import Segmenter

mask = pinmem_core.load("{name}").predict("street.jpg")  # (H, W) trainIds
network = Segmenter.from_pretrained("{name}")  # normalised (N, 3, H, W) -> logits (N, K, H, W)
```
"""
_PURPOSE = """## Intended use and limitations

The network is for research on the segmentation of street scenes in unseen domains, with the classes
of Cityscapes. Do not use it in a vehicle: it may miss people. Its quality outside of the domains
scored here is unknown, and its confidence does not measure it.
"""


def seen_in_words(seen: bool | None) -> str:
    """Return the word for `seen` in tables: "seen", "unseen" or "unknown"."""
    return {True: "seen", False: "unseen", None: "unknown"}[seen]


@dataclass(frozen=True)
class DomainFigures:
    """Scores of a network on one domain.

    Attributes:
        name: Name of the domain, `dataset[:domain]`.
        seen: Whether the network was trained on it; None where that is not known.
        split: Which split was scored; None where that is not told.
        images: How many were scored.
        miou: In 0..1, over the classes that occur; None where none does.
        iou: In 0..1, by class name; None for a class that does not occur.
        interval: (low, high) of the mIoU, where it is told.
    """

    name: str
    seen: bool | None
    split: str | None
    images: int
    miou: float | None
    iou: Mapping[str, float | None]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Figures:
    """Scores of a network, and the protocol that produced them.

    Attributes:
        protocol: Name and description of the protocol, "NAME: DESCRIPTION".
        domains: Scores of each domain.
    """

    protocol: str
    domains: tuple[DomainFigures, ...]

    @classmethod
    def of_run(cls, scores: Mapping[str, Any], protocol: str) -> Self:
        """Return the scores of a run's `scores.json`.

        Args:
            scores: Content of `scores.json`.
            protocol: Name and description of the protocol.
        """
        return cls(
            protocol,
            tuple(
                DomainFigures(
                    name,
                    saved.get("seen", True if phase == "source" else None),
                    None,
                    saved["images"],
                    saved["miou"],
                    saved["iou"],
                )
                for phase in ("target", "source")
                for name, saved in scores[phase].items()
            ),
        )

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> Self:
        """Return the scores of a `report.json`."""
        protocol = report["protocol"]
        return cls(
            f"{protocol['name']}: {protocol['description']}, {report['precision']}",
            tuple(
                DomainFigures(
                    name,
                    saved.get("seen"),
                    saved["split"],
                    saved["images"],
                    saved["miou"],
                    saved["iou"],
                    (saved["interval"]["low"], saved["interval"]["high"]),
                )
                for name, saved in report["targets"].items()
            ),
        )


def is_ours(path: Path) -> bool:
    """Return whether a card may be written to `path`: it is absent, or pinmem wrote it."""
    return not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")


def tells_scores(path: Path) -> bool:
    """Return whether `path` is a card with scores."""
    return path.exists() and _SCORES in path.read_text(encoding="utf-8", errors="replace")


def model_card(
    config: Mapping[str, Any], figures: Figures | None = None, name: str | None = None
) -> str:
    """Return the text of a card.

    Args:
        config: Content of a checkpoint's `config.json`.
        figures: Scores of the checkpoint; None where they are not known.
        name: `user/name` on the Hub; None for a checkpoint that is not on the Hub.
    """
    title = _title(config)
    parts = [
        f"---\n{_metadata(config, figures, name or title).to_yaml()}\n---\n",
        f"# {name or title}\n",
        f"A network for semantic segmentation of street scenes, made with pinmem: {title}.\n",
        _USE.format(name=name or "user/name"),
        _facts(config),
        _scores(figures),
        _PURPOSE,
        _licence(_sources(config)),
        _training(config),
        _citations(_sources(config)),
        f"{MARK}\n",
    ]
    return "\n".join(part for part in parts if part)


def _metadata(config: Mapping[str, Any], figures: Figures | None, name: str) -> ModelCardData:
    results = _eval_results(figures) if figures else []
    return ModelCardData(
        library_name="pinmem",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "domain-generalization", "street-scenes", _method(config)],
        license="other",
        license_name="terms-of-the-training-data",
        datasets=_datasets(_sources(config)) or None,
        metrics=["mean_iou"],
        model_name=name,
        eval_results=results or None,
    )


def _eval_results(figures: Figures) -> list[EvalResult]:
    protocol = figures.protocol.partition(":")[0]
    unseen = (domain for domain in figures.domains if domain.seen is False)
    return [
        _eval_result(domain, domain.miou, protocol)
        for domain in unseen
        if domain.miou is not None and math.isfinite(domain.miou)
    ]


def _eval_result(domain: DomainFigures, miou: float, protocol: str) -> EvalResult:
    dataset, _, part = domain.name.partition("@")[0].partition(":")
    return EvalResult(
        task_type="image-segmentation",
        dataset_type=dataset,
        dataset_config=part or None,
        dataset_name=domain.name,
        dataset_split=domain.split,
        metric_type="mean_iou",
        metric_name=f"mIoU, protocol {protocol}",
        metric_value=round(miou, 4),
    )


def _title(config: Mapping[str, Any]) -> str:
    sources = ", ".join(_sources(config)) or "unknown data"
    return _plain(f"{_method(config)} trained on {sources}")


def _facts(config: Mapping[str, Any]) -> str:
    model, training = config["model"], _training_of(config)
    memory, converted = model.get("memory"), config.get("converted", {})
    facts = {
        "method": _method(config),
        "sources": ", ".join(_sources(config)),
        "iterations": config.get("iteration"),
        "pretrained weights": training.get("init_weights"),
        "network": f"{model['backbone']}, {model['decoder']}, stride {model['output_stride']}",
        "memory": f"{model['num_classes']} slots of {model['feature_dim']}" if memory else "none",
        "stored in": config.get("stored"),
        "converted from": converted.get("file"),
        "SHA-256 of that file": converted.get("sha256"),
        "assumed": "; ".join(converted.get("assumed", ())),
        "pinmem": config.get("pinmem_version"),
    }
    rows = [(key, _plain(value)) for key, value in facts.items() if value not in (None, "")]
    return "## Model details\n\n" + _table(("", ""), rows)


def _scores(figures: Figures | None) -> str:
    if figures is None:
        return ""
    heads = [
        "IoU %",
        *(f"{_plain(d.name)} ({seen_in_words(d.seen)})" for d in figures.domains),
    ]
    rows = [
        ("**mIoU**", *(_percent(domain.miou) for domain in figures.domains)),
        *_intervals(figures.domains),
        ("images", *(str(domain.images) for domain in figures.domains)),
        *(
            (_plain(name), *(_percent(domain.iou.get(name)) for domain in figures.domains))
            for name in (figures.domains[0].iou if figures.domains else ())
        ),
    ]
    return (
        f"{_SCORES}\n\nProtocol {_plain(figures.protocol)}; other protocols give other scores.\n"
        f"The mIoU is the mean over the classes that occur.\n\n{_table(heads, rows)}"
        f"{_never_scored(figures.domains)}"
    )


def _never_scored(domains: Sequence[DomainFigures]) -> str:
    classes = domains[0].iou if domains else ()
    unknown = [n for n in classes if all(_percent(of.iou.get(n)) == "-" for of in domains)]
    if not unknown:
        return ""
    named = _plain(", ".join(unknown))
    return f"\nNo scored image contains {named}: the quality for these classes is not known.\n"


def _intervals(domains: Sequence[DomainFigures]) -> list[tuple[str, ...]]:
    if not all(domain.interval for domain in domains):
        return []
    ends = (domain.interval for domain in domains if domain.interval)
    return [("95 % interval", *(f"{_percent(low)} to {_percent(high)}" for low, high in ends))]


def _licence(sources: Sequence[str]) -> str:
    lines = [
        f"- {_plain(name)}: {_said(card, card.terms) or 'no terms are known.'} "
        f"{_said(card, card.terms_url)}".rstrip()
        if card
        else f"- {_plain(name)}: not a dataset that pinmem ships; ask the author of the network."
        for name, card in _cards(sources).items()
    ]
    known = "The weights were trained on data with its own terms. The terms that pinmem knows:\n\n"
    unknown = "The training data of this network is not known; it may have terms of its own."
    return "## Licence\n\n" + (known + "\n".join(lines) if lines else unknown) + "\n"


def _training(config: Mapping[str, Any]) -> str:
    training = _training_of(config)
    if not training:
        return ""
    return f"## Training configuration\n\n```json\n{json_text(training, indent=2)}\n```\n"


def _citations(sources: Sequence[str]) -> str:
    cards = [card for card in _cards(sources).values() if card and card.citation]
    data = [f"- {_said(card, card.title)}: {_said(card, card.citation)}" for card in cards]
    return (
        f"## Citation\n\n```bibtex\n{_PAPER}\n```\n" + "".join(f"\n{line}" for line in data) + "\n"
    )


def _said(card: DatasetCard, text: str) -> str:
    """Return a text of a dataset's card as Markdown; links work in the cards that pinmem ships."""
    return text if card == shipped_cards().get(card.name) else _plain(text)


def _plain(value: object) -> str:
    """Return `value` as text with all Markdown and HTML syntax escaped."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    text = _MARKDOWN.sub(r"\\\g<0>", text)
    return text.replace("://", r"\://").replace("www.", r"www\.")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _training_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    training = config.get("training")
    return training if isinstance(training, Mapping) else {}


def _method(config: Mapping[str, Any]) -> str:
    """Return the method's name; without one, the name that the architecture suggests."""
    name = _training_of(config).get("method") or config.get("converted", {}).get("method")
    return str(name or ("pinmem" if config["model"]["memory"] else "aggregate"))


def _sources(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(map(str, _training_of(config).get("sources", ())))


def _datasets(sources: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(source.partition(":")[0] for source in sources))


def _cards(sources: Iterable[str]) -> dict[str, DatasetCard | None]:
    """Return the dataset card of each source; None for a dataset that is not known here."""
    cards: dict[str, DatasetCard | None] = {}
    for name in _datasets(sources):
        try:
            cards[name] = get_card(name)
        except PinMemError:
            cards[name] = None
    return cards


def _percent(share: float | None) -> str:
    return f"{100 * share:.1f}" if share is not None and math.isfinite(share) else "-"
