"""Tables of the HTML report."""

import numpy as np

from pinmem_core.evaluation.calibration import Calibration
from pinmem_core.evaluation.class_sets import CLASS_SET_NAMES
from pinmem_core.evaluation.markup import bar, cell, percent, table
from pinmem_core.evaluation.report_data import LEVEL, DomainReport, Report
from pinmem_core.evaluation.scores import ConfusionMatrix, Scores
from pinmem_core.labels import CLASS_NAMES
from pinmem_core.models.figures import seen_in_words


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
