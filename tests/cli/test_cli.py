"""The command line as users and scripts meet it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, camvid_folder
from PIL import Image

import pinmem_cli.app
from pinmem_cli.output import Output, table
from pinmem_core.images import write_png

TINY = """
    --device cpu --iterations 2 --batch 2 --crop 64 --set model.backbone=tiny --set log_every=1
    --set model.feature_dim=16 --set model.memory.init_batches=1
""".split()  # noqa: SIM905


@pytest.fixture
def run(tmp_path) -> Path:
    out = tmp_path / "run"
    trained = Result("train", "--sources", "toy:red,toy:blue", *TINY, "-o", str(out))
    assert trained.code == 0, trained.err
    return out


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_help_is_quick_and_does_not_import_torch():
    code = (
        "import sys, time; from pinmem_cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "print(time.process_time(), file=sys.stderr)\n"  # whatever else the machine does
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    times = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        times.append(float(done.stderr.splitlines()[0]))
        assert done.returncode == 0, done.stderr
        assert "train" in done.stdout
    assert min(times) < 0.4


@pytest.mark.parametrize(
    "command", [[], ["data"], ["data", "prepare"], ["train"], ["eval"], ["predict"]]
)
def test_every_command_has_help(command):
    for flag in ("--help", "-h"):
        shown = Result(*command, flag)
        assert shown.code == 0 and "Usage" in shown.out


def test_version():
    from pinmem_core import __version__

    assert Result("--version").out.strip() == __version__


def test_prepare_keeps_its_json_contract(tmp_path):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 6})
    (source / "labels" / "0001TP_00002.png").unlink()
    done = Result("data", "prepare", "camvid", "--from", str(source), "--json")
    assert done.code == 0
    data = done.json
    assert set(data) == {
        "schema_version",
        "dataset",
        "root",
        "manifest",
        "counts",
        "excluded",
        "digest",
        "label_space",
    }
    assert data["counts"] == {"train": 4, "val": 1}
    (excluded,) = data["excluded"]
    assert set(excluded) == {"file", "reason"}
    lines = Path(data["manifest"]).read_text().splitlines()
    assert len(lines) == 5
    assert (Path(data["root"]) / json.loads(lines[0])["label"]).exists()


def test_prepare_and_list_and_preview_for_people(tmp_path):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 6})
    done = Result("data", "prepare", "camvid", "--from", str(source))
    assert "train 5, val 1" in done.out and "next: pinmem data preview camvid" in done.err
    assert "camvid" in Result("data", "list").out
    listed = {entry["name"]: entry for entry in Result("data", "list", "--json").json["datasets"]}
    assert listed["camvid"]["prepared"] and not listed["demo"]["prepared"]
    sheet = tmp_path / "sheet.png"
    assert Result("data", "preview", "camvid:0001TP", "-o", str(sheet)).code == 0
    assert Image.open(sheet).width >= 3 * 320


def test_train_eval_and_predict_keep_their_json_contracts(tmp_path, photo):
    out = tmp_path / "run"
    trained = Result(
        "train", "--sources", "toy:red,toy:blue", "--targets", "toy:red@all",
        "--allow-seen-targets", *TINY,
        "-o", str(out), "--json",
    )  # fmt: skip
    data = trained.json
    keys = {"schema_version", "run", "checkpoint", "iterations", "parameters", "scores"}
    assert set(data) == keys and set(data["parameters"]) == {"trained", "total"}
    assert data["iterations"] == 2 and Path(data["checkpoint"]).is_dir()
    assert set(data["scores"]["source"]) == {"toy:red@val", "toy:blue@val"}

    scored = Result("eval", str(out), "--targets", "toy:blue@val", "--json").json
    assert {"schema_version", "targets", "protocol", "checkpoint"} <= set(scored)
    target = scored["targets"]["toy:blue@val"]
    assert {"miou", "iou", "pixels"} <= set(target)
    told = data["scores"]["source"]["toy:blue@val"] | {"split": "val"}
    assert {key: target[key] for key in told} == told
    assert list(target["iou"])[:2] == ["road", "sidewalk"] and len(target["iou"]) == 19
    named = [iou for iou in target["iou"].values() if iou is not None]
    assert target["miou"] == pytest.approx(sum(named) / len(named))

    mask = tmp_path / "mask.png"
    predicted = Result("predict", str(photo), "-o", str(mask), "--json").json
    (written,) = predicted["outputs"]
    told = {"input": str(photo), "output": str(mask), "width": 70, "height": 50}
    assert told.items() <= written.items()
    assert predicted["failed"] == []
    assert Image.open(mask).size == (70, 50)


def test_predict_takes_the_last_run_where_asked_says_so_and_repeats_itself(run, photo, tmp_path):
    masks = []
    for name in ("a.png", "b.png"):
        done = Result(
            "predict", str(photo), "-o", str(tmp_path / name), "--format", "trainid",
            "--model", "last",
        )  # fmt: skip
        assert done.code == 0 and str(run) in done.err and "newest run" in done.err
        assert re.search(r"mIoU \d+\.\d % on toy:\w+@val \(seen\)", done.err)
        masks.append((tmp_path / name).read_bytes())
    assert masks[0] == masks[1]


def test_without_a_model_predict_takes_the_starter_whatever_was_trained(run, photo, tmp_path):
    done = Result("predict", str(photo), "-o", str(tmp_path / "a.png"), "--json")
    assert (done.json["model"], done.json["protocol"]) == ("starter", "photo")
    last = Result("predict", str(photo), "-o", str(tmp_path / "b.png"), "--model", "last", "--json")
    assert Path(last.json["model"]).parent == run and last.json["protocol"] == "fast"


def test_the_starter_of_a_call_without_model_is_no_folder_of_that_name(
    photo, tmp_path, monkeypatch
):
    (tmp_path / "starter").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Result("predict", str(photo), "-o", "a.png").code == 0


def test_where_nothing_was_trained_there_is_no_last_run(photo, tmp_path):
    done = Result("predict", str(photo), "-o", str(tmp_path / "a.png"), "--model", "last")
    assert done.code == 3 and "no trained model" in done.err


def test_predict_reports_a_bad_file_and_goes_on(run, photo, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(photo.read_bytes()[:300])
    out = tmp_path / "masks"
    done = Result("predict", str(bad), str(photo), "-o", str(out), "--json")
    assert done.code == 1
    assert [f["input"] for f in done.json["failed"]] == [str(bad)]
    assert [p.name for p in out.iterdir()] == ["photo.png"]

    alone = Result("predict", str(bad), "-o", str(tmp_path / "x.png"))
    assert alone.code == 3 and "bad.jpg" in alone.err and not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_dry_run_shows_the_plan_and_trains_nothing(home):
    planned = Result("train", "--sources", "toy", "--targets", "toy:red@all",
        "--allow-seen-targets", *TINY,
                     "--dry-run", "--json").json  # fmt: skip
    assert planned["config"]["model"]["backbone"] == "tiny"
    assert planned["domains"] == {"toy#1": 8, "toy#2": 8}
    assert planned["batch_shape"] == [2, 2, 3, 64, 64]
    assert [path.suffix for path in (home / "runs").iterdir()] == [".png"]
    assert "parameters" in Result("train", "--sources", "toy", *TINY, "--dry-run").out


@pytest.mark.slow
def test_options_go_over_the_recipe_and_set_over_options():
    planned = Result(
        "train", "--sources", "toy", *TINY, "--seed", "5", "--set", "seed=6", "--dry-run", "--json"
    )
    assert planned.json["config"]["seed"] == 6


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["data", "prepare", "camvit", "--from", "."], "camvid"),
        (["train", "--sources", "dmeo:arcade"], "demo"),
        (["train", "--sources", "toy:redd", *TINY], "red"),
        (["train", "--sources", "toy", "--recipe", "mobilenet"], "mobilenetv2"),
        (["train", "--sources", "toy", "--method", "mdlg", *TINY], "mldg"),
        (["train", "--sources", "toy", "--set", "optim.lrr=1"], "optim.lr"),
        (["train", "--sorces", "toy"], "--sources"),
        (["trian"], "train"),
        (["predict", "x.jpg", "-o", "y.png", "--format", "colour"], "color"),
    ],
)
def test_a_misspelt_name_gets_a_suggestion_and_exit_code_2(arguments, suggestion):
    done = Result(*arguments)
    assert done.code == 2
    assert suggestion in done.err
    assert "Traceback" not in done.err


def test_data_that_is_missing_or_damaged_is_exit_code_3(run, tmp_path, home):
    (tmp_path / "empty").mkdir()
    prepared = Result("data", "prepare", "camvid", "--from", str(tmp_path / "empty"))
    assert prepared.code == 3 and str(tmp_path / "empty") in prepared.err
    unprepared = Result("train", "--sources", "camvid", *TINY)
    assert unprepared.code == 3 and "pinmem data prepare camvid" in unprepared.err
    assert Result("eval", str(tmp_path / "nowhere"), "--targets", "toy").code == 3

    (label,) = (home / "datasets" / "toy" / "labels").rglob("red_09.png")
    write_png(label, np.zeros((3, 3), np.uint8))
    scored = Result("eval", str(run), "--targets", "toy:red@val")
    assert scored.code == 3 and "3x3" in scored.err
    again = Result("train", "--sources", "toy:red,toy:blue", *TINY, "-o", str(tmp_path / "b"))
    assert again.code == 3 and "red_09" in again.err


def test_a_device_that_is_missing_is_exit_code_5(run, photo, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    done = Result("predict", str(photo), "-o", str(tmp_path / "m.png"), "--device", "cuda")
    assert done.code == 5 and "--device cpu" in done.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(28, "No space left on device", "/x"), 5, "No space left"),
        (ZeroDivisionError("division by zero"), 1, "--debug"),
    ],
)
def test_what_nobody_foresaw_is_told_without_a_traceback(monkeypatch, capsys, error, code, said):
    def fail():
        raise error

    monkeypatch.setattr(pinmem_cli.app, "app", fail)
    monkeypatch.setattr(sys, "argv", ["pinmem", "train"])
    with pytest.raises(SystemExit) as stopped:
        pinmem_cli.app.main()
    shown = capsys.readouterr().err
    assert stopped.value.code == code and said in shown and "Traceback" not in shown


def test_debug_shows_the_traceback():
    from pinmem_core.errors import ConfigError

    with pytest.raises(ConfigError):
        Result("--debug", "data", "prepare", "camvit")


def test_quiet_says_only_the_result(tmp_path):
    source = camvid_folder(tmp_path / "raw", {"0001TP": 6})
    done = Result("data", "prepare", "camvid", "--from", str(source), "--quiet")
    assert done.err == "" and "digest" in done.out


def test_tables_are_folded_for_a_terminal_alone(capsys, monkeypatch):
    domains = [f"camvid:domain-{number}@val" for number in range(12)]
    monkeypatch.delenv("COLUMNS", raising=False)
    Output().result({}, table("IoU %", *domains))
    assert capsys.readouterr().out.split() == ["IoU", "%", *domains]
    monkeypatch.setenv("COLUMNS", "80")
    Output().result({}, table("IoU %", *domains))
    assert domains[0] not in capsys.readouterr().out
