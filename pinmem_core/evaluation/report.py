"""Evaluate a checkpoint on targets and write its report."""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.checkpoints.hub import checkpoint_of, run_folder
from pinmem_core.checkpoints.model_card import seen_in_words
from pinmem_core.data.prepare import draw_missing
from pinmem_core.data.prepared import PreparedDataset, Selection
from pinmem_core.data.samples import spread
from pinmem_core.documents import LARGEST, read_json_object
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.evaluation.bootstrap import bootstrap_interval
from pinmem_core.evaluation.evaluate import (
    Example,
    Examples,
    Gallery,
    Target,
    evaluate_domain,
    load_target,
)
from pinmem_core.evaluation.memory_analysis import SAMPLES_PER_DOMAIN
from pinmem_core.evaluation.memory_analysis import pictures as memory_pictures
from pinmem_core.evaluation.metrics import (
    BINS,
    CLASS_SET_NAMES,
    Calibration,
    ConfusionMatrix,
    Scores,
)
from pinmem_core.evaluation.results import (
    LEVEL,
    DomainReport,
    DomainResult,
    Origin,
    Report,
    TrainedOn,
)
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.files import staged_folder, write_whole
from pinmem_core.inference import Predictor, get_protocol, protocol_of
from pinmem_core.inference.predictor import Precision
from pinmem_core.label_space import CLASS_NAMES, CLASSES
from pinmem_core.models import load_checkpoint

_JPEG_QUALITY = 82


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share in 0..1 as a percentage without the sign; "-" for None or NaN."""
    return "-" if value is None or np.isnan(value) else f"{100 * value:.{digits}f}"


def cell(text: str, kind: str = "") -> str:
    """Return a table cell.

    Args:
        text: Content of the cell.
        kind: CSS classes of the cell.
    """
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def bar(value: float | None) -> str:
    """Return a table cell with a percentage in front of a bar of that length."""
    if value is None or np.isnan(value):
        return cell("-")
    return f'<td class="bar" style="--v:{value:.4f}">{percent(value)}</td>'


def table(caption: str, heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Return a table.

    Args:
        caption: Caption of the table.
        heads: Column headers.
        rows: Header and HTML cells of each row.
    """
    above = "".join(f'<th scope="col"><span>{escape(head)}</span></th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(head)}</th>{"".join(cells)}</tr>' for head, cells in rows
    )
    return (
        f'<p class="caption">{escape(caption)}</p>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><thead><tr>{above}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def picture(pixels: NDArray[np.uint8], alt: str) -> str:
    """Return an inline `img` element of an RGB picture (H, W, 3)."""
    height, width = pixels.shape[:2]
    return (
        f'<img src="{data_uri(pixels)}" alt="{escape(alt)}" width="{width}" height="{height}" '
        'decoding="async">'
    )


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Return RGB pixels as a data URI in PNG or JPEG, whichever is smaller."""
    image, png, jpeg = Image.fromarray(pixels), BytesIO(), BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=_JPEG_QUALITY)
    form, data = min(("png", png), ("jpeg", jpeg), key=lambda f: len(f[1].getvalue()))
    return f"data:image/{form};base64,{b64encode(data.getvalue()).decode()}"


_SIDE = 240
"""Side of the square plot area in pixels."""
_LEFT, _TOP = 44, 12
_STRIP = 44
"""Height of the largest bar of the bins' pixel shares, in pixels."""
_GAP = 12
_BIN = _SIDE / BINS


def reliability(calibration: Calibration) -> str:
    """Return the reliability diagram: accuracy by confidence, above the bins' pixel shares.

    Args:
        calibration: Calibration counts of at least one pixel.
    """
    height = _TOP + _SIDE + _GAP + _STRIP + 40
    parts = [*_axes(), *_bars(calibration), *_shares(calibration)]
    return (
        f'<svg class="chart" viewBox="0 0 {_LEFT + _SIDE + 14} {height}" role="img" '
        'aria-label="Reliability diagram: accuracy of the pixels by confidence; the next table '
        'lists the values">' + "".join(parts) + "</svg>"
    )


def _axes() -> list[str]:
    parts = []
    for tenths in (0, 5, 10):
        x, y = _LEFT + _SIDE * tenths / 10, _TOP + _SIDE * (1 - tenths / 10)
        parts += [
            f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{y:g}" y2="{y:g}"/>',
            f'<text x="{_LEFT - 6}" y="{y + 4:g}" text-anchor="end">{tenths * 10}</text>',
            f'<text x="{x:g}" y="{_bottom() + 16}" text-anchor="middle">{tenths * 10}</text>',
        ]
    middle = _TOP + _SIDE / 2
    return [
        *parts,
        f'<text x="{_LEFT + _SIDE / 2:g}" y="{_bottom() + 33}" text-anchor="middle">'
        "confidence %</text>",
        f'<text x="12" y="{middle:g}" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle:g})">accuracy %</text>',
    ]


def _bars(calibration: Calibration) -> list[str]:
    """Return a bar of accuracy and a mark at the mean confidence for each bin with pixels."""
    parts = []
    accuracy, confidence = calibration.accuracy, calibration.mean_confidence
    for number in np.flatnonzero(calibration.counts):
        x, right = _LEFT + number * _BIN, accuracy[number]
        y, level = _TOP + _SIDE * (1 - right), _TOP + _SIDE * (1 - confidence[number])
        tooltip = f"confidence {confidence[number]:.1%}: {right:.1%} right"
        parts += [
            f'<rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" width="{_BIN - 2:.1f}" '
            f'height="{_SIDE * right:.1f}"><title>{tooltip}</title></rect>',
            f'<line class="ideal" x1="{x:.1f}" x2="{x + _BIN:.1f}" y1="{level:.1f}" '
            f'y2="{level:.1f}"/>',
        ]
    return parts


def _shares(calibration: Calibration) -> list[str]:
    shares = calibration.counts / calibration.counts.sum()
    largest = shares.max()
    return [
        f'<rect class="share" x="{_LEFT + number * _BIN + 1:.1f}" '
        f'y="{_bottom() - _STRIP * share / largest:.1f}" width="{_BIN - 2:.1f}" '
        f'height="{_STRIP * share / largest:.1f}"><title>{share:.1%} of the pixels</title></rect>'
        for number, share in enumerate(shares)
        if share
    ]


def _bottom() -> int:
    return _TOP + _SIDE + _GAP + _STRIP


def summary(report: Report) -> str:
    """Return the table of the main metrics, one row per target."""
    heads = [
        "target",
        "seen or unseen",
        "mIoU %",
        f"{LEVEL:.0%} interval",
        *(f"mIoU-{name}" for name in CLASS_SET_NAMES[1:]),
        "pixel accuracy %",
        "ECE %",
        "AUROC %",
        "images",
        "split",
    ]
    rows = [(name, _summary_row(domain)) for name, domain in report.domains.items()]
    for seen, average in report.averages.items():
        count = [seen_in_words(of) for of in report.seen.values()].count(seen)
        if count > 1:
            first, *others = (percent(miou) for miou in average.values())
            mean = [cell(seen), cell(first, "main"), cell(""), *map(cell, others), *[cell("")] * 5]
            rows.append((f"mean of the {count} {seen} targets", mean))
    return table("Scores by target", heads, rows)


def _summary_row(domain: DomainReport) -> list[str]:
    scores, calibration = domain.result.scores, domain.result.calibration
    low, high = domain.interval
    return [
        cell(seen_in_words(domain.result.seen)),
        cell(percent(scores.miou), "main"),
        cell(f"{percent(low)} to {percent(high)}"),
        *(cell(percent(scores.miou_by_set[name])) for name in CLASS_SET_NAMES[1:]),
        cell(percent(scores.pixel_accuracy)),
        cell(percent(calibration.ece)),
        cell(percent(calibration.auroc)),
        cell(f"{scores.images:,}"),
        cell(domain.result.split),
    ]


def by_class(report: Report) -> str:
    """Return the table of IoU by class, one column per target."""
    scores = report.scores
    heads = [f"{name} ({seen_in_words(seen)})" for name, seen in report.seen.items()]
    rows = [(name, [bar(of.iou[name]) for of in scores.values()]) for name in CLASS_NAMES]
    rows.append(("mean", [bar(of.miou) for of in scores.values()]))
    return table("IoU % by class and target", ["class", *heads], rows)


def details(scores: Scores) -> str:
    """Return the table of metrics by class, for the classes that occur or are predicted."""
    heads = ["class", "IoU %", "precision %", "recall %", "share of the pixels %"]
    seen = [n for n in CLASS_NAMES if scores.iou[n] is not None or scores.precision[n] is not None]
    columns = scores.iou, scores.precision, scores.recall, scores.frequency
    rows = [(name, [bar(column[name]) for column in columns]) for name in seen]
    return table("Classes", heads, rows)


def confusion(matrix: ConfusionMatrix) -> str:
    """Return the confusion matrix in percent of each true class, one row per class that occurs."""
    rows = np.flatnonzero(matrix.occurs).tolist()
    columns = np.flatnonzero(matrix.occurs | (matrix.predicted > 0)).tolist()
    heads = ["true class", *(CLASS_NAMES[column] for column in columns)]
    body = [(CLASS_NAMES[row], [_heat(matrix, row, column) for column in columns]) for row in rows]
    caption = (
        "Confusion matrix: predicted classes (columns) in % of the pixels of a true class (row)"
    )
    return f'<div class="confusion">{table(caption, heads, body)}</div>'


def _heat(matrix: ConfusionMatrix, row: int, column: int) -> str:
    pixels = int(matrix.counts[row, column])
    share = pixels / int(matrix.truth[row])
    tooltip = (
        f"{CLASS_NAMES[row]} predicted as {CLASS_NAMES[column]}: {share:.2%}, {pixels:,} pixels"
    )
    shown = f"{100 * share:.0f}" if share >= 0.005 else ""
    return f'<td class="heat" style="--v:{share:.3f}" title="{tooltip}">{shown}</td>'


def confidence(calibration: Calibration) -> str:
    """Return the table of the values in the reliability diagram."""
    shares = calibration.counts / calibration.counts.sum()
    columns = calibration.mean_confidence, calibration.accuracy, shares
    rows = [
        (f"{number + 1}", [cell(percent(column[number])) for column in columns])
        for number in np.flatnonzero(calibration.counts)
    ]
    heads = ["bin", "mean confidence %", "accuracy %", "share of the pixels %"]
    return table("Bins of confidence", heads, rows)


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
        f"<section><h2>Scores</h2>{summary(report)}"
        '<p class="note">mIoU is the mean over the classes that occur in the labels; mIoU-19, -16 '
        "and -13 are means over the classes of the fixed set that occur or are predicted. A domain "
        "is seen if the network was trained on any of its images; no mean mixes seen and unseen "
        "domains. The interval is a bootstrap over images; it does not cover the variation between "
        "trainings. ECE is the expected calibration error; AUROC is that of detecting errors by "
        f"low confidence, 50 being chance.</p>{by_class(report)}</section>"
    )


def _target(anchor: str, domain: DomainReport, examples: Examples) -> str:
    result = domain.result
    return (
        f'<section id="{anchor}"><h2>{escape(result.name)}</h2>'
        f"<p>{result.scores.images:,} images of the split '{escape(result.split)}', "
        f"{result.scores.pixels:,} labelled pixels; mIoU {percent(result.scores.miou)} %. "
        f"{_SEEN[result.seen]}{_trained(result)}</p>"
        f"{details(result.scores)}"
        f"<h3>Confusion matrix</h3>{confusion(result.matrix)}"
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
        f"<div>{confidence(calibration)}</div></div>"
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


__all__ = ["DATA", "PAGE", "Report", "evaluate_run", "report_folder"]

DATA = "report.json"
PAGE = "report.html"
PROTOCOL = "paper-train"
"""Default protocol of a checkpoint that names none."""
_EXAMPLES = 3
"""Maximum number of worst examples, and of best examples, per target."""
_ROOM = 10
"""Maximum number of worst, and of best, examples of all targets; it keeps a page below 5 MB."""


@dataclass(frozen=True)
class _Subject:
    """A predictor with its targets and origin."""

    predictor: Predictor
    targets: list[Target]
    origin: Origin

    @classmethod
    def load(
        cls,
        run: str,
        targets: Sequence[str],
        protocol: str | None,
        precision: Precision,
        compile: bool,
        device: str,
        on_event: Listener,
    ) -> "_Subject":
        if protocol:
            get_protocol(protocol)  # fail before loading anything
        checkpoint = checkpoint_of(run, on_event=on_event)
        segmenter, config = load_checkpoint(checkpoint)
        protocol = protocol or protocol_of(config, PROTOCOL)
        training = config.get("training", {})
        wanted = tuple(dict.fromkeys(targets or training.get("targets", ())))
        if not wanted:
            raise ConfigError(
                "no target is given, and the run has none.", "Name targets with --targets."
            )
        draw_missing(wanted, on_event)
        trained_on = TrainedOn.of_checkpoint(config, _samples(checkpoint))
        chosen = [load_target(text, trained_on) for text in wanted]
        for target in chosen:
            if warning := target.warning():
                on_event(Notice(warning, warning=True))
        predictor = Predictor(
            segmenter,
            device=device,
            protocol=get_protocol(protocol),
            precision=precision,
            compile=compile,
            on_event=on_event,
        )
        return cls(predictor, chosen, Origin.of(checkpoint, protocol, predictor, precision))

    def galleries(self) -> dict[str, Gallery]:
        """Return an empty gallery for each target."""
        count = max(1, min(_EXAMPLES, _ROOM // len(self.targets)))
        has_memory = self.predictor.segmenter.memory is not None
        return {
            target.name: Gallery(
                count,
                [s.id for s in spread(target.samples, SAMPLES_PER_DOMAIN)] if has_memory else [],
            )
            for target in self.targets
        }

    def score(self, galleries: Mapping[str, Gallery], on_event: Listener) -> Report:
        domains = {}
        for target in self.targets:
            result = evaluate_domain(
                self.predictor,
                target,
                gallery=galleries.get(target.name),
                on_event=on_event,
                task=f"scoring {target.name}",
            )
            digest = PreparedDataset.open(Selection.parse(target.name).dataset).summary["digest"]
            interval = bootstrap_interval(result.images, level=LEVEL)
            domains[target.name] = DomainReport(result, digest, interval)
        return Report(self.origin, domains)

    def pictures(self, galleries: Mapping[str, Gallery], on_event: Listener) -> Pictures:
        predictions = {name: gallery.predictions for name, gallery in galleries.items()}
        memory = memory_pictures(
            self.predictor, self.targets, predictions=predictions, on_event=on_event
        )
        return Pictures({name: of.examples() for name, of in galleries.items()}, memory)


def evaluate_run(
    run: str,
    targets: Sequence[str] = (),
    *,
    protocol: str | None = None,
    precision: Precision = "float32",
    compile: bool = False,
    device: str = "auto",
    output: Path | None = None,
    pictures: bool = True,
    on_event: Listener = ignore,
) -> Report:
    """Evaluate the last checkpoint of a run.

    Args:
        run: Name or path of a run, checkpoint or Hub model, as for `checkpoint_of`.
        targets: Targets as `dataset[:domain][@split]`; empty for the targets of the run.
        protocol: Protocol as for `get_protocol`; None for the checkpoint's own, or else
            "paper-train".
        precision: Floating-point type of the network's convolutions.
        compile: Whether torch compiles the network.
        device: Device name, as for `Predictor`.
        output: New folder for `report.json` and `report.html`; None to write no report.
        pictures: Whether `report.html` shows the worst and best images and the memory.
        on_event: Callback for progress events and warnings.

    Raises:
        ConfigError: A target or the protocol does not exist, there are no targets, or `output`
            exists and is not empty.
        DataError: The run or the data of a target are missing or damaged.
        MachineError: The device is missing, `output` is not writable, or compilation fails.
    """
    if output and output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{output} exists already.", "Choose another '--output'.")
    subject = _Subject.load(run, targets, protocol, precision, compile, device, on_event)
    # Create the folder first, so that an unwritable folder fails before the evaluation.
    with staged_folder(output) if output else nullcontext() as folder:
        galleries = subject.galleries() if folder and pictures else {}
        report = subject.score(galleries, on_event)
        if folder:
            shown = subject.pictures(galleries, on_event) if galleries else None
            page = as_html(report, shown)
            write_whole(folder / DATA, report.as_text().encode())
            write_whole(folder / PAGE, page.encode())
    return report


def _samples(checkpoint: Path) -> dict[str, Any] | None:
    """Return the `samples.json` of a checkpoint's run, or None if it is missing or damaged."""
    try:
        return read_json_object(run_folder(checkpoint) / "samples.json", 16 * LARGEST)
    except DataError:
        return None


def report_folder(checkpoint: Path, protocol: str) -> Path:
    """Return the default folder of a report created now."""
    name = f"{protocol}-{datetime.now():%Y%m%d-%H%M%S}"
    return run_folder(checkpoint) / "eval" / name
