"""The table of a study as Markdown, LaTeX, CSV, JSON and a plot."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from pinmem_core.documents import json_text
from pinmem_core.evaluation.plots import DifferencePoint, plot_differences
from pinmem_core.evaluation.results import LEVEL
from pinmem_core.files import write_atomic
from pinmem_core.plots import plot_bytes
from pinmem_core.study.table import AVERAGE, Difference, Row, StudyTable

NAME = "study"
_LATEX = str.maketrans(
    {c: rf"\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", '"': r"\textquotedbl{}"}
)
_NAMED = 5
"""Maximum number of missing runs that are named."""
_MINUS = re.compile(r"(?<![\w-])-(?=\d)")
_CSV = (
    "fold", "variant", "kind", "base", "seed", "target", "seen", "miou", "source_miou",
    "seconds_per_iteration", "memory_bytes", "device", "jobs",
)  # fmt: skip


def write_study(table: StudyTable, folder: Path) -> list[Path]:
    """Write a table to `study.json`, `.md`, `.tex` and `.csv`, and its plot to `.pdf` and `.svg`.

    A study without differences has no plot.

    Args:
        table: The table.
        folder: Folder of the study.

    Returns:
        The files.
    """
    texts = {
        "json": json_text(table.as_json(), indent=1) + "\n",
        "md": as_markdown(table),
        "tex": as_latex(table),
        "csv": as_csv(table),
    }
    files = {suffix: text.encode() for suffix, text in texts.items()}
    if panels := difference_panels(table):
        note = f"points of mIoU relative to the variant in brackets; thick: {LEVEL:.0%} by the "
        note += (
            "bootstrap over seeds and images, thin: Student's t over seeds; hollow: not separated"
        )
        figure = plot_differences(panels, table.title, note)
        files |= {form: plot_bytes(figure, form) for form in ("pdf", "svg")}
    paths = {folder / f"{NAME}.{suffix}": content for suffix, content in files.items()}
    for path, content in paths.items():
        write_atomic(path, content)
    return [*paths]


def as_markdown(table: StudyTable) -> str:
    """Return all tables of a study as Markdown, with the sentences of `notes`."""
    parts = []
    for name, part in {"": table, **table.folds}.items():
        parts.append(f"## {name}\n" if name else f"# {table.title}\n")
        parts += [variants_as_markdown(part), "\n".join(f"- {note}" for note in notes(part)) + "\n"]
        parts += [classes_as_markdown(part, t) for t in part.columns if t != AVERAGE]
        if costs := _costs(part):
            parts.append(_markdown(*costs))
    return "\n".join([*parts, f"Protocol: {table.protocol}", ""])


def variants_as_markdown(table: StudyTable) -> str:
    """Return the table of variants, with mIoU in % and differences in points."""
    heads, rows = variant_cells(table)
    names = (f"`{name}`: {row.about}" for name, row in table.rows.items())
    return _markdown(heads, [[name, *cells] for name, cells in zip(names, rows, strict=True)])


def classes_as_markdown(table: StudyTable, target: str) -> str:
    """Return the table of the IoU in % for each class that occurs in a target."""
    by_variant = {name: row.iou[target] for name, row in table.rows.items()}
    classes = [n for n, iou in next(iter(by_variant.values())).items() if iou is not None]
    cells = [
        [f"`{name}`", *(_percent(iou[of]) for of in classes)] for name, iou in by_variant.items()
    ]
    return _markdown([f"IoU %, {target}", *classes], cells)


def variant_cells(table: StudyTable) -> tuple[list[str], list[list[str]]]:
    """Return the headings of the table of variants, and the cells of each row after the first."""
    of_seeds = any(len(row.seeds) > 1 for row in table.rows.values())
    heads = ["variant", "seeds", "sources, val"]
    for column in table.columns:
        heads += [table.head(column), "difference", f"{LEVEL:.0%} interval"]
        heads += ["Student's t"] * of_seeds
    rows = []
    for row in table.rows.values():
        cells = [str(len(row.seeds)), row.source.as_text()]
        for _, scores, difference in row.columns():
            cells.append(scores.as_text())
            if difference is None:
                cells += [""] * (2 + of_seeds)
                continue
            cells.append(f"{difference.as_text('+')} (`{difference.reference}`)")
            cells += [_range(difference.interval), _range(difference.student)][: 1 + of_seeds]
        rows.append(cells)
    return heads, rows


def notes(table: StudyTable) -> Iterator[str]:
    """Yield sentences on what the table shows and does not show."""
    code = "`{}`".format
    yield (
        f"A difference is separated if its {LEVEL:.0%} intervals exclude 0: the bootstrap over "
        "seeds and images, and Student's t over seeds. With one seed, none is."
    )
    if table.missing:
        others = f", and {len(table.missing) - _NAMED} others" * (len(table.missing) > _NAMED)
        named = ", ".join(map(code, table.missing[:_NAMED]))
        yield f"Runs without a report, so that means are over fewer seeds: {named}{others}."
    if table.averaged:
        yield f"The mean is over {', '.join(table.averaged)}."
    if 0 < len(table.sources_averaged) < len(table.folds):
        yield (
            f"The mean of the sources is over {', '.join(table.sources_averaged)}: those of the "
            "other folds are scored in other classes."
        )
    unclear = {
        name: [column for column, _, d in row.columns() if d and not d.separated]
        for name, row in table.rows.items()
    }
    listed = [
        f"{code(name)} from {code(_reference(table.rows[name]))} ({', '.join(columns)})"
        for name, columns in unclear.items()
        if columns
    ]
    compared = any(d for row in table.rows.values() for _, _, d in row.columns())
    if listed:
        yield f"Not separated: {'; '.join(listed)}."
    elif compared:
        yield "All differences are separated."
    for column, best in table.best.items() if len(table.rows) > 1 else ():
        yield (
            f"{column}: {code(best)} is separated from each other variant."
            if best
            else f"{column}: no variant is separated from all others; the order is not a ranking."
        )
    for name, row in table.rows.items():
        for column, effect in row.effects.items():
            what = "its placebo" if row.kind == "placebo" else "the same networks as"
            verdict = "separated" if effect.separated else "not separated"
            yield (
                f"{column}: {code(row.base)} minus {what} {code(name)} is "
                f"{effect.as_text('+')} ({_range(effect.interval)}"
                + (f"; Student's t {_range(effect.student)}" if effect.student else "")
                + f"), {verdict}."
            )


def _reference(row: Row) -> str:
    return next(d.reference for _, _, d in row.columns() if d)


def as_latex(table: StudyTable) -> str:
    r"""Return the table of variants in LaTeX, for `\usepackage{booktabs}`.

    The best mean is bold only if it is separated from each other variant.
    """
    parts = ["% \\usepackage{booktabs}"]
    for name, part in {"": table, **table.folds}.items():
        parts.append(_latex_table(part, f"{table.title}, {name}" if name else table.title))
    return "\n".join([*parts, ""])


def _latex_table(table: StudyTable, title: str) -> str:
    heads, rows = variant_cells(table)
    places = [number for number, head in enumerate(heads) if head == "difference"]
    bold = {
        (list(table.rows).index(best), place - 1)
        for place, column in zip(places, table.columns, strict=True)
        if (best := table.best.get(column))
    }
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        " & ".join(map(_latex, heads)) + r" \\",
        r"\midrule",
    ]
    for number, (name, cells) in enumerate(zip(table.rows, rows, strict=True)):
        texts = [_latex(text.replace("`", "")) for text in (name, *cells)]
        for place in range(len(texts)):
            if (number, place) in bold:
                texts[place] = rf"\textbf{{{texts[place]}}}"
        lines.append(" & ".join(texts) + r" \\")
    caption = " ".join([f"{title}: mIoU in %, mean ± deviation over seeds.", *notes(table)])
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\caption{{{_latex(caption.replace('`', ''))}}}", r"\end{table}"]
    return "\n".join(lines)


def _latex(text: str) -> str:
    """Escape a text; a minus sign stays one, and two hyphens do not become a dash."""
    return _MINUS.sub("$-$", text.translate(_LATEX)).replace("--", "-{}-")


def as_csv(table: StudyTable) -> str:
    """Return one line per run and target, with mIoU in 0..1."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(_CSV)
    for fold, part in (table.folds or {"": table}).items():
        for name, row in part.rows.items():
            costs = row.costs or (None,) * len(row.seeds)
            for number, (seed, cost) in enumerate(zip(row.seeds, costs, strict=True)):
                spent = [""] * 4
                if cost:
                    spent = [*map(str, cost.model_dump().values())]
                    spent = ["" if text == "None" else text for text in spent]
                for target, scores in row.targets.items():
                    seen = part.seen.get(target)
                    run = (fold, name, row.kind or "", row.base or "", seed, target)
                    known = "" if seen is None else str(seen).lower()
                    mious = scores.values[number], row.source.values[number]
                    lines.writerow((*run, known, *mious, *spent))
    return file.getvalue()


def difference_panels(table: StudyTable) -> dict[str, list[DifferencePoint]]:
    """Return the points of the differences by heading of the target or average."""
    panels = {
        table.head(column): [
            _point(f"{name} ({difference.reference})", difference)
            for name, row in table.rows.items()
            for of, _, difference in row.columns()
            if of == column and difference
        ]
        for column in table.columns
    }
    for name, part in table.folds.items():
        panels |= {f"{name}: {head}": points for head, points in difference_panels(part).items()}
    return {head: points for head, points in panels.items() if points}


def _point(name: str, difference: Difference) -> DifferencePoint:
    return DifferencePoint(
        name, difference.mean, difference.interval, difference.student, difference.separated
    )


def _costs(table: StudyTable) -> tuple[list[str], list[list[str]]] | None:
    """Return headings and rows of the table of costs; None if no cost is known."""
    known = {name: [c for c in row.costs if c] for name, row in table.rows.items()}
    rows = []
    for name, costs in known.items():
        if costs:
            memory = [cost.memory_bytes for cost in costs if cost.memory_bytes is not None]
            rows.append(
                [
                    f"`{name}`",
                    f"{mean(cost.seconds_per_iteration for cost in costs):.3g}",
                    f"{max(memory) / 1e9:.2f}" if memory else "-",
                    ", ".join(sorted({cost.device for cost in costs})),
                    ", ".join(map(str, sorted({cost.jobs for cost in costs}))),
                ]
            )
    heads = ["cost", "s/iteration", "peak memory, GB", "device", "runs at once"]
    return (heads, rows) if rows else None


def _range(ends: tuple[float, float] | None) -> str:
    return f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}" if ends else ""


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)
