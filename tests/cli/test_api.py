"""`import pinmem_core as pm` offers what the commands do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import camvid_folder, small_config
from test_run_resuming import StopAfter

import pinmem_core as pm


def test_dir_shows_the_public_names_and_all_of_them_exist():
    assert dir(pm) == sorted(pm.__all__)
    for name in pm.__all__:
        assert getattr(pm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        getattr(pm, "trian")  # noqa: B009


def test_importing_the_package_imports_no_torch():
    code = "import sys, pinmem_core; dir(pinmem_core); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_train_evaluate_and_predict(tmp_path):
    run = pm.train(small_config(), tmp_path / "run", seed=3, settings={"optim.lr": 0.004})
    assert run.run == tmp_path / "run" and run.iterations == 3
    assert pm.list_models() == ["starter", str(tmp_path / "run")]
    network = pm.Segmenter.from_pretrained(run.checkpoint)
    assert network.about["training"]["seed"] == 3
    assert network.about["training"]["optim"]["lr"] == 0.004
    report = pm.evaluate(run.run, ["toy:red"], device="cpu", output=tmp_path / "report")
    assert set(report.scores) == {"toy:red"} and (tmp_path / "report" / "report.html").is_file()
    image = np.zeros((40, 60, 3), np.uint8)
    assert pm.load(str(run.run), device="cpu").predict(image).shape == (40, 60)


def test_a_stopped_run_is_resumed(tmp_path):
    stop = StopAfter(2)
    with pytest.raises(pm.StoppedRunError):
        pm.train(small_config(), tmp_path / "run", on_event=stop.hear, stop=stop)
    assert pm.resume(tmp_path / "run").iterations == 3


def test_a_recipe_takes_settings_and_refuses_unknown_ones(tmp_path):
    with pytest.raises(pm.ConfigError, match="unknown configuration key 'sed'"):
        pm.train("demo", tmp_path / "run", sed=1)
    with pytest.raises(pm.ConfigError, match="unknown recipe"):
        pm.train("dmeo", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prepare_and_the_lists(tmp_path):
    folder = camvid_folder(tmp_path / "raw", {"0016E5": 2, "0001TP": 1})
    assert sum(pm.prepare("camvid", source=folder).counts.values()) == 3
    assert {"camvid", "gtav"} <= set(pm.list_datasets()) and "demo" in pm.list_recipes()
    assert {"pinmem", "mldg", "aggregate"} <= set(pm.list_methods())
    assert "resnet50" in pm.list_backbones() and "starter" in pm.list_models()


def test_a_path_is_taken_where_a_name_is():
    with pytest.raises(pm.DataError, match="there is no run '/nonexistent'"):
        pm.load(Path("/nonexistent"))
    with pytest.raises(pm.ConfigError, match=r"nonexistent\.toml"):
        pm.train(Path("/nonexistent.toml"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"memory": 0}, "a memory budget of 0 bytes cannot be kept"),
        ({"memory": -1}, "a memory budget of -1 bytes cannot be kept"),
        ({"memory": float("nan")}, "a memory budget of nan bytes cannot be kept"),
    ],
)
def test_options_of_a_predictor_are_checked(option, message):
    with pytest.raises(pm.ConfigError, match=message):
        pm.load("starter", device="cpu", **option)


def test_a_dataset_needs_a_job():
    with pytest.raises(pm.ConfigError, match="0 jobs convert nothing"):
        pm.prepare("toy", jobs=0)
