"""The model that comes with pinmem, and how images are shown to it."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Result, camvid_folder

import pinmem_core
from pinmem_core.checkpoints.config_file import read_config
from pinmem_core.checkpoints.hub import checkpoint_of, run_folder, starter_summary
from pinmem_core.data.catalog import get_card
from pinmem_core.data.prepare import prepare, prepare_synthetic
from pinmem_core.evaluation import TrainedOn, evaluate_run, load_target
from pinmem_core.images import read_image, write_png
from pinmem_core.inference import PROTOCOLS, Predictor
from pinmem_core.synthetic import draw_scene

LARGE = (1500, 2000)


@pytest.fixture
def street(tmp_path) -> Path:
    scene = draw_scene("cityday", 3).image
    write_png(tmp_path / "street.png", scene)
    return tmp_path / "street.png"


def test_predict_works_at_once_and_says_which_model_spoke(street, tmp_path):
    done = Result("predict", str(street), "-o", str(tmp_path / "mask.png"), "--json")
    assert done.code == 0
    assert f"model: starter, {starter_summary()}" in " ".join(done.err.split())
    assert (done.json["model"], done.json["protocol"]) == ("starter", "photo")
    assert read_image(tmp_path / "mask.png").shape == read_image(street).shape


@pytest.mark.slow
def test_the_starter_finds_the_sky_above_and_the_road_below(street):
    mask = pinmem_core.load("starter", device="cpu").predict(street)
    top, bottom = mask[: len(mask) // 8], mask[-len(mask) // 8 :]
    names = {name: k for k, name in enumerate(("road", "sidewalk", "building"))}
    assert np.isin(top, (2, 8, 10)).mean() > 0.8  # building, vegetation, sky
    assert (bottom == names["road"]).mean() > 0.5


def test_the_starter_is_small_and_complete():
    folder = checkpoint_of("starter")
    assert (folder / "model.safetensors").stat().st_size <= 12_000_000
    assert "camvid" in (folder / "README.md").read_text()
    assert pinmem_core.load("starter", device="cpu").segmenter.memory is None


def test_the_starter_says_which_drives_it_has_seen(tmp_path):
    """Its 462 images are the train splits of three drives; the fourth, at dusk, is unseen."""
    drives = {"0001TP": 5, "0006R0": 5}
    prepare(get_card("camvid"), [camvid_folder(tmp_path, drives)])
    trained_on = TrainedOn.of_checkpoint(read_config(checkpoint_of("starter")))
    assert sum(map(len, trained_on.digests.values())) == 462
    prepare_synthetic(["toy"])
    targets = "camvid:0001TP", "camvid:0006R0", "toy:red"
    assert [load_target(text, trained_on).seen for text in targets] == [False, True, False]


def test_reports_on_the_starter_go_to_the_home(home):
    assert run_folder(checkpoint_of("starter")) == home / "starter"


def test_large_photos_are_seen_shrunk_and_small_ones_as_they_are():
    photo = PROTOCOLS["photo"]
    assert photo.longest is not None
    assert photo.scales_of(360, 480) == (1.0,)
    assert photo.scales_of(*LARGE) == (photo.longest / 2000,)
    assert "shrunk to a longer side of 640" in photo.describe()


@pytest.mark.slow
def test_a_shrunk_photo_has_a_mask_of_its_own_size():
    segmenter = pinmem_core.load("starter", device="cpu").segmenter
    seen = []
    predictor = Predictor(segmenter, device="cpu", protocol=PROTOCOLS["photo"])
    predictor.network.register_forward_pre_hook(
        lambda _, images: seen.append(tuple(images[0].shape[2:]))
    )
    assert predictor.predict(np.zeros((*LARGE, 3), np.uint8)).shape == LARGE
    assert seen == [(480, 640)]


@pytest.mark.slow
def test_predict_and_eval_show_images_to_the_starter_by_one_protocol():
    prepare_synthetic(["toy"])
    assert pinmem_core.load("starter", device="cpu").protocol == PROTOCOLS["photo"]
    assert evaluate_run("starter", ["toy:red@val"], device="cpu").origin.name == "photo"
    done = Result("eval", "starter", "--targets", "toy:red@val", "--no-pictures", "--json")
    assert done.json["protocol"].startswith("photo: ") and "the model's own" in done.err
    named = evaluate_run("starter", ["toy:red@val"], protocol="paper-train", device="cpu")
    assert named.origin.name == "paper-train"
