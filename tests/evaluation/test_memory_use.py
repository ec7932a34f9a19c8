"""Whether a network uses its memory: regression, attention, and the ablation."""

import math

import numpy as np
import pytest
import torch
from conftest import Result, small_config

from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation import evaluate_run, load_target
from pinmem_core.evaluation.evaluate import evaluate_domain
from pinmem_core.evaluation.memory_use import MemoryUse, Moments, memory_use, reading
from pinmem_core.inference import Predictor
from pinmem_core.models import Segmenter, save_checkpoint


def network(**memory) -> Segmenter:
    torch.manual_seed(0)
    segmenter = Segmenter(
        small_config(**{f"model__memory__{k}": v for k, v in memory.items()}).model
    )
    torch.nn.init.normal_(segmenter.decoder.classifier.weight)
    return segmenter.eval()


def use_on_toy(segmenter: Segmenter) -> MemoryUse:
    prepare_synthetic(["toy:red"])
    target, predictor = load_target("toy:red", max_images=3), Predictor(segmenter, device="cpu")
    result = evaluate_domain(predictor, target, task="scoring")
    return memory_use(predictor, target, result)


def test_r2_is_1_for_an_affine_map_and_0_for_noise():
    torch.manual_seed(0)
    queries = torch.randn(1, 3, 40, 50, dtype=torch.float64)
    noise = torch.randn(1, 3, 40, 50, dtype=torch.float64)
    affine = torch.einsum("ndhw,de->nehw", queries, torch.randn(3, 3).double()) + 5
    assert Moments.of(queries, affine).r2() == pytest.approx(1, abs=1e-9)
    assert Moments.of(queries, noise).r2() < 0.01
    assert 0.3 < Moments.of(queries, queries + noise).r2() < 0.7
    assert Moments.of(queries, torch.ones_like(noise)).r2() is None
    dead = queries * torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    assert Moments.of(dead, 2 * dead).r2() == pytest.approx(1, abs=1e-9)


def test_sums_of_images_add_up():
    torch.manual_seed(0)
    queries, values = torch.randn(2, 1, 3, 4, 6)
    halves = [Moments.of(queries[..., part], values[..., part]) for part in (slice(3), slice(3, 6))]
    total, expected = halves[0] + halves[1] + Moments.none(3), Moments.of(queries, values)
    assert total.count == expected.count == 24
    torch.testing.assert_close(total.products, expected.products)
    torch.testing.assert_close(total.mean_value, values.mean(dim=(0, 2, 3)).double())


@pytest.mark.slow
def test_the_read_of_the_published_temperature_is_nearly_affine():
    published, sharp = use_on_toy(network()), use_on_toy(network(attention_temperature=0.01))
    assert published.r2 > 0.99 > sharp.r2
    assert published.entropy > 0.99 > sharp.entropy
    assert published.coverage == 1


def test_a_closed_gate_and_empty_slots_are_seen():
    segmenter = network(residual=True)
    segmenter.memory.slots[5:] = 0
    use = use_on_toy(segmenter)
    assert (use.gate, use.cost, use.used) == (0, 0, False)
    assert use.coverage == pytest.approx(5 / 19)
    assert use.miou == use.miou_of_mean


def test_the_ablation_replaces_the_value_at_every_position():
    predictor = Predictor(network(attention_temperature=0.01), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    before = predictor.scores(image)
    with reading(predictor, torch.zeros(16)):
        ablated = predictor.scores(image)
    assert not np.allclose(before, ablated)
    assert np.array_equal(predictor.scores(image), before)


@pytest.mark.parametrize(
    ("cost", "low", "used"), [(0.005, 0.001, True), (0.02, -0.001, False), (0.004, 0.003, False)]
)
def test_a_memory_is_used_if_the_mean_costs_half_a_point_for_sure(cost, low, used):
    assert MemoryUse(0.5, 0.5, 0.1, 1.0, 0.4, 0.4 - cost, cost, low, 0.03).used is used


def test_a_network_without_memory_is_refused(tmp_path):
    prepare_synthetic(["toy:red"])
    save_checkpoint(Segmenter(small_config(model__memory=None).model), tmp_path / "c", {})
    with pytest.raises(ConfigError, match="the network has no memory"):
        evaluate_run(str(tmp_path / "c"), ["toy:red"], memory=True)


@pytest.mark.slow
def test_the_command_prints_and_saves_it(tmp_path):
    prepare_synthetic(["toy:red"])
    save_checkpoint(network(), tmp_path / "c", {})
    arguments = ["eval", str(tmp_path / "c"), "--targets", "toy:red", "--memory", "--no-pictures"]
    shown = Result(*arguments, "-o", str(tmp_path / "report"))
    assert "what the mean costs" in shown.out and "used" in shown.out
    page = (tmp_path / "report" / "report.html").read_text()
    assert "the memory is not used" in page or "the memory is used" in page
    saved = Result(*arguments, "-o", str(tmp_path / "other"), "--json").json
    use = saved["targets"]["toy:red"]["memory"]
    assert math.isclose(use["cost"], use["miou"] - use["miou_of_mean"])
    assert use.keys() >= {"r2", "entropy", "gate", "coverage", "low", "high", "used"}
