"""The numbers of a study's table, and its files, from fabricated reports."""

import csv
import io
import json
import re

import numpy as np
import pytest
from scipy.stats import t as student

from pinmem_core.errors import ConfigError, DataError
from pinmem_core.evaluation.bootstrap import (
    average_paired_interval,
    paired_interval,
    student_interval,
)
from pinmem_core.evaluation.metrics import ConfusionMatrix
from pinmem_core.evaluation.results import ImageResult
from pinmem_core.label_space import CITYSCAPES
from pinmem_core.study import StudyTable, make_table, read_sweep, write_study
from pinmem_core.study.run import Cost, cost_path
from pinmem_core.study.sweep import report_path
from pinmem_core.study.writers import as_csv, as_latex, as_markdown, notes

STUDY = """
title = "100 % of A_b"
recipe = "demo"
seeds = [0, 1, 2]
sources = ["demo:arcade", "demo:toytown"]
targets = ["dusk", "rain"]
baseline = "plain"

[variants.plain]
about = "all domains"

[variants.good]
about = "the method"

[variants.softer]
about = "the method, read softly"
of = "good"
settings = { "model.memory.read" = "softmax" }

[variants.idle]
about = "the method without its part"
placebo_of = "good"
settings = { "optim.lr" = 0.02 }
"""
SKILL = {"plain": 0.5, "good": 0.8, "softer": 0.801, "idle": 0.5}


def image(name, skill, rng):
    """One image of five classes, of which a network has `skill` of the pixels right."""
    truth = np.random.default_rng(int(name)).integers(0, 5, (10, 20)).astype(np.uint8)
    guess = rng.integers(0, 5, truth.shape).astype(np.uint8)
    matrix = ConfusionMatrix()
    matrix.add(truth, np.where(rng.random(truth.shape) < skill, truth, guess))
    return ImageResult(name, matrix.counts)


def saved_image(result):
    """An image as `report.json` has it: the cells of the confusion matrix that are not empty."""
    counts = np.column_stack([result.counts, result.missed]).ravel()
    cells = np.flatnonzero(counts)
    return {"id": result.id, "cells": cells.tolist(), "pixels": counts[cells].tolist()}


def write_report(path, targets, skill, seed, seen, own_classes=()):
    """Write a report as a run of a study has it; some targets have classes of their own."""
    rng = np.random.default_rng([seed, round(1000 * skill)])
    scored = {}
    for target in targets:
        images = [image(str(number), skill, rng) for number in range(8)]
        whole = sum((one.matrix for one in images), ConfusionMatrix())
        classes = [f"class {k}" for k in range(19)] if target in own_classes else CITYSCAPES.names
        scored[target] = {
            "split": "val",
            "dataset_digest": target,
            "miou": whole.miou(),
            "iou": dict(
                zip(
                    classes,
                    [None if np.isnan(iou) else iou for iou in whole.iou.tolist()],
                    strict=True,
                )
            ),
            "per_image": [saved_image(one) for one in images],
            "seen": target in seen,
            "classes": [*classes],
        }
    report = {
        "schema_version": 2,
        "model": path.parent.name,
        "protocol": {"name": "paper-train", "description": "one pass"},
        "precision": "float32",
        "classes": [*CITYSCAPES.names],
        "targets": scored,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report))


def fabricated(folder, text=STUDY, seen=(), own_classes=()):
    """Write all reports of a study, and return the study and its table."""
    path = folder / "study.toml"
    folder.mkdir(exist_ok=True)
    path.write_text(text)
    sweep = read_sweep(path)
    for fold, part in sweep.parts().items():
        for name, seed in part.runs():
            targets = part.scored()
            report = report_path(folder / fold, name, seed)
            known = *targets[: -len(part.targets)], *seen
            write_report(report, targets, SKILL[name], seed, known, own_classes)
    return sweep, make_table(sweep, folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return fabricated(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def table(study):
    return study[1]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 10, 31])
def test_students_interval_is_scipys(count):
    values = np.random.default_rng(count).normal(0.1, 1, count).tolist()
    for level in (0.5, 0.95, 0.99):
        expected = student.interval(
            level, count - 1, np.mean(values), np.std(values, ddof=1) / count**0.5
        )
        assert student_interval(values, level=level) == pytest.approx(expected, rel=1e-9)
    assert student_interval(values[:1]) is None


def test_the_average_interval_resamples_seeds_for_all_targets_and_images_for_each():
    rng = np.random.default_rng(0)
    worse, better = ([image(str(n), skill, rng) for n in range(12)] for skill in (0.5, 0.8))
    pairs = [(worse, better)]
    low, high = paired_interval(worse, better)
    assert average_paired_interval([pairs]) == (low, high)
    narrower = average_paired_interval([pairs] * 8)
    assert narrower[1] - narrower[0] < 0.6 * (high - low)  # independent images: by the root of 8
    same = average_paired_interval([pairs] * 8, names=["dusk"] * 8)
    assert same == pytest.approx((low, high))  # the same images in eight folds
    # The pairs differ by +d and -d in every target: independent draws would average them out.
    mixed = [(worse, better), (better, worse)]
    wide = average_paired_interval([mixed] * 8)
    assert wide[0] < -narrower[0] and wide[1] > narrower[0]


def test_a_difference_is_separated_by_both_intervals_and_never_by_one_seed(tmp_path, table):
    good, softer = table.rows["good"], table.rows["softer"]
    assert good.differences["dusk"].separated and good.differences["dusk"].reference == "plain"
    assert not softer.effects["dusk"].separated
    _, one = fabricated(tmp_path, STUDY.replace("[0, 1, 2]", "[0]"))
    alone = one.rows["good"].differences["dusk"]
    assert alone.interval[0] > 0 and alone.student is None and not alone.separated


def test_the_average_is_over_unseen_targets_only(tmp_path, table):
    assert table.averaged == ("dusk", "rain") and table.head("average").endswith("(unseen)")
    good = table.rows["good"]
    means = np.mean([good.targets[t].values for t in table.averaged], axis=0)
    assert good.average.values == pytest.approx(means)
    assert good.average_difference.values == pytest.approx(
        means - np.mean([table.rows["plain"].targets[t].values for t in table.averaged], axis=0)
    )
    _, mixed = fabricated(tmp_path, seen=("rain",))
    assert mixed.averaged == () and mixed.rows["good"].average is None


def test_placebos_stand_after_their_variant_and_share_its_settings(study):
    sweep, table = study
    assert [*table.rows] == ["plain", "good", "idle", "softer"]
    assert (table.rows["idle"].kind, table.rows["idle"].base) == ("placebo", "good")
    assert (table.rows["softer"].kind, table.rows["softer"].base) == ("ablation", "good")
    good, idle = (sweep.config(name, 0).model_dump() for name in ("good", "idle"))
    assert idle["optim"].pop("lr") != good["optim"].pop("lr") and idle == good
    effect = table.rows["idle"].effects["dusk"]
    theirs = np.subtract(*(table.rows[n].targets["dusk"].values for n in ("good", "idle")))
    assert effect.values == pytest.approx(theirs)
    said = " ".join(notes(table))
    assert "dusk: `good` minus its placebo `idle` is +" in said
    assert "dusk: `good` minus the same networks as `softer` is " in said


def test_a_table_names_missing_runs_and_never_mixes_data(tmp_path):
    sweep, whole = fabricated(tmp_path / "study")
    last = report_path(tmp_path / "study", "good", sweep.seeds[-1])
    text = last.read_text()
    last.unlink()
    missing = f"`good-{sweep.seeds[-1]}`"
    assert missing in " ".join(notes(make_table(sweep, tmp_path / "study")))
    assert missing not in " ".join(notes(whole))
    last.write_text(text.replace('"dataset_digest": "dusk"', '"dataset_digest": "night"'))
    with pytest.raises(DataError, match=f"dusk was prepared with other data for {missing[1:-1]}"):
        make_table(sweep, tmp_path / "study")
    # A card has assigned other classes since, which the digest of the labels does not cover.
    report = json.loads(text)
    source = report["targets"]["demo:arcade@val"]
    source["per_image"][0]["pixels"][0] += 1
    last.write_text(json.dumps(report))
    with pytest.raises(DataError, match="demo:arcade@val was prepared with a card of other 'maps'"):
        make_table(sweep, tmp_path / "study")
    write_report(last, sweep.scored(), 0.8, sweep.seeds[-1], (), own_classes=["dusk"])
    with pytest.raises(DataError, match="dusk is scored by the classes of"):
        make_table(sweep, tmp_path / "study")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('placebo_of = "good"', 'placebo_of = "goods"', "cannot be a placebo of 'goods'"),
        ('placebo_of = "good"', 'placebo_of = "softer"', "cannot be a placebo of 'softer'"),
        ('placebo_of = "good"', 'placebo_of = "idle"', "cannot be a placebo of 'idle'"),
        ('"good"\nsettings', '"good"\nplacebo_of = "good"\nsettings', "cannot be a placebo"),
        (
            "baseline",
            'leave_one_out = true\nfolds = { a = { targets = ["x"] } }\nbaseline',
            "no 'f",
        ),
        ('targets = ["dusk", "rain"]\n', "", "there is no target"),
        ("[variants.plain]", "[folds.a]\nsources = []\n[folds.A]\n[variants.plain]", "same name"),
    ],
)
def test_what_is_wrong_with_arms_and_folds_is_said(tmp_path, old, new, said):
    (tmp_path / "study.toml").write_text(STUDY.replace(old, new, 1))
    with pytest.raises(ConfigError, match=said):
        read_sweep(tmp_path / "study.toml")


def test_what_is_not_separated_is_not_called_a_ranking(table):
    assert table.best == {"dusk": None, "rain": None, "average": None}  # softer is as good
    said = " ".join(notes(table))
    assert "dusk: no variant is separated from all others; the order is not a ranking." in said
    assert "Not separated: `idle` from `plain` (" in said
    assert r"\textbf" not in as_latex(table)


def test_the_best_is_bold_where_it_is_separated_from_all_others(tmp_path):
    text = STUDY[: STUDY.index("[variants.softer]")]
    _, table = fabricated(tmp_path, text)
    assert table.best == dict.fromkeys(("dusk", "rain", "average"), "good")
    latex = as_latex(table)
    assert latex.count(r"\textbf") == 3
    score = table.rows["good"].targets["dusk"].as_text().replace("±", r"$\pm$")
    assert rf"good & 3 & {table.rows['good'].source.as_text()}".replace("±", r"$\pm$") in latex
    assert rf"\textbf{{{score}}}" in latex
    assert r"100 \% of A\_b" in latex and "`" not in latex
    assert latex.count("{") == latex.count("}") and latex.count(r"\begin") == 2
    low, high = (100 * end for end in table.rows["good"].differences["dusk"].interval)
    assert f"& {low:+.1f} to {high:+.1f} &" in latex
    worse = table.model_copy(update={"title": "a--b -1.5"})
    assert r"\caption{a-{}-b $-$1.5: mIoU" in as_latex(worse)
    for part in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert latex.count(part) == 1


@pytest.mark.slow
def test_the_files_hold_every_run_and_its_cost(tmp_path):
    sweep, _ = fabricated(tmp_path)
    cost = Cost(seconds_per_iteration=0.5, memory_bytes=2 * 10**9, device="cuda", jobs=2)
    cost_path(tmp_path, "good", 1).write_text(cost.model_dump_json())
    table = make_table(sweep, tmp_path)
    assert table.rows["good"].costs == (None, cost, None)
    lines = [*csv.DictReader(io.StringIO(as_csv(table)))]
    assert len(lines) == 4 * 3 * 2
    line = next(e for e in lines if (e["variant"], e["seed"], e["target"]) == ("good", "1", "rain"))
    assert float(line["miou"]) == table.rows["good"].targets["rain"].values[1]
    assert (line["seen"], line["seconds_per_iteration"], line["jobs"]) == ("false", "0.5", "2")
    assert "| `good` | 0.5 | 2.00 | cuda | 2 |" in as_markdown(table)
    files = write_study(table, tmp_path)
    assert [file.suffix for file in files] == [".json", ".md", ".tex", ".csv", ".pdf", ".svg"]
    assert StudyTable.model_validate(json.loads(files[0].read_text())) == table
    assert files[-2].read_bytes().startswith(b"%PDF") and b"<svg" in files[-1].read_bytes()
    assert (tmp_path / "study.svg").read_text().count("mean of 2 targets (unseen)")


def test_each_source_is_left_out_in_turn(tmp_path):
    text = STUDY.replace('targets = ["dusk", "rain"]', "leave_one_out = true")
    sweep, table = fabricated(tmp_path, text)
    parts = sweep.parts()
    assert [*parts] == ["without-demo-arcade", "without-demo-toytown"]
    first = parts["without-demo-arcade"]
    assert (first.sources, first.targets) == (("demo:toytown",), ("demo:arcade",))
    assert [*table.folds] == [*parts] and table.columns == ["average"]
    assert table.head("average") == "mean of 2 folds (unseen)"
    of_folds = [
        table.folds[fold].rows["good"].targets[part.targets[0]].values
        for fold, part in parts.items()
    ]
    assert table.rows["good"].average.values == pytest.approx(np.mean(of_folds, axis=0))
    assert table.rows["good"].average_difference.separated
    markdown = as_markdown(table)
    assert "## without-demo-arcade" in markdown and "mean of 2 folds (unseen)" in markdown
    assert {line["fold"] for line in csv.DictReader(io.StringIO(as_csv(table)))} == {*parts}
    assert StudyTable.model_validate(json.loads(json.dumps(table.as_json()))) == table


def test_folds_are_named_in_the_file(tmp_path):
    folds = '[folds.day]\ntargets = ["dusk"]\n[folds.night]\nsources = ["demo:arcade"]\n'
    (tmp_path / "study.toml").write_text(
        STUDY.replace("[variants.plain]", f"{folds}[variants.plain]")
    )
    parts = read_sweep(tmp_path / "study.toml").parts()
    assert parts["day"].sources == ("demo:arcade", "demo:toytown")
    assert (parts["night"].sources, parts["night"].targets) == (("demo:arcade",), ("dusk", "rain"))
    with pytest.raises(ConfigError, match="'folds', which name their own sources"):
        read_sweep(tmp_path / "study.toml", sources=["demo:arcade"])


def test_an_average_never_mixes_targets_of_different_classes(tmp_path):
    text = STUDY.replace('["dusk", "rain"]', '["lite", "dusk", "rain"]')
    _, plain = fabricated(tmp_path / "plain", text, own_classes=["lite"])
    assert plain.averaged == ("dusk", "rain") and {*plain.columns} == {
        *("lite", "dusk", "rain", "average")
    }
    for row in plain.rows.values():
        expected = np.mean([row.targets[name].values for name in ("dusk", "rain")], axis=0)
        assert row.average.values == pytest.approx(tuple(expected))
    _, two = fabricated(tmp_path / "two", own_classes=["dusk"])
    assert two.averaged == () and {*two.columns} == {"dusk", "rain"}
    folds = text.replace("seeds", "leave_one_out = true\nseeds", 1)
    _, over = fabricated(tmp_path / "folds", folds, own_classes=["lite"])
    assert not any("lite" in name for name in over.averaged) and len(over.averaged) == 6


def test_the_mean_of_the_sources_never_mixes_folds_of_different_classes(tmp_path):
    folds = """
[folds.a]
sources = ["demo:arcade"]
[folds.b]
sources = ["demo:toytown"]
[folds.c]
sources = ["demo:cityday"]
"""
    text = STUDY.replace("[variants.plain]", f"{folds}[variants.plain]", 1)
    sweep, table = fabricated(tmp_path, text, own_classes=["demo:arcade@val"])
    of_folds = [table.folds[fold].rows["good"].source.values for fold in "bc"]
    assert table.rows["good"].source.values == pytest.approx(np.mean(of_folds, axis=0))
    assert "The mean of the sources is over b, c: " in " ".join(notes(table))
    assert "mean of the sources" not in " ".join(notes(table.folds["b"]))
    last = sweep.seeds[-1]
    report_path(tmp_path / "a", "good", last).unlink()
    assert last not in make_table(sweep, tmp_path).rows["good"].seeds


def test_an_average_over_folds_that_lacks_one_of_them_has_the_seeds_of_all(tmp_path):
    folds = '[folds.a]\ntargets = ["dusk"]\n[folds.b]\ntargets = ["lite"]\n'
    text = STUDY.replace("[variants.plain]", f"{folds}[variants.plain]", 1)
    sweep, table = fabricated(tmp_path, text, own_classes=["lite"])
    assert table.averaged == ("a: dusk",)
    report_path(tmp_path / "b", "good", sweep.seeds[-1]).unlink()
    assert make_table(sweep, tmp_path).rows["good"].seeds == sweep.seeds[:-1]


def test_folds_with_the_same_target_share_the_draws_of_its_images(tmp_path):
    text = STUDY.replace('targets = ["dusk", "rain"]', 'targets = ["dusk"]')
    folds = '[folds.a]\nsources = ["demo:arcade"]\n[folds.b]\nsources = ["demo:toytown"]\n'
    text = text.replace("[variants.plain]", f"{folds}[variants.plain]", 1)
    _, table = fabricated(tmp_path, text)  # the folds differ in their sources alone
    of_fold = table.folds["a"].rows["good"].differences["dusk"]
    assert table.rows["good"].average_difference.interval == pytest.approx(of_fold.interval)


def test_sources_may_name_a_split_and_be_targets(tmp_path):
    text = STUDY.replace('"demo:arcade"', '"demo:arcade@train"')
    text = text.replace('["dusk", "rain"]', '["demo:arcade@val", "demo:toytown@val"]')
    sweep, table = fabricated(tmp_path, text)
    assert sweep.scored()[:2] == ("demo:arcade@val", "demo:toytown@val")
    row = table.rows["good"]
    expected = np.mean([of.values for of in row.targets.values()], axis=0)
    assert row.source.values == pytest.approx(tuple(expected))


def test_a_bar_in_a_name_is_no_column_of_markdown(tmp_path):
    _, table = fabricated(tmp_path, STUDY.replace("all domains", "road | sky"))
    lines = [line for line in as_markdown(table).splitlines() if line.startswith("|")]
    assert any(r"road \| sky" in line for line in lines)
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]}
    assert len(counts) == 1
