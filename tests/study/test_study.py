"""Studies: what they train, what they leave alone, and what their table says."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result

from pinmem_core.errors import ConfigError, DataError, StoppedRunError
from pinmem_core.evaluation.bootstrap import average_paired_interval, paired_interval
from pinmem_core.evaluation.results import ImageResult
from pinmem_core.locks import hold_lock
from pinmem_core.models import load_checkpoint
from pinmem_core.study import (
    StudyResult,
    StudyTable,
    make_table,
    plan_study,
    read_sweep,
    run_study,
)
from pinmem_core.study.sweep import lock_path, report_path, run_path
from pinmem_core.study.table import SeedScores
from pinmem_core.study.writers import as_markdown

NAMES = "plain", "halfway"
DONE = StudyResult(elsewhere=0, failed={})
STUDY = """
title = "toy"
recipe = "demo"
seeds = [0, 1]
sources = ["toy:red", "toy:blue"]
targets = ["toy:red@all"]
baseline = "plain"

[settings]
iterations = 2
batch = 2
device = "cpu"
allow_seen_targets = true
log_every = 1
"augmentation.crop" = 64
"model.backbone" = "tiny"
"model.feature_dim" = 16
"model.memory.init_batches" = 1

[variants.plain]
about = "all domains in one batch"
settings = { method = "aggregate" }

[variants.paper]
about = "as published"

[variants.halfway]
about = "test-time batch norm"
of = "plain"
settings = { "model.test_time_bn" = 0.5 }

[variants.softer]
about = "read by softmax"
reference = "paper"
settings = { "model.memory.read" = "softmax" }
"""


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def test_runs_share_all_settings_but_those_of_their_variant(sweep_file):
    sweep = read_sweep(sweep_file)
    configs = {name: sweep.config(name, 1).model_dump() for name in sweep.variants}
    assert configs["plain"]["method"] == "aggregate"
    assert configs["softer"]["model"]["memory"]["read"] == "softmax"
    assert all(config["seed"] == 1 and config["targets"] == () for config in configs.values())
    configs["plain"]["method"] = "pinmem"
    configs["softer"]["model"]["memory"]["read"] = "gumbel"
    assert configs["plain"] == configs["paper"] == configs["softer"]
    assert list(sweep.runs())[3:5] == [("softer", 0), ("plain", 1)]
    assert configs["halfway"]["method"] == "aggregate"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('baseline = "plain"', 'baseline = "plane"', "there is no variant 'plane'"),
        ('reference = "paper"', 'reference = "papers"', "there is no variant 'papers'"),
        ('of = "plain"', 'of = "halfway"', "needs a trained variant"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "a seed occurs twice"),
        ('"model.backbone"', '"model.trnk"', "model.trnk"),
        ("title =", "titel =", "title"),
        ("log_every = 1", "minutes = 5", "'minutes' would give the runs .* unequal lengths"),
        ("seeds = [0, 1]", "seeds = [0, 1", "study.toml"),
        ("seeds = [0, 1]", "seeds = [-1]", "seeds.0"),
        ("[variants.plain]", '[variants."../../plain"]', "cannot be the name of a variant"),
        ("[variants.plain]", '[variants."/tmp/plain"]', "cannot be the name of a variant"),
        ("[variants.plain]", '[variants."a\\\\b"]', "cannot be the name of a variant"),
        ("[variants.plain]", '[variants.".plain"]', "cannot be the name of a variant"),
        ("[variants.plain]", '[variants.""]', "cannot be the name of a variant"),
        ("[variants.plain]", f"[variants.{'a' * 101}]", "cannot be the name of a variant"),
        (
            "[variants.plain]",
            '[variants.Paper]\nabout = "x"\n[variants.plain]',
            "are called 'paper'",
        ),
        ("seeds = [0, 1]", f"seeds = {list(range(10_001))}", "10,000 runs"),
        ("iterations = 2", "iterations = 2\nseed = 3", "'seed' is the study's"),
        ('"model.memory.read" =', 'targets = ["toy:blue"], x =', "'targets' is the study's"),
        ('"model.test_time_bn" = 0.5', '"optim.lr" = 0.5', "it trains nothing"),
        ('"model.test_time_bn" = 0.5', "", "same settings as 'plain'"),
        ("seeds = [0, 1]", f"seeds = [{'9' * 5000}]", "study.toml"),
        ("seeds = [0, 1]", f"seeds = {'[' * 5000}", "study.toml"),
    ],
)
def test_what_is_wrong_in_the_file_is_told(sweep_file, old, new, told):
    sweep_file.write_text(STUDY.replace(old, new))
    with pytest.raises(ConfigError, match=told):
        read_sweep(sweep_file)


def test_sources_and_targets_may_be_others_than_the_files(sweep_file):
    sweep = read_sweep(sweep_file, sources=["toy:red"], targets=["toy:blue@all"])
    assert sweep.scored() == ("toy:red@val", "toy:blue@all")
    assert sweep.config("plain", 0).sources == ("toy:red",)


def test_a_study_with_an_unknown_protocol_trains_nothing(sweep_file):
    text = sweep_file.read_text()
    sweep_file.write_text(f'protocol = "paper-tarin"\n{text}')
    with pytest.raises(ConfigError, match="unknown protocol"):
        read_sweep(sweep_file)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sweep(tmp_path / "absent.toml")


@pytest.mark.slow
def test_a_study_is_trained_once_goes_on_and_comes_from_its_reports(sweep_file, tmp_path):
    folder = tmp_path / "study"
    sweep = read_sweep(sweep_file)

    asked = []

    def after_three_iterations():
        asked.append(None)
        return len(asked) > 3

    with pytest.raises(StoppedRunError):
        run_study(sweep, folder, stop=after_three_iterations)
    # A study may go on elsewhere, with other loading processes and another frequency of logging.
    elsewhere = STUDY.replace("log_every = 1", "log_every = 2\nworkers = 1")
    assert elsewhere != STUDY
    sweep_file.write_text(elsewhere)
    sweep = read_sweep(sweep_file)
    with hold_lock(lock_path(folder, "softer", 1), "run softer-1"):
        assert run_study(sweep, folder).elsewhere == 1
    assert not report_path(folder, "softer", 1).exists()
    assert make_table(sweep, folder).rows["softer"].seeds == (0,)

    assert run_study(sweep, folder) == DONE
    written = report_path(folder, "softer", 1).stat().st_mtime_ns
    assert run_study(sweep, folder) == DONE
    assert report_path(folder, "softer", 1).stat().st_mtime_ns == written

    sweep_file.write_text(STUDY.replace("iterations = 2", "iterations = 3"))
    result = Result("train", "--sweep", str(sweep_file), "-o", str(folder))
    assert result.code == 2 and "plain-0 was made with other settings: iterations" in result.err
    sweep_file.write_text(STUDY)
    other = Result(
        "train", "--sweep", str(sweep_file), "-o", str(folder), "--targets", "toy:blue@all"
    )
    assert other.code == 2 and "plain-0 was made with other settings: scored" in other.err

    result = Result("train", "--sweep", str(sweep_file), "-o", str(folder), "--json")
    assert result.code == 0
    table = make_table(sweep, folder)
    assert json.loads((folder / "study.json").read_text()) == table.as_json()
    files = [
        str(folder / f"study.{suffix}") for suffix in ("json", "md", "tex", "csv", "pdf", "svg")
    ]
    added = {"folder": str(folder), "files": files, "failed": {}}
    assert result.json == table.as_json() | added and all(Path(file).exists() for file in files)
    assert list(table.rows) == ["plain", "paper", "halfway", "softer"]
    plain, halfway = (load_checkpoint(run_path(folder, n, 1) / "checkpoint")[0] for n in NAMES)
    assert halfway.config.test_time_bn == 0.5 and plain.config.test_time_bn == 0
    assert all(map(torch.equal, plain.state_dict().values(), halfway.state_dict().values()))
    assert (
        table.rows["halfway"].targets["toy:red@all"] != table.rows["plain"].targets["toy:red@all"]
    )
    of_paper = table.rows["paper"]
    reports = [json.loads(report_path(folder, "paper", s).read_text()) for s in (0, 1)]
    expected = tuple(r["targets"]["toy:red@all"]["miou"] for r in reports)
    assert of_paper.targets["toy:red@all"].values == expected
    assert set(reports[0]["targets"]) == {"toy:red@val", "toy:blue@val", "toy:red@all"}
    difference = table.rows["softer"].differences["toy:red@all"]
    assert difference.reference == "paper"
    soft = table.rows["softer"].targets["toy:red@all"].values
    assert difference.values == tuple(np.subtract(soft, expected))
    assert "| `softer`: read by softmax | 2 |" in (folder / "study.md").read_text()
    assert StudyTable.model_validate(json.loads(json.dumps(table.as_json()))) == table


@pytest.mark.slow
def test_the_plan_shows_the_runs_of_each_fold(sweep_file, tmp_path):
    text = STUDY[: STUDY.index("[variants.paper]")].replace(
        "\ntargets =", "\nleave_one_out = true\n#"
    )
    sweep_file.write_text(text)
    planned = Result("train", "--sweep", str(sweep_file), "-o", str(tmp_path / "s"), "--dry-run")
    assert planned.code == 0, planned.err
    for fold, source in (("red", "blue"), ("blue", "red")):
        line = (
            f"without-toy-{fold}: trained on: toy:{source}; scored on: toy:{source}@val, toy:{fold}"
        )
        assert line in planned.out
        assert f"without-toy-{fold}/plain" in planned.out
    assert "4 of 4 runs to train or to finish" in planned.out
    assert not (tmp_path / "s").exists()


def test_a_study_without_reports_has_no_table(sweep_file, tmp_path):
    with pytest.raises(DataError, match="holds no report"):
        make_table(read_sweep(sweep_file), tmp_path)


def _own_classes_study(path, *, classes, of_variant=""):
    """Write a study of two variants, one of which reuses the network of the other."""
    plain, halfway = (STUDY.index(f"[variants.{name}]") for name in ("plain", "halfway"))
    paper, softer = (STUDY.index(f"[variants.{name}]") for name in ("paper", "softer"))
    text = STUDY[:plain] + STUDY[plain:paper] + STUDY[halfway:softer] + of_variant
    text = text.replace("[0, 1]", "[0]").replace("[settings]", f"[settings]\n{classes}")
    path.write_text(text)
    return read_sweep(path)


@pytest.mark.slow
def test_a_study_in_other_classes_has_a_table_of_these(tmp_path):
    classes = 'classes = "idd-level1"'
    sweep = _own_classes_study(tmp_path / "seven.toml", classes=classes)
    assert run_study(sweep, tmp_path / "study") == DONE
    table = make_table(sweep, tmp_path / "study")
    assert len(table.rows["halfway"].iou["toy:red@all"]) == 7
    assert "living thing" in as_markdown(table) and table.rows["halfway"].differences


def test_variants_in_different_classes_are_refused_before_they_train(tmp_path):
    other = '[variants.seven]\nabout = "seven"\nsettings = { classes = "idd-level1" }\n'
    sweep = _own_classes_study(tmp_path / "mixed.toml", classes="", of_variant=other)
    with pytest.raises(ConfigError, match="of cityscapes-19 for plain, and by those of idd-level1"):
        run_study(sweep, tmp_path / "study")
    with pytest.raises(ConfigError, match="of idd-level1 for seven"):
        plan_study(sweep, only_long=True)
    assert not (tmp_path / "study").exists()


def test_the_interval_over_seeds_is_that_of_one_pair_where_all_are_alike():
    rng = np.random.default_rng(0)

    def results(good):
        images = []
        for number in range(12):
            truth = rng.integers(100, 200, 19)
            hits = (truth * good).astype(np.int64)
            counts = np.diag(hits)
            counts[np.arange(19), (np.arange(19) + 1) % 19] += truth - hits
            images.append(ImageResult(str(number), counts))
        return images

    rng = np.random.default_rng(0)
    first = results(0.5)
    rng = np.random.default_rng(0)
    second = results(0.8)
    one = paired_interval(first, second)
    assert average_paired_interval([[(first, second)] * 3]) == pytest.approx(one)
    low, high = average_paired_interval([[(first, second), (second, first)]])
    assert low < -one[0] and high > one[0]  # one pair or the other may be drawn twice


def test_a_spread_says_mean_and_sample_deviation():
    scores = SeedScores(values=(0.30, 0.32, 0.34))
    assert scores.as_text() == "32.0 ± 2.0"
    assert SeedScores(values=(0.015,)).as_text("+") == "+1.5"


STUDIES = Path(__file__).parents[2] / "docs/study"


def test_the_page_says_what_the_published_studies_found():
    tables = runpy.run_path(str(STUDIES / "tables.py"))
    page = tables["PAGE"].read_text()
    assert tables["filled"](page) == page
    for path in [*STUDIES.glob("*.json"), *(STUDIES / "methods").glob("*.json")]:
        name = path.relative_to(STUDIES).with_suffix("")
        assert f"<!-- variants {name.as_posix()} -->" in page


@pytest.mark.parametrize(
    "path",
    sorted([*STUDIES.glob("*.toml"), *(STUDIES / "methods").glob("*.toml")]),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_the_published_studies_can_be_run(path):
    sweep = read_sweep(path)
    found = path.with_suffix(".json")
    if found.exists():
        assert list(json.loads(found.read_text())["variants"]) == list(sweep.variants)


def test_a_study_on_seen_targets_has_to_accept_them(sweep_file, tmp_path):
    text = sweep_file.read_text().replace("allow_seen_targets = true\n", "")
    sweep_file.write_text(text)
    with pytest.raises(ConfigError, match="trained on toy:red@all, which are targets"):
        run_study(read_sweep(sweep_file), tmp_path / "study")
    assert not (tmp_path / "study" / "runs").exists()
