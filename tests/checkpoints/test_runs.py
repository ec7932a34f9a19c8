"""The runs on this machine, the newest one, and names that are never asked of the Hub."""

import json
import os
import shlex
import time

import pytest
from conftest import Result

from pinmem_core.checkpoints.hub import is_local_path, model_summary
from pinmem_core.checkpoints.runs import list_runs
from pinmem_core.errors import DataError
from pinmem_core.locks import hold_lock, is_locked
from pinmem_core.paths import newest_run, register_run, runs_root

SOURCES = ["mine:a", "mine:b"]


def make_run(folder, *, sources=SOURCES, snapshot=None, scores=None, age=0, **config):
    folder.mkdir(parents=True)
    settings = {"method": "pinmem", "sources": sources, "iterations": 40, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    if snapshot is not None:
        (folder / "snapshots" / f"{snapshot:08}").mkdir(parents=True)
    if scores is not None:
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "config.json").write_text("{}")
        phases = {"source": {}, "target": {}}
        for name, (phase, seen, miou) in scores.items():
            phases[phase][name] = {"seen": seen, "miou": miou, "images": 3, "iou": {"road": miou}}
        (folder / "scores.json").write_text(json.dumps({"protocol": "paper-train", **phases}))
    then = time.time() - age
    for path in (*folder.glob("*.json"), folder):
        os.utime(path, (then, then))
    return folder


SCORES = {
    "mine:a@val": ("source", True, 0.5),
    "mine:b@val": ("source", True, 0.7),
    "mine:c": ("target", False, 0.4),
    "mine:d": ("target", False, 0.2),
    "mine:e": ("target", None, 0.9),
}


def test_without_runs_the_list_says_how_to_make_one():
    shown = Result("runs")
    assert shown.code == 0 and shown.out == "no runs\n"
    assert shown.err == "next: pinmem train --recipe demo\n"
    assert Result("runs", "--json").json == {"schema_version": 1, "runs": []}


def test_a_finished_run_has_its_numbers_of_parameters():
    run = make_run(runs_root() / "done", scores=SCORES)
    counts = {"trained": 3, "total": 7}
    (run / "checkpoint" / "config.json").write_text(json.dumps({"parameters": counts}))
    make_run(runs_root() / "begun", snapshot=20, age=120)
    listed = {of["name"]: of["parameters"] for of in Result("runs", "--json").json["runs"]}
    assert listed == {"done": counts, "begun": {}}


def test_runs_are_listed_with_state_scores_and_age(tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    root = runs_root()
    make_run(root / "done", scores=SCORES, age=3 * 3600)
    make_run(root / "begun", snapshot=20, age=120, classes="idd-level1")
    common = {"label_space": {"name": "idd-level1"}}  # which the sources have in common
    make_run(root / "seven", snapshot=10, age=240, classes=None, model=common)
    make_run(root / "torn", iterations="many", age=5 * 86400)
    make_run(root / "no-checkpoint", scores=SCORES, age=6 * 86400)
    (root / "no-checkpoint" / "checkpoint" / "config.json").unlink()
    elsewhere = make_run(tmp_path / "else where", scores={}, age=4 * 86400)
    register_run(elsewhere, part_of="study")
    make_run(root / "shown", sources=["demo:arcade", "demo:toytown@val"], scores={}, age=9 * 86400)
    (root / "a file").write_text("")
    (root / "a folder").mkdir()

    shown = Result("runs")
    rows = {line.split("  ")[0]: line for line in shown.out.splitlines()[1:-1]}
    assert list(rows) == [
        "begun", "seven", "done", f"{elsewhere} (study)", "torn", "no-checkpoint", "shown (demo)"
    ]  # fmt: skip
    assert "unfinished, iteration 20 of 40" in rows["begun"] and "2 min" in rows["begun"]
    assert all("mine:a, mine:b (idd-level1)" in rows[name] for name in ("begun", "seven"))
    assert rows["done"].split()[-4:] == ["30.0", "60.0", "3", "h"]
    assert "damaged" in rows["torn"] and "damaged" in rows["no-checkpoint"]
    assert shown.err == "next: pinmem train --resume begun\n"

    first = Result("runs", "--json").json["runs"][0]
    assert (first["state"], first["iteration"], first["iterations"]) == ("unfinished", 20, 40)
    done = next(run for run in Result("runs", "--json").json["runs"] if run["name"] == "done")
    assert [score["seen"] for score in done["scores"]] == [False, False, None, True, True]
    assert done["iteration"] == 40


def test_a_run_that_a_process_trains_is_running():
    run = make_run(runs_root() / "now", snapshot=10)
    with hold_lock(run / ".lock", "the run"):
        (info,) = list_runs()
        assert info.state == "running" and is_locked(run / ".lock")
        assert "running, iteration 10 of 40" in Result("runs").out
    assert not is_locked(run / ".lock") and list_runs()[0].state == "unfinished"


def test_the_next_command_after_the_list_names_the_newest_run(tmp_path):
    make_run(runs_root() / "my run", scores={"mine:a@val": ("source", True, 0.5)}, age=10)
    command = Result("runs").err.removeprefix("next: ")
    assert shlex.split(command) == ["pinmem", "eval", "my run", "--targets", "mine:a@val"]


def test_the_last_run_is_neither_of_the_demo_nor_of_a_sweep(tmp_path):
    mine = make_run(tmp_path / "mine", scores={})
    register_run(mine)
    for name, part_of in (("demo", "demo"), ("sweep", "study")):
        register_run(tmp_path / name, part_of=part_of)  # before it starts
        make_run(tmp_path / name, scores={})
        register_run(tmp_path / name)
    register_run(make_run(tmp_path / "recipe-demo", sources=["demo:arcade"], scores={}))
    assert newest_run() == mine
    (mine / "config.json").write_text('{"sources": ["demo", "mine:a"]}')
    assert newest_run() == mine
    (mine / "config.json").unlink()
    mine.rename(tmp_path / "gone")
    with pytest.raises(DataError, match="demo and of sweeps do not count") as error:
        newest_run()
    assert "pinmem runs" in error.value.hint


def test_the_summary_of_a_model_is_of_its_run_its_report_or_its_card(tmp_path):
    run = make_run(tmp_path / "run", scores=SCORES)
    summary = model_summary(run / "checkpoint")
    assert "40.0 % on mine:c (unseen)" in summary and "50.0 % on mine:a@val (seen)" in summary
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "config.json").write_text('{"iteration": 20, "training": {"iterations": 40}}')
    assert model_summary(shared) == "mIoU unknown (unfinished, iteration 20 of 40)"
    card = """---
model-index:
- name: x
  results:
  - task: {type: image-segmentation}
    dataset: {name: "mine:c", type: mine}
    metrics: [{type: mean_iou, value: 0.25, name: "mIoU, protocol fast"}]
---
# x
"""
    (shared / "README.md").write_text(card)
    assert model_summary(shared) == "mIoU 25.0 % on mine:c (unseen)"
    config = {"sha256": {"weights": "a"}, "iteration": 20, "training": {"iterations": 40}}
    (shared / "config.json").write_text(json.dumps(config))
    report = {
        "checkpoint": {"weights_sha256": "a"},
        "protocol": {"name": "fast", "description": "x"},
        "precision": "float32",
        "targets": {"mine:d": {"seen": None, "split": "val", "images": 2, "miou": 0.5, "iou": {}}},
    }
    (shared / "report.json").write_text(json.dumps(report))
    assert model_summary(shared) == "mIoU 50.0 % on mine:d (unknown)"
    (shared / "report.json").write_text(json.dumps({**report, "checkpoint": {}}))
    assert model_summary(shared) == "mIoU 25.0 % on mine:c (unseen)"
    report["checkpoint"]["weights_sha256"] = "of older weights"
    (shared / "report.json").write_text(json.dumps(report))
    assert model_summary(shared) == "mIoU 25.0 % on mine:c (unseen)"
    (shared / "README.md").write_text("---\nmodel-index: 3\n---\n")
    (shared / "report.json").write_text("{")
    assert "mIoU unknown" in model_summary(shared)


@pytest.mark.parametrize(
    "head",
    [
        "tags: [",
        "a: *unknown",
        "[" * 3000,
        "x: !!python/object/apply:os.system ['id']",
        "model-index: {}",
        "model-index: [{results: [{metrics: [{type: mean_iou, value: [1]}], dataset: {}}]}]",
        "- model-index",
        "2",
    ],
)
def test_a_card_that_is_damaged_gives_no_scores_and_no_error(tmp_path, capsys, head):
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# mine\n")
    assert model_summary(tmp_path) == "mIoU unknown"
    (tmp_path / "README.md").write_text("# without a head\n")
    assert model_summary(tmp_path) == "mIoU unknown"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name", ["./run", "runs/first", "export/model.onnx", "a/b/c", "../x", "no such", "x.onnx"]
)
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "runs").mkdir()
    (tmp_path / "street.png").write_bytes(b"")
    done = Result("predict", "street.png", "--model", name)
    assert done.code == 3 and name in done.err and "asking the Hub" not in done.err


def test_only_user_and_name_are_a_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_local_path("user/name") and not is_local_path("user/name@main")
    (tmp_path / "user").mkdir()
    assert is_local_path("user/name")


def test_a_file_is_no_model_except_an_onnx_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "model.safetensors").write_bytes(b"")
    scored = Result("eval", "model.onnx")
    assert scored.code == 3 and "predict IMAGE --model model.onnx" in scored.err
    assert "pinmem runs" in Result("eval", "model.safetensors").err


def test_a_mean_of_runs_never_mixes_domains_of_different_classes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run = make_run(runs_root() / "done", scores=SCORES)
    scores = json.loads((run / "scores.json").read_text())
    scores["target"]["mine:d"]["label_space"] = "idd-level1"
    (run / "scores.json").write_text(json.dumps(scores))
    row = Result("runs").out.splitlines()[1]
    assert "40.0 (cityscapes-19), 20.0 (idd-level1)" in row and "60.0" in row and "30.0" not in row
    (listed,) = Result("runs", "--json").json["runs"]
    spaces = {score["domain"]: score["label_space"] for score in listed["scores"]}
    assert spaces["mine:d"] == "idd-level1" and {*spaces.values()} == {
        "idd-level1",
        "cityscapes-19",
    }
