"""What a run would do and take: the plan, its estimate and its picture."""

import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import Result, small_config
from PIL import Image
from torch import nn

from pinmem_core.data.batches import Batch
from pinmem_core.data.transforms import normalize
from pinmem_core.errors import ConfigError, MachineError
from pinmem_core.events import Notice
from pinmem_core.label_space import CITYSCAPES
from pinmem_core.models import Segmenter
from pinmem_core.models.flop_counter import Cost, cost_of
from pinmem_core.training.dry_run import (
    Estimate,
    batch_sheet,
    domain_splits,
    estimate,
    extrapolated_seconds,
    iteration_cost,
    measured_on_gpu,
    plan,
    seconds_of,
    step_tensors,
)
from pinmem_core.training.setup import resolve
from pinmem_core.training.step import TrainStep
from pinmem_core.visualize import heading

CPU = torch.device("cpu")
SMALL = """
    --sources toy:red,toy:blue --device cpu --iterations 7 --batch 2 --crop 64 --set log_every=1
    --set model.backbone=tiny --set model.feature_dim=16 --dry-run
""".split()  # noqa: SIM905


def _batch(domains: int = 2, images: int = 2, side: int = 64) -> Batch:
    torch.manual_seed(0)
    every = tuple(range(domains))
    pixels = torch.randn(domains, images, 3, side, side)
    labels = torch.randint(0, 19, (domains, images, side, side))
    return Batch(pixels, labels, every[:1], every[1:])


def _estimate(batch: Batch, **values: object) -> Estimate:
    config = small_config(**values)
    return estimate(config, Segmenter(config.model), batch, CPU)


def _cost(batch: Batch, **values: object) -> Cost:
    config = small_config(**values)
    return iteration_cost(TrainStep(config, Segmenter(config.model), CPU), batch)


def test_a_convolution_takes_what_paper_and_pencil_say():
    conv, image = nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.randn(2, 3, 10, 10)
    taken = cost_of(lambda: conv(image), [image, conv.weight])
    assert taken.flops == 2 * (2 * 8 * 10 * 10) * (3 * 3 * 3)
    assert taken.memory_bytes == 4 * (2 * 3 * 10 * 10 + 8 * 3 * 3 * 3 + 2 * 8 * 10 * 10)


def test_memory_is_the_most_that_exists_at_once_and_views_are_free():
    def in_turn():
        for _ in range(3):
            torch.empty(1000)
        torch.empty(500).view(50, 10)[3:].add_(1)

    assert cost_of(in_turn).memory_bytes == 4000


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pinmem", "mldg", "aggregate"])
def test_what_is_counted_without_content_is_what_a_real_iteration_takes(method):
    config, batch = resolve(small_config(method=method)), _batch()
    iteration = TrainStep(config, Segmenter(config.model), CPU)
    counted = iteration_cost(iteration, batch)
    held = [batch.images, batch.labels, *step_tensors(iteration)]
    assert cost_of(lambda: iteration.step(0, batch), held) == counted


@pytest.mark.slow
def test_flops_follow_the_area_of_the_crops():
    small, large = _cost(_batch(side=64)), _cost(_batch(side=128))
    assert large.flops == pytest.approx(4 * small.flops, rel=0.05)


@pytest.mark.slow
def test_a_step_that_depends_on_values_is_counted_on_small_crops():
    pytest.importorskip("scipy")
    values = {"model__decoder": "mask", "method": "aggregate"}
    config, batch = small_config(**values), _batch(side=160)
    step = TrainStep(config, Segmenter(config.model), CPU)
    whole = cost_of(lambda: step.step(0, batch))
    assert _cost(batch, **values).flops == pytest.approx(whole.flops, rel=0.05)


@pytest.mark.slow
def test_the_ways_to_split_three_domains_are_averaged():
    """One is meta-train and two are meta-test, or the other way round."""
    batch = _batch(domains=3)
    one, two = (_cost(split) for split in domain_splits(small_config(), batch))
    assert one.flops < two.flops  # meta-train images are seen three times, meta-test ones once
    three = _estimate(batch)
    assert three.flops == (one.flops + two.flops) / 2
    assert three.memory_bytes == max(one.memory_bytes, two.memory_bytes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "value"),
    [("precision", "bf16"), ("precision", "fp16"), ("accumulate", 2), ("compile", True)],
)
def test_every_way_to_compute_can_be_estimated(setting, value):
    assert _estimate(_batch(images=4), **{f"compute__{setting}": value}).seconds > 0


@pytest.mark.slow
def test_recomputing_takes_more_operations_and_less_memory():
    plain, finest, twice = (
        _cost(_batch(side=128), model__backbone="resnet10", compute__recompute=recompute)
        for recompute in (False, "finest", True)
    )
    assert plain.flops < finest.flops < twice.flops
    assert plain.memory_bytes > finest.memory_bytes > twice.memory_bytes


def test_a_gpu_that_is_too_small_is_told_with_what_it_would_take(monkeypatch):
    def too_much(splits):
        raise torch.OutOfMemoryError

    properties = SimpleNamespace(total_memory=8e9)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    with pytest.raises(MachineError, match=r"about 21.0 GB, .* of the 8.0 GB"):
        measured_on_gpu(too_much, [_batch()], Estimate(1.0, 21_000_000_000, 0.0))


@pytest.mark.parametrize(("side", "timed"), [(256, [64, 128]), (96, [96])])
def test_a_large_crop_is_timed_by_the_line_through_two_small_ones(side, timed):
    """Iterations that take 1 s, and a millisecond for every pixel."""
    seen = []

    def pretended(splits):
        seen.append(splits[0].images.shape[-1])
        flops = 1e6 * seen[-1] ** 2
        return flops, 1 + 1e-9 * flops

    seconds = extrapolated_seconds(pretended, [_batch(side=side)], 1e6 * side**2)
    assert seen == timed
    assert seconds == pytest.approx(1 + 1e-3 * side**2)


@pytest.mark.slow
def test_the_estimated_time_is_of_the_right_size(monkeypatch):
    monkeypatch.setattr("time.perf_counter", time.process_time)  # whatever else is running
    config, batch = small_config(), _batch(side=160)
    iteration = TrainStep(config, Segmenter(config.model), CPU)
    iteration.step(0, batch)
    real = min(seconds_of(iteration, batch) for _ in range(3))
    assert real / 3 < _estimate(batch).seconds < 3 * real


@pytest.mark.slow
def test_a_plan_has_counts_shapes_and_an_estimate():
    events = []
    planned = plan(small_config(targets=["toy:blue@all"]), on_event=events.append)
    assert planned.domains == {"toy:red": 8, "toy:blue": 8}
    assert planned.scored == {"toy:red@val": 2, "toy:blue@val": 2, "toy:blue@all": 10}
    assert planned.batch_shape == (2, 2, 3, 64, 64)
    assert planned.loading_seconds > 0 and planned.estimate.seconds > 0
    assert planned.training_seconds == 3 * planned.seconds_per_iteration
    assert any(isinstance(e, Notice) and "estimating" in e.message for e in events)


@pytest.mark.slow
def test_processes_load_while_others_compute(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    alone = plan(small_config())
    assert alone.seconds_per_iteration == alone.loading_seconds + alone.estimate.seconds
    two = replace(alone, config=small_config(workers=2))
    assert two.seconds_per_iteration == max(two.loading_seconds / 2, two.estimate.seconds)
    assert replace(two, loading_seconds=60).seconds_per_iteration == 30
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert replace(two, loading_seconds=60).seconds_per_iteration == 60


def test_the_picture_shows_every_image_beside_its_label():
    images = torch.full((2, 2, 3, 32, 32), 0, dtype=torch.uint8)
    shades = torch.tensor([[10, 70], [130, 250]], dtype=torch.uint8)
    images += shades[:, :, None, None, None]
    labels = torch.full((2, 2, 32, 32), 255)
    labels[1, 0] = 13
    batch = Batch(normalize(images), labels, (0,), (1,))
    sheet = batch_sheet(batch, ["first", "second"], {1}, tile_width=32)
    tiles = [sheet[y : y + 32, x : x + 32] for y in (52, 116) for x in range(0, 144, 36)]
    flat = [tile.reshape(-1, 3) for tile in tiles]
    assert all((tile == tile[0]).all() for tile in flat)
    bare, car = CITYSCAPES.color_table[[255, 13]].tolist()
    assert [tile[0].tolist() for tile in flat] == [
        [10] * 3, bare, [70] * 3, bare, [130] * 3, car, [250] * 3, bare
    ]  # fmt: skip


def test_the_picture_marks_the_strong_augmentation(monkeypatch):
    told = []
    monkeypatch.setattr(
        "pinmem_core.training.dry_run.heading",
        lambda name, details, width: told.append((name, details)) or heading(name, details, width),
    )
    batch_sheet(_batch(), ["first", "second"], {1})
    assert told == [
        ("first", "meta-train · standard augmentation"),
        ("second", "meta-test · strong augmentation"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("strong", ["meta-test", "all", "none"])
def test_the_plan_tells_the_picture_who_is_strong(monkeypatch, strong):
    seen = []
    monkeypatch.setattr(
        "pinmem_core.training.dry_run.batch_sheet",
        lambda batch, names, s, **_: seen.append((batch, s)),
    )
    plan(small_config(augmentation__strong=strong))
    ((batch, marked),) = seen
    expected = {"meta-test": {*batch.meta_test}, "all": {0, 1}, "none": set()}
    assert marked == expected[strong]


@pytest.mark.slow
def test_a_dry_run_downloads_no_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    fetched = []
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: fetched.append(a))
    heard = []
    config = small_config(
        method="aggregate", model__backbone="resnet18", init_weights="IMAGENET1K_V1"
    )
    assert plan(config, on_event=heard.append).parameters["total"] > 10**7
    assert not fetched
    told = "weights IMAGENET1K_V1 of resnet18 are not on this machine: training downloads them"
    assert any(isinstance(event, Notice) and told in event.message for event in heard)


@pytest.mark.parametrize("weights", ["absent.pth", "IMAGENET1K_V9"])
def test_a_dry_run_looks_for_weights_before_it_lists_the_data(weights):
    with pytest.raises(ConfigError, match=weights):
        plan(small_config(sources=["cityscapes"], model__backbone="resnet18", init_weights=weights))


@pytest.mark.slow
def test_dry_run_writes_a_picture_and_nothing_else(tmp_path, home):
    before = Result("train", *SMALL, "-o", str(tmp_path / "run"), "--json")
    data = before.json
    assert before.code == 0 and data["picture"] == str(tmp_path / "run.png")
    assert Image.open(tmp_path / "run.png").width == 4 * 196
    assert not (tmp_path / "run").exists() and not (home / "runs").exists()
    assert Result("train", *SMALL).code == 0
    (picture,) = (home / "runs").iterdir()
    assert picture.name.endswith("-dry-run.png")


@pytest.mark.slow
@pytest.mark.parametrize("how", [SMALL, ["--list"], ["--show", "demo"]])
def test_of_several_processes_the_first_alone_plans(monkeypatch, home, how):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    silent = Result("train", *how)
    assert (silent.code, silent.out, silent.err) == (0, "", "")
    assert not home.exists()
    monkeypatch.setenv("RANK", "0")
    assert Result("train", *how).out


@pytest.mark.slow
def test_dry_run_keeps_its_json_contract():
    data = Result("train", *SMALL, "--json").json
    assert set(data) == {
        "schema_version",
        "config",
        "domains",
        "scored",
        "parameters",
        "trained_parameters",
        "batch_shape",
        "device",
        "flops_per_iteration",
        "memory_bytes",
        "seconds_per_iteration",
        "seconds_loading_batch",
        "seconds_training",
        "iterations_in_time",
        "picture",
    }
    assert data["device"] == "cpu"
    assert isinstance(data["flops_per_iteration"], int) and data["memory_bytes"] > 1e5
    assert data["seconds_training"] == pytest.approx(7 * data["seconds_per_iteration"])
    assert data["iterations_in_time"] is None
    assert 0 < data["seconds_loading_batch"] < data["seconds_per_iteration"]


@pytest.mark.slow
def test_dry_run_tells_people_what_it_would_take(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pinmem", "train", "--sources", "my toy", "--dry-run"])
    shown = Result("train", *SMALL)
    for said in ("toy:red", "scored afterwards: toy:red@val (2)", "parameters", "GFLOPs",
                 "memory: about", "time: about", "for 7 iterations", "picture: "):  # fmt: skip
        assert said in shown.out
    assert '"iterations": 7' in shown.out
    assert "next: pinmem train --sources 'my toy'\n" in shown.err


@pytest.mark.slow
def test_dry_run_says_how_many_iterations_fit_into_the_time():
    shown = Result("train", *SMALL, "--time", "10s", "--set", "iterations=1000000")
    lines = [line for line in shown.out.splitlines() if re.search(r"\d iterations", line)]
    (line,) = lines  # one estimate
    said = re.fullmatch(
        r"training: about 0:00:0(\d) for (\d+) iterations that fit into 0 min 10 s, without .*",
        line,
    )
    assert said and int(said[1]) <= 5 and 0 < int(said[2]) < 1_000_000
