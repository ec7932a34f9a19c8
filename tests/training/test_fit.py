"""Settings that fit data, device and time; the plan of a run, and its limit of wall time."""

import json

import pytest
import torch
from conftest import Result, small_config

from pinmem_cli.options import minutes
from pinmem_core.checkpoints.model_card import progress_of
from pinmem_core.data.catalog import get_card
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.errors import ConfigError
from pinmem_core.events import Notice
from pinmem_core.overrides import validate
from pinmem_core.recipe import load_recipe
from pinmem_core.training import train
from pinmem_core.training.fit import DataSize, fitted_settings, run_config
from pinmem_core.training.run_folder import RunFolder
from pinmem_core.training.setup import initial_segmenter, load_data, resolve
from pinmem_core.training.time_limit import Timing, within_time
from pinmem_core.training.timing import is_long, measure, plan_lines

CPU = torch.device("cpu")
GB = 1 << 30


def _fitted(device="cpu", memory=16 * GB, **size):
    data = DataSize(**{"domains": 2, "images": 300, "side": 480, **size})
    return validate({"sources": ["toy"], **fitted_settings(data, device, memory)})


def test_the_network_follows_the_device():
    cpu, gpu = _fitted(), _fitted("cuda", 80 * GB)
    starter = validate(load_recipe("starter"))
    assert cpu.model == starter.model and cpu.augmentation.crop == 192
    assert (gpu.model.backbone, gpu.augmentation.crop, gpu.batch) == ("resnet50", 480, 4)
    assert cpu.minutes == 60 and gpu.minutes == 240
    for config in (cpu, gpu):
        assert config.optim.schedule == "polynomial" and config.targets == ()


def test_crops_and_batches_fit_the_images_and_the_memory():
    assert _fitted(side=100).augmentation.crop == 96
    assert _fitted("cuda", 200 * GB, side=1080).augmentation.crop == 768
    small = _fitted("cuda", 8 * GB, side=1080)
    assert small.augmentation.crop < 400 and small.batch >= 2
    assert _fitted(domains=6).batch == 2
    assert _fitted(memory=None).augmentation.crop == 192


def test_iterations_follow_the_number_of_images():
    few, some, many = (_fitted(images=n).iterations for n in (30, 600, 1_000_000))
    assert (few, many) == (800, 20_000) and few < some < many


@pytest.fixture
def own_data(monkeypatch):
    """Make the card of the toy dataset one of own data, without a recipe."""
    prepare_synthetic(["toy"])
    card = get_card("toy").model_copy(update={"recipe": None})
    monkeypatch.setattr("pinmem_core.training.fit.get_card", lambda name: card)


def test_own_data_get_settings_that_fit_and_paper_data_the_papers(own_data):
    heard = []
    config = run_config(None, {"sources": ["toy"], "device": "cpu"}, on_event=heard.append)
    assert (config.augmentation.crop, config.minutes) == (64, 60) and config.sources == ("toy",)
    assert heard[0].message.startswith("recipe: none; the settings fit toy")
    limited = run_config(None, {"sources": ["toy"], "minutes": 5.0})
    assert limited.minutes == 5 and limited.iterations == 100_000
    assert run_config(None, {"sources": ["toy"], "iterations": 7}).minutes is None


@pytest.mark.parametrize("name", ["gtav", "synthia"])
def test_the_papers_sources_keep_its_recipe(name):
    config = run_config(None, {"sources": [name]})
    assert config.iterations == 30_463 and config.minutes is None
    assert is_long(config, 2)


def test_a_repeated_run_keeps_no_adapters_and_frozen_parts_for_another_method_or_tune(home):
    own = {"method": "isw", "tune": "frozen", "init_weights": "default"}
    config = resolve(validate({"sources": ["toy:red"], **own}))
    RunFolder(home / "runs" / "first").begin(config, {})
    assert resolve(run_config("first", {})) == config
    other = {"method": "aggregate", "tune": "full"}
    changed = resolve(run_config("first", other))
    assert not changed.model.adapters and not changed.optim.freeze


def test_without_sources_the_demo_runs_and_with_a_model_its_architecture():
    assert run_config(None, {}) == validate(load_recipe("demo"))
    config = run_config(None, {"init_from": "starter"})
    assert config.model.backbone == "mobilenet_v2" and config.init_weights is None
    config = run_config("camvid", {"init_from": "starter"})
    assert config.model.feature_dim == 128 and config.init_weights is None


def test_iterations_scored_images_and_initial_batches_fit_into_the_time():
    timing = Timing(iteration=1.0, scoring=((2.0, 10), (1.0, 100)))
    config = small_config(minutes=10, iterations=10_000, model__memory__init_batches=20)
    fitted = within_time(config, timing, spent=60)
    assert fitted.evaluation.max_images is None and fitted.model == config.model
    assert fitted.iterations == int(0.95 * (535 - 10 - 120))
    assert timing.total(fitted) < 540
    assert within_time(small_config(minutes=10, iterations=5), timing, 0).iterations == 5
    short = within_time(small_config(minutes=2, model__memory__init_batches=1000), timing, 0)
    assert short.evaluation.max_images == 12 and short.model.memory.init_batches == 23
    assert timing.total(short) < 120
    assert within_time(config, timing, spent=1000).iterations == 1


def test_a_plan_names_all_that_a_run_takes_and_how_to_shorten_it():
    config = resolve(small_config(iterations=2_000_000))
    prepare_synthetic(["toy"])
    domains = load_data(config, lambda event: None).domains
    assert plan_lines(config, domains, CPU, None) == [
        "plan: pinmem with tiny and deeplabv3plus on cpu; 2,000,000 iterations of 2 x 2 crops of "
        "64 px from 16 images"
    ]
    warm = small_config(iterations=40, optim__warmup=40)
    assert "never reaches optim.lr" in plan_lines(warm, domains, CPU, None)[1]
    assert len(plan_lines(small_config(iterations=41, optim__warmup=40), domains, CPU, None)) == 1
    lines = plan_lines(config, domains, CPU, Timing(2.0, ((3.0, 20),), 10**9))
    assert lines[1].startswith("estimate: about 46 days (training 46 days, ")
    assert "scoring 1 min 0 s), 1.0 GB of memory" in lines[1] and "'--time 30m'" in lines[2]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"minutes": 1.0}, marks=pytest.mark.slow),
        {"augmentation__crop": 160},
        {"augmentation__crop": 160, "sources": ["toy:red"], "pseudo_domains": 3},
    ],
)
def test_measuring_leaves_the_network_and_gives_time_and_memory(values):
    config = resolve(small_config(method="aggregate", **values))
    prepare_synthetic(["toy"])
    data, segmenter = load_data(config, lambda event: None), initial_segmenter(config)
    before = {k: v.clone() for k, v in segmenter.state_dict().items()}
    timing = measure(config, segmenter, data.domains, data.validation, CPU)
    assert all(torch.equal(v, before[k]) for k, v in segmenter.state_dict().items())
    assert 0 < timing.iteration < 30 and timing.memory_bytes > 1e6
    assert {count for _, count in timing.scoring} == {2}
    assert all(seconds > 0 for seconds, _ in timing.scoring)


def _timed(monkeypatch, iteration=1.0, scoring=0.0):
    timing = Timing(iteration, ((scoring, 2), (scoring, 2)))
    monkeypatch.setattr("pinmem_core.training.trainer.measure", lambda *_: timing)


def test_a_limited_run_equals_one_with_the_planned_iterations(monkeypatch, tmp_path):
    _timed(monkeypatch, iteration=2000.0)
    heard = []
    values = {"optim__schedule": "polynomial", "iterations": 100}
    run = train(small_config(minutes=100, **values), tmp_path / "limited", on_event=heard.append)
    assert run.iterations == 2
    plans = [event.message for event in heard if isinstance(event, Notice)]
    assert any(plan.startswith("plan: pinmem") and "; 2 iterations" in plan for plan in plans)
    assert json.loads((run.run / "config.json").read_text())["iterations"] == 2
    again = small_config(**{**values, "iterations": 2}, model__memory__init_batches=1)
    plain = train(again, tmp_path / "plain").run
    weights = "checkpoint/model.safetensors"
    assert (run.run / weights).read_bytes() == (plain / weights).read_bytes()


def test_a_run_whose_estimate_was_too_short_stops_saves_and_scores(monkeypatch, tmp_path):
    _timed(monkeypatch, iteration=0.001)
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr("pinmem_core.training.trainer.time.monotonic", lambda: next(clock))
    heard = []
    config = small_config(minutes=1.0, iterations=1000, checkpoint__minutes=None)
    run = train(config, tmp_path / "run", on_event=heard.append)
    assert run.iterations < 10 and run.scores["source"]
    warnings = [event.message for event in heard if isinstance(event, Notice) and event.warning]
    assert warnings == [f"the time is over at iteration {run.iterations}/1000; scoring"]
    checkpoint = json.loads((run.checkpoint / "config.json").read_text())
    assert checkpoint["iteration"] == run.iterations and (run.run / "scores.json").exists()
    assert progress_of(checkpoint) is None, "it would be called unfinished"
    assert progress_of({**checkpoint, "time_is_over": None}) == (run.iterations, 1000)


def test_a_duration_has_a_unit():
    assert [minutes(text) for text in ("90s", "30m", "1.5h")] == [1.5, 30, 90]
    for text in ("30", "m", "-3m", "0s", "1d"):
        with pytest.raises(ConfigError, match="is not a duration"):
            minutes(text)
    assert Result("train", "--recipe", "demo", "--time", "soon").code == 2
