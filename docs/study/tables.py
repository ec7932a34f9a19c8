"""Rebuild the tables of docs/study.md from the JSON files in this folder.

Run `python docs/study/tables.py`. A table stands between `<!-- KIND NAME -->` and `<!-- end -->`.
The kinds `variants` and `classes` show the study NAME.json, all others NAME/results.json.
"""

import json
import re
from pathlib import Path
from statistics import fmean

from pinmem_core.evaluation.bootstrap import student_interval
from pinmem_core.study.table import StudyTable
from pinmem_core.study.writers import classes_as_markdown, variants_as_markdown

_SOURCES, _UNSEEN = ("@val",), ("0001TP", "idd-lite")
_SCORED = _SOURCES, ("0001TP",), ("idd-lite",), _UNSEEN
_KINDS = "head", "mixed", "placebo", "linear", "memory alone"
_DRIVES = {"dusk": "0001TP"} | {drive: drive for drive in ("0006R0", "0016E5", "Seq05VD")}
HERE = Path(__file__).parent
PAGE = HERE.with_suffix(".md")
_PLACE = re.compile(r"(<!-- ([a-z]+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """Return the page with its tables made anew."""
    return _PLACE.sub(lambda found: f"{found[1]}{_table(found[2], found[3])}{found[4]}", page)


def _table(kind: str, name: str) -> str:
    if kind in _MAKERS:
        records = json.loads((HERE / name / "results.json").read_text(encoding="utf-8"))
        return _MAKERS[kind](records)
    study = StudyTable.model_validate(
        json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    )
    if kind == "variants":
        return variants_as_markdown(study)
    (target,) = next(iter(study.rows.values())).targets
    return classes_as_markdown(study, target)


def _use(records: list[dict]) -> str:
    """Return one row for each model: what `pinmem eval --memory` measured."""
    lines = [
        "| model | unseen domain, images | R² | entropy / ln K | gate | slots written | mIoU "
        "| with the mean read | cost, 95% interval | used |",
        f"|{' --- |' * 10}",
    ]
    for of in records:
        low, cost, high = (f"{100 * of[key]:+.2f}" for key in ("low", "cost", "high"))
        lines.append(
            f"| `{of['model']}`: {of['about']} | {of['target']}, {of['images']} | {of['r2']:.4f} "
            f"| {of['entropy']:.3f} | {of['gate']:.3f} | {of['coverage']:.0%} "
            f"| {100 * of['miou']:.2f} | {100 * of['miou_of_mean']:.2f} "
            f"| {cost} ({low} to {high}) | {'yes' if of['used'] else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def _uses(records: list[dict]) -> str:
    """Return one row for each variant of each study: what the instrument says of its networks."""
    lines = [
        "| variant | networks | R² | entropy / ln K | gate | mIoU | with the mean read "
        "| cost, Student's t | largest cost | used |",
        f"|{' --- |' * 10}",
    ]
    for study, variant in dict.fromkeys((of["study"], of["variant"]) for of in records):
        runs = [of for of in records if (of["study"], of["variant"]) == (study, variant)]
        costs = [100 * of["cost"] for of in runs]
        seeds = [
            fmean(cost for cost, of in zip(costs, runs, strict=True) if of["seed"] == seed)
            for seed in sorted({of["seed"] for of in runs})
        ]
        cells = [
            f"`{study}/{variant}`",
            str(len(runs)),
            *(_range([of[key] for of in runs]) for key in ("r2", "entropy", "gate")),
            *(f"{100 * fmean(of[key] for of in runs):.1f}" for key in ("miou", "miou_of_mean")),
            f"{fmean(costs):+.2f} ({_ends(student_interval(seeds) or (0, 0))})",
            f"{max(costs):+.2f}",
            f"{sum(of['used'] for of in runs)} of {len(runs)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):.3f} to {max(known):.3f}" if known else ""


def _memories(groups: dict) -> str:
    return "\n".join(_memory(*group) for group in groups.items())


def _memory(title: str, group: dict) -> str:
    """Return one row for each arm: its scores, or its differences to the plain arm."""
    runs = group["runs"]
    lines = [
        f"{title}:\n",
        f"| arm | {' | '.join(runs)} | mean | 95% interval | Student's t | better in |",
        f"| --- |{' --- |' * (len(runs) + 4)}",
    ]
    for arm in next(iter(runs.values()))[0]["miou"]:
        if arm not in group["against_plain"]:
            scores = [fmean(run["miou"][arm] for run in of) for of in runs.values()]
            cells = [f"{score:.1f}" for score in [*scores, fmean(scores)]] + [""] * 3
        else:
            found = group["against_plain"][arm]
            cells = [f"{found[name]['difference']:+.2f}" for name in [*runs, "all"]]
            for end in ("bootstrap", "student"):
                cells.append(" to ".join(f"{value:+.1f}" for value in found["all"][end]))
            cells.append(found["all"]["positive"])
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    for name in next(iter(runs.values()))[0]["share_error"]:
        errors = [fmean(run["share_error"][name] for run in of) for of in runs.values()]
        cells = [f"{error:.2f}" for error in [*errors, fmean(errors)]]
        lines.append(f"| wrong shares, {name} | {' | '.join(cells)} | | | |")
    return "\n".join(lines) + "\n"


def _arms(records: list[dict]) -> str:
    """Return one row for each arm: its seeds, and the paired difference to the first arm."""
    lines = [
        "| arm | trained parameters | iterations | CPU s, of each, of all | peak GB | sources, val "
        "| dusk | IDD-Lite | unseen | difference, sources | difference, unseen |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    reference = {run["seed"]: run for run in records if run["arm"] == records[0]["arm"]}
    for arm in dict.fromkeys(record["arm"] for record in records):
        runs = [record for record in records if record["arm"] == arm]
        first, seconds = runs[0], [run["cpu_seconds"] for run in runs]
        each, whole = (
            fmean(of[key] for of in seconds) for key in ("per_iteration", "start_to_last_iteration")
        )
        lines.append(
            f"| `{arm}` | {first['trained_parameters'] / 1e6:.2f} M | {first['iterations']} "
            f"| {each:.2f}, {whole:.0f} | {max(run['peak_rss_gb'] for run in runs):.1f} | "
            + " | ".join(_seeds([_mean(run, ends) for run in runs]) for ends in _SCORED)
            + "".join(f" | {_difference(runs, reference, ends)}" for ends in (_SOURCES, _UNSEEN))
            + " |"
        )
    return "\n".join(lines) + "\n"


def _drives(records: list[dict]) -> str:
    """Return one row for each drive that was left out: two arms and their difference."""
    first, second = dict.fromkeys(record["arm"] for record in records)
    lines = [
        f"| left out | target | `{first}` | `{second}` | difference |",
        "| --- | --- | --- | --- | --- |",
    ]
    folds = dict.fromkeys(record["fold"] for record in records)
    scored = [
        (fold, target) for fold in folds for target in (_DRIVES[fold], "idd-lite", "sources, val")
    ]
    values = {
        (record["arm"], record["seed"], record["fold"], target): _mean(
            record, _SOURCES if target == "sources, val" else (target,)
        )
        for record in records
        for target in (_DRIVES[record["fold"]], "idd-lite", "sources, val")
    }
    seeds = sorted({record["seed"] for record in records})
    means = [
        ("all", "unseen", [s for s in scored if s[1] != "sources, val"]),
        ("all", "sources, val", [s for s in scored if s[1] == "sources, val"]),
    ]
    for fold, target, of in [*((*one, [one]) for one in scored), *means]:
        each = {
            arm: [fmean(values[arm, seed, *one] for one in of) for seed in seeds]
            for arm in (first, second)
        }
        found = [b - a for a, b in zip(each[first], each[second], strict=True)]
        lines.append(
            f"| {fold} | {target} | {_seeds(each[first])} | {_seeds(each[second])} "
            f"| {fmean(found):+.1f} ({_ends(student_interval(found))}) |"
        )
    return "\n".join(lines) + "\n"


def _mixtures(results: dict) -> str:
    """Return one row for each network and rule, with the means over seeds."""
    names = [*results["runs"][0]["miou"]][-2:]
    lines = [
        "| network | β and k chosen with | β; k | dusk | IDD-Lite | mixture - network "
        "| mixture - linear |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, rule in dict.fromkeys((run["arm"], run["validated with"]) for run in results["runs"]):
        runs = [r for r in results["runs"] if (r["arm"], r["validated with"]) == (arm, rule)]
        chosen = (", ".join(f"{run[key]:g}" for run in runs) for key in ("beta", "neighbours"))
        scores = (
            ", ".join(f"{fmean(run['miou'][name][kind] for run in runs):.1f}" for kind in _KINDS)
            for name in names
        )
        averages = (
            results["differences"][f"{arm}, {rule}, mixed - {other}"]["average"]
            for other in ("head", "linear")
        )
        differences = (
            f"{of['mean']:+.1f} ({_ends(of['bootstrap'])}; {_ends(of['student'])})"
            for of in averages
        )
        cells = f"`{arm}`", rule, "; ".join(chosen), *scores, *differences
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _averages(results: dict) -> str:
    """Return one row for each fold and target: last weights, average, and their difference."""
    lines = [
        "| left out | target, images | last weights | average | difference, of each seed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key, found in results["differences"].items():
        fold, target = key.split(": ")
        last, average = (
            fmean(of[kind] for of in results["miou"][key].values()) for kind in ("last", "average")
        )
        lines.append(
            f"| {fold} | {target}, {found['images']} | {last:.1f} | {average:.1f} | "
            f"{found['mean']:+.2f} ({_ends(found['bootstrap'])}; {_ends(found['student'])}), "
            f"{', '.join(f'{value:+.2f}' for value in found['seeds'])} |"
        )
    return "\n".join(lines) + "\n"


def _networks(records: list[dict]) -> str:
    """Return one row for each network, of one run."""
    lines = [
        "| network | trained by | iterations | minutes | sources, val | dusk | IDD-Lite |",
        f"|{' --- |' * 7}",
    ]
    for of in records:
        miou, drives = of["miou"], ("0006R0", "0016E5", "Seq05VD")
        scores = (
            fmean(miou[f"camvid:{drive}@val"] for drive in drives),
            miou["camvid:0001TP"],
            miou["idd-lite@val"],
        )
        cells = of["network"], of["by"], f"{of['iterations']:,}", of["minutes"] or ""
        lines.append(f"| {' | '.join([*map(str, cells), *(f'{each:.1f}' for each in scores)])} |")
    return "\n".join(lines) + "\n"


def _own(records: list[dict]) -> str:
    """Return one row for each pair of folders: three arms, and the differences to the first."""
    lines = [
        "| trained on, scored on | ImageNet weights | `--from starter` | difference "
        "| and `optim.initial_share=0.5` | difference |",
        f"|{' --- |' * 6}",
    ]
    pairs = [*dict.fromkeys((of["north"], of["south"]) for of in records)]
    seeds = sorted({of["seed"] for of in records})
    rows = {", ".join(pair): [pair] for pair in pairs} | ({"all": pairs} if len(pairs) > 1 else {})
    for name, wanted in rows.items():
        of = [record for record in records if (record["north"], record["south"]) in wanted]
        means = {
            arm: [fmean(record[arm] for record in of if record["seed"] == seed) for seed in seeds]
            for arm in ("imagenet", "starter", "mean")
        }
        cells = [name, _seeds(means["imagenet"])]
        for arm in ("starter", "mean"):
            found = [a - b for a, b in zip(means[arm], means["imagenet"], strict=True)]
            cells += [_seeds(means[arm]), f"{fmean(found):+.1f} ({_ends(student_interval(found))})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ends(interval: list[float]) -> str:
    return "{:+.1f} to {:+.1f}".format(*interval)


def _mean(run: dict, ends: tuple[str, ...]) -> float:
    return fmean(value for name, value in run["miou"].items() if name.endswith(ends))


def _difference(runs: list[dict], reference: dict[int, dict], ends: tuple[str, ...]) -> str:
    """Return the mean difference over seeds with Student's 95 % interval."""
    pairs = [(run, reference[run["seed"]]) for run in runs if run["seed"] in reference]
    differences = [_mean(run, ends) - _mean(other, ends) for run, other in pairs]
    if not any(differences):
        return ""
    interval = student_interval(differences)
    shown = f" ({interval[0]:+.1f} to {interval[1]:+.1f})" if interval else ""
    return f"{fmean(differences):+.1f}{shown}"


def _seeds(values: list[float]) -> str:
    each = f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{each}"


_MAKERS = {
    "arms": _arms,
    "averages": _averages,
    "drives": _drives,
    "memory": _memories,
    "mixtures": _mixtures,
    "networks": _networks,
    "own": _own,
    "use": _use,
    "uses": _uses,
}

if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
