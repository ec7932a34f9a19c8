"""Render a report as a single self-contained HTML page."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pinmem_core.evaluation import report_tables
from pinmem_core.evaluation.charts import reliability
from pinmem_core.evaluation.examples import Example, Examples
from pinmem_core.evaluation.markup import percent, picture
from pinmem_core.evaluation.report_data import DomainReport, Report
from pinmem_core.evaluation.results import DomainResult
from pinmem_core.labels import CLASSES

_STYLE = Path(__file__).with_name("report.css")
_NOTHING_FROM_OUTSIDE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_SEEN = {
    True: "Seen: the network was trained on this domain.",
    False: "Unseen: the network was not trained on this domain.",
    None: "It is unknown whether the network was trained on this domain.",
}


@dataclass(frozen=True)
class Pictures:
    """Pictures of a report.

    Attributes:
        examples: Example images by target.
        memory: RGB pictures of the memory, (H, W, 3), by caption.
    """

    examples: Mapping[str, Examples]
    memory: Mapping[str, NDArray[np.uint8]]


def as_html(report: Report, pictures: Pictures | None = None) -> str:
    """Return the HTML page of a report, with pictures if given."""
    pictures = pictures or Pictures({}, {})
    title = escape(f"Evaluation of {report.origin.model}")
    targets = [
        _target(f"target-{number}", domain, pictures.examples.get(name, Examples()))
        for number, (name, domain) in enumerate(report.domains.items())
    ]
    body = [_masthead(report), _scores(report), *targets, _memory(pictures), _origin(report)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING_FROM_OUTSIDE}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n"
        "</head>\n<body>\n" + "\n".join(part for part in body if part) + "\n</body>\n</html>\n"
    )


def _masthead(report: Report) -> str:
    links = [
        f'<a href="#target-{number}">{escape(name)}</a>'
        for number, name in enumerate(report.domains)
    ]
    return (
        f"<header><h1>Evaluation of {escape(report.origin.model)}</h1>"
        f"<p>Evaluated {escape(_day(report))} with the protocol {escape(report.protocol)}.</p>"
        f'<nav aria-label="Sections">{" ".join(links)} <a href="#origin">Origin</a></nav></header>'
    )


def _day(report: Report) -> str:
    return report.origin.date.replace("T", " ").replace("+00:00", " UTC")


def _scores(report: Report) -> str:
    return (
        f"<section><h2>Scores</h2>{report_tables.summary(report)}"
        '<p class="note">mIoU is the mean over the classes that occur in the labels; mIoU-19, -16 '
        "and -13 are means over the classes of the fixed set that occur or are predicted. A domain "
        "is seen if the network was trained on any of its images; no mean mixes seen and unseen "
        "domains. The interval is a bootstrap over images; it does not cover the variation between "
        "trainings. ECE is the expected calibration error; AUROC is that of detecting errors by "
        f"low confidence, 50 being chance.</p>{report_tables.by_class(report)}</section>"
    )


def _target(anchor: str, domain: DomainReport, examples: Examples) -> str:
    result = domain.result
    return (
        f'<section id="{anchor}"><h2>{escape(result.name)}</h2>'
        f"<p>{result.scores.images:,} images of the split '{escape(result.split)}', "
        f"{result.scores.pixels:,} labelled pixels; mIoU {percent(result.scores.miou)} %. "
        f"{_SEEN[result.seen]}{_trained(result)}</p>"
        f"{report_tables.details(result.scores)}"
        f"<h3>Confusion matrix</h3>{report_tables.confusion(result.matrix)}"
        f"<h3>Calibration (reliability diagram)</h3>{_calibration(domain)}"
        f"{_examples(examples)}</section>"
    )


def _trained(result: DomainResult) -> str:
    if not result.trained_images:
        return ""
    return f" It was trained on {result.trained_images:,} of these images."


def _calibration(domain: DomainReport) -> str:
    calibration = domain.result.calibration
    return (
        f'<div class="beside"><figure>{reliability(calibration)}<figcaption>Bars: accuracy of the '
        "pixels in a bin. Marks: mean confidence, where the bar of a calibrated network ends. "
        f"Below: share of the pixels in a bin. ECE {percent(calibration.ece)} %, AUROC "
        f"{percent(calibration.auroc)} %.</figcaption></figure>"
        f"<div>{report_tables.confidence(calibration)}</div></div>"
    )


def _examples(examples: Examples) -> str:
    parts = []
    for head, chosen in (("Worst images", examples.worst), ("Best images", examples.best)):
        if chosen:
            parts.append(f"<h3>{head}</h3>" + "".join(_example(example) for example in chosen))
    return "".join(parts) + (_legend() if parts else "")


def _example(example: Example) -> str:
    views = {
        "image": example.image,
        "truth": example.truth,
        "prediction": example.prediction,
    }
    tiles = "".join(
        f"<div>{picture(pixels, f'{name} of {example.id}')}<span>{name}</span></div>"
        for name, pixels in views.items()
    )
    text = f"{escape(example.id)}: mIoU {percent(example.miou)} %"
    return f'<figure><figcaption>{text}</figcaption><div class="trio">{tiles}</div></figure>'


def _legend() -> str:
    entries = "".join(
        f'<li><span style="background:rgb{c.color}"></span>{c.name}</li>' for c in CLASSES
    )
    return f'<ul class="legend" aria-label="Colours of the classes">{entries}</ul>'


def _memory(pictures: Pictures) -> str:
    figures = "".join(
        f'<figure class="wide"><figcaption>{escape(caption)}</figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"{picture(pixels, caption)}</div></figure>"
        for caption, pixels in pictures.memory.items()
    )
    return f'<section id="memory"><h2>The memory</h2>{figures}</section>' if figures else ""


def _origin(report: Report) -> str:
    origin = report.origin
    facts = {
        "checkpoint": str(origin.checkpoint),
        "SHA-256 of its weights": origin.weights_sha256,
        "protocol": origin.words,
        "precision": origin.precision,
        "device": origin.device,
        "date": _day(report),
        "versions": ", ".join(f"{name} {number}" for name, number in origin.versions.items()),
    } | {f"digest of {name}": domain.dataset_digest for name, domain in report.domains.items()}
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return (
        '<section id="origin"><h2>Origin of the metrics</h2>'
        f"<dl>{rows}</dl><p>All metrics, with the counts of every image, are in report.json; "
        "<code>pinmem eval compare</code> compares reports.</p></section>"
    )
