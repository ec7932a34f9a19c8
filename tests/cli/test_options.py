"""Options: lists repeat and take commas, sizes are WIDTHxHEIGHT, and none is ignored in silence."""

import shlex

import pytest
from conftest import Result, camvid_folder

from pinmem_cli.options import names, paths, shell_join

TINY = """
    --device cpu --iterations 2 --batch 2 --crop 64 --set model.backbone=tiny
    --set model.feature_dim=16 --set model.memory.init_batches=1 --dry-run --json
""".split()  # noqa: SIM905


def test_list_options_repeat_and_take_commas(tmp_path):
    assert names(["a, b", "c", ""]) == ["a", "b", "c"] and names(None) == []
    odd = tmp_path / "a,b"
    odd.mkdir()
    assert paths([odd]) == [odd]
    assert [str(path) for path in paths([tmp_path / "c,d"])] == [f"{tmp_path}/c", "d"]


@pytest.mark.slow
def test_repeated_sources_and_targets_are_all_taken():
    sources = "--sources", "toy:red", "--sources", "toy:blue"
    targets = "--targets", "toy:red@all", "--targets", "toy:blue@all"
    config = Result("train", *sources, *targets, "--allow-seen-targets", *TINY).json["config"]
    assert config["sources"] == ["toy:red", "toy:blue"]
    assert config["targets"] == ["toy:red@all", "toy:blue@all"]


STUDY = """
title = "Two"
recipe = "demo"
seeds = [1, 2]
sources = ["toy:red", "toy:blue"]
targets = ["toy:red@all"]
baseline = "base"
[settings]
"model.backbone" = "tiny"
"augmentation.crop" = 64
[variants.base]
about = "x"
[variants.other]
about = "y"
beside = "base"
settings = {"optim.lr" = 0.5}
"""


def test_a_rehearsed_sweep_lists_its_runs_and_trains_nothing(tmp_path, home):
    (tmp_path / "study.toml").write_text(STUDY)
    out = tmp_path / "out"
    options = "--sweep", str(tmp_path / "study.toml"), "-o", str(out), "--dry-run"
    shown = Result("train", *options, "--json")
    runs = shown.json["runs"]
    assert [(run["variant"], run["seed"]) for run in runs] == [
        ("base", 1), ("other", 1), ("base", 2), ("other", 2)
    ]  # fmt: skip
    assert {run["state"] for run in runs} == {"absent"}
    assert all(run["seconds"] > 0 for run in runs)
    assert shown.json["images"] == 16 and shown.json["images_scored"] == 14
    assert shown.json["seconds"] == pytest.approx(sum(run["seconds"] for run in runs))
    assert not out.exists() and not (home / "runs").exists()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("train --sweep s.toml --resume auto", "--resume"),
        ("train --sweep s.toml --seed 1", "--seed"),
        ("train --sweep s.toml --time 5m", "--time"),
        ("train --resume auto --from starter", "--from"),
        ("train --settings --sources demo", "--sources"),
        ("train --list --sources demo", "--sources"),
        ("train --show demo --dry-run", "--dry-run"),
        ("train --resume auto --targets demo:dusk", "--targets"),
        ("predict x.png -o - --force", "--force"),
        ("predict x.png -o y.png --frames", "--frames"),
        ("data prepare camvid --from . --quality 50", "--quality"),
        ("data prepare camvid --from . --reencode png --quality 50", "--quality"),
        ("data prepare camvid --from . --parts 1", "--parts"),
        ("data prepare demo --remove-archives", "--remove-archives"),
        ("data pack camvid --quality 50", "--quality"),
        ("export onnx starter --calibrate x", "--calibrate"),
        ("export weights starter --opset 18", "--opset"),
        ("export torch starter --opset 18", "--opset"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(command, option):
    done = Result(*shlex.split(command))
    assert done.code == 2 and option in done.err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["predict", "a.png", "-o", ""], "the value of -o"),
        (["predict", "a.png", "--output="], "the value of --output"),
        (["predict", ""], "an argument"),
        (["data", "prepare", "toy", "--from", ""], "the value of --from"),
        (["eval", "compare", "a", ""], "an argument"),
    ],
)
def test_an_empty_value_is_refused_instead_of_naming_the_current_folder(words, what):
    result = Result(*words)
    assert result.code == 2 and f"{what} is empty" in result.err


def test_a_path_of_an_unknown_user_is_a_folder_that_is_not_there():
    done = Result("data", "prepare", "camvid", "--from", "~nouser/data")
    assert done.code == 3 and "~nouser/data does not exist" in done.err


def test_options_of_fetching_are_refused_where_the_folder_of_the_last_time_is_taken(tmp_path):
    folder = camvid_folder(tmp_path / "mine", {"0001TP": 5})
    assert Result("data", "prepare", "camvid", "--from", str(folder)).code == 0
    for option in (["--parts", "1"], ["--remove-archives"], ["--parts", "1", "--dry-run"]):
        done = Result("data", "prepare", "camvid", *option)
        assert done.code == 2 and option[0] in done.err
    rehearsed = Result("data", "prepare", "camvid", "--dry-run", "--json")
    assert rehearsed.json["counts"]  # of that folder, as without --dry-run


def test_a_folder_of_the_last_time_that_is_gone_is_named(tmp_path):
    folder = camvid_folder(tmp_path / "mine", {"0001TP": 5})
    card = """name: mine
title: Mine
layouts: [{name: f, image: "images/{n}.png", label: "labels/{n}.png",
  label_maps: [trainids], id: "{n}"}]
"""
    (tmp_path / "mine.yaml").write_text(card)
    given = "--card", str(tmp_path / "mine.yaml"), "--from", str(folder)
    assert Result("data", "prepare", "mine", *given).code == 0
    folder.rename(tmp_path / "elsewhere")
    done = Result("data", "prepare", "mine")
    assert done.code == 3 and f"{folder}, from which mine was prepared the last time" in done.err
    assert "--from FOLDER" in done.err and "download" not in done.err


def test_a_dataset_that_came_in_a_pack_is_mended_from_it(tmp_path, monkeypatch):
    folder = camvid_folder(tmp_path / "mine", {"0001TP": 5})
    assert Result("data", "prepare", "camvid", "--from", str(folder)).code == 0
    assert Result("data", "pack", "camvid", "-o", str(tmp_path / "c.tar")).code == 0
    for home, mended in (("home", "camvid"), ("other", "camvid --from PACK")):
        monkeypatch.setenv("PINMEM_HOME", str(tmp_path / home))
        if home == "other":
            Result("data", "prepare", "camvid", "--from", str(tmp_path / "c.tar"))
        next((tmp_path / home / "datasets" / "camvid" / "labels").rglob("*.png")).unlink()
        found = Result("data", "verify", "camvid")
        assert found.code == 4 and found.err.splitlines()[-1].endswith(f"prepare {mended}")


def test_words_of_a_hint_are_quoted_for_a_shell():
    assert shlex.split(shell_join("a b", "c'd", "e")) == ["a b", "c'd", "e"]
