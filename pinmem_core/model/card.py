"""The model card: a checkpoint's `README.md`, as the Hub shows it, made from facts alone.

A card ends with `MARK` and is written again when the facts change; one without it is the user's.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pinmem_core.datasets import DatasetCard, get_card, shipped_cards
from pinmem_core.documents import json_text
from pinmem_core.errors import PinMemError
from pinmem_core.model.figures import DomainFigures, Figures, seen_in_words

CARD = "README.md"
MARK = "<!-- Written by pinmem, and again when it changes; without this line it is left alone. -->"
_SCORES = "## Scores"
_MARKDOWN = re.compile(r"[\\`*\[\]<>|&]|(?<!\w)[_#~]|[_~](?!\w)")
"""Characters that begin or end something in Markdown or HTML."""
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
from pinmem_core.model import Segmenter

mask = pinmem_core.load("{name}").predict("street.jpg")  # (H, W) trainIds
network = Segmenter.from_pretrained("{name}")  # normalised (N, 3, H, W) -> logits (N, K, H, W)
```
"""
_PURPOSE = """## What it is for, and what not

For research on segmenting street scenes in domains that a network has not seen, with the classes of
Cityscapes. It is no part of a vehicle: nothing here says that it sees every person. Outside of the
domains that it is scored on here, nobody knows how good it is; nor does its confidence tell.
"""


def is_ours(path: Path) -> bool:
    """Return whether a card may be written to `path`: none is there, or one of `pinmem`'s own."""
    return not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")


def tells_scores(path: Path) -> bool:
    """Return whether there is a card at `path` that tells scores."""
    return path.exists() and _SCORES in path.read_text(encoding="utf-8", errors="replace")


def model_card(
    config: Mapping[str, Any], figures: Figures | None = None, name: str | None = None
) -> str:
    """Return the text of a card.

    Args:
        config: A checkpoint's `config.json`.
        figures: How it was scored, where that is known.
        name: `user/name` on the Hub, where it has one.
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
    sources = ", ".join(_sources(config)) or "data that is not named"
    return _plain(f"{_method(config)} trained on {sources}")


def _facts(config: Mapping[str, Any]) -> str:
    model, training = config["model"], _training_of(config)
    memory, converted = model.get("memory"), config.get("converted", {})
    facts = {
        "method": _method(config),
        "sources": ", ".join(_sources(config)),
        "iterations": config.get("iteration"),
        "trunk began with": training.get("init_weights"),
        "network": f"{model['trunk']}, {model['head']}, output stride {model['output_stride']}",
        "memory": f"{model['num_classes']} slots of {model['feature_dim']}" if memory else "none",
        "stored in": config.get("stored"),
        "converted from": converted.get("file"),
        "its SHA-256": converted.get("sha256"),
        "taken for granted": "; ".join(converted.get("assumed", ())),
        "pinmem": config.get("pinmem_version"),
    }
    rows = [(key, _plain(value)) for key, value in facts.items() if value not in (None, "")]
    return "## What it is\n\n" + _table(("", ""), rows)


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
        f"{_SCORES}\n\nProtocol {_plain(figures.protocol)}; others give other figures.\n"
        f"A mIoU is the mean over the classes that occur.\n\n{_table(heads, rows)}"
        f"{_never_scored(figures.domains)}"
    )


def _never_scored(domains: Sequence[DomainFigures]) -> str:
    classes = domains[0].iou if domains else ()
    unknown = [n for n in classes if all(_percent(of.iou.get(n)) == "-" for of in domains)]
    if not unknown:
        return ""
    named = _plain(", ".join(unknown))
    return f"\nNo scored image holds {named}: whether it finds them is not known.\n"


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
        else f"- {_plain(name)}: no dataset that pinmem ships; ask whoever trained the network."
        for name, card in _cards(sources).items()
    ]
    told = "The weights were learned from data with terms of their own. As pinmem knows them:\n\n"
    unknown = "What the network was trained on is not known here; whose data it was may have terms."
    return "## Licence\n\n" + (told + "\n".join(lines) if lines else unknown) + "\n"


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
    """Return a text from a checkpoint's files as Markdown that shows it and does nothing else."""
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
    """Return the method's name; where nobody tells it, what the architecture suggests."""
    told = _training_of(config).get("method") or config.get("converted", {}).get("method")
    return str(told or ("pinmem" if config["model"]["memory"] else "aggregate"))


def _sources(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(map(str, _training_of(config).get("sources", ())))


def _datasets(sources: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(source.partition(":")[0] for source in sources))


def _cards(sources: Iterable[str]) -> dict[str, DatasetCard | None]:
    """Return the card of each source's dataset; None where this machine knows none."""
    found: dict[str, DatasetCard | None] = {}
    for name in _datasets(sources):
        try:
            found[name] = get_card(name)
        except PinMemError:
            found[name] = None
    return found


def _percent(share: float | None) -> str:
    return f"{100 * share:.1f}" if share is not None and math.isfinite(share) else "-"
