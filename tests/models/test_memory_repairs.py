"""Settings of the memory that the published method does not have: masked slots and the gate."""

import pytest
import torch
from conftest import small_config

from pinmem_core.export.graph import Graph, trace
from pinmem_core.inference.onnx_runner import Signature
from pinmem_core.models import Segmenter
from pinmem_core.models.memory import CategoricalMemory
from pinmem_core.training.optim import parameter_groups


def memory(**settings) -> CategoricalMemory:
    torch.manual_seed(0)
    made = CategoricalMemory(5, 8, read="softmax", momentum=0.8, **settings).eval()
    made.slots[3:] = 0
    return made


def test_empty_slots_get_no_attention_and_the_others_keep_their_ratios():
    feature = torch.rand(2, 8, 4, 6)
    plain, masked = memory(), memory(mask_empty=True)
    weights = masked.attention(feature, masked.slots).weights
    assert (weights[:, 3:] == 0).all()
    expected = plain.attention(feature, plain.slots).weights[:, :3]
    torch.testing.assert_close(weights[:, :3], expected / expected.sum(dim=1, keepdim=True))
    refined, scores = masked.read(feature, masked.slots)
    assert refined.isfinite().all() and (scores[:, 3:] == 0).all()


def test_without_empty_slots_the_mask_changes_nothing():
    feature, slots = torch.rand(2, 8, 4, 6), torch.rand(5, 8)
    plain, masked = memory(), memory(mask_empty=True)
    assert torch.equal(masked.read(feature, slots)[0], plain.read(feature, slots)[0])
    nothing = torch.zeros(5, 8)
    assert torch.equal(masked.read(feature, nothing)[0], plain.read(feature, nothing)[0])


@pytest.mark.parametrize("gate", [0.0, 0.1])
def test_the_gate_starts_at_its_setting_and_only_with_residual(gate):
    assert memory(residual=True, gate=gate).fuse[1].weight.tolist() == pytest.approx([gate] * 8)
    assert memory(gate=gate).fuse[1].weight.tolist() == [1] * 8


def test_the_gate_has_a_learning_rate_of_its_own_and_no_decay():
    settings = {"model__memory__residual": True, "model__memory__gate": 0.1}
    config = small_config(**settings, optim__gate_lr_scale=10, optim__weight_decay=0.01)
    segmenter = Segmenter(config.model)
    most, gate = parameter_groups(config.optim, segmenter)
    assert gate["params"] == [segmenter.memory.fuse[1].weight]
    assert (gate["lr_scale"], gate["weight_decay"]) == (10, 0)
    assert (most["lr_scale"], most["weight_decay"]) == (1, 0.01)
    (everything,) = parameter_groups(small_config().optim, segmenter)
    assert everything["params"] == [*segmenter.parameters()]


@pytest.mark.slow
def test_the_mask_is_exported():
    config = small_config(model__memory__mask_empty=True)
    segmenter = Segmenter(config.model).eval()
    segmenter.memory.slots[7:] = 0
    program = trace(Graph(segmenter, Signature(size=(64, 64)), half=False)).module()
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(program(images), segmenter(images), rtol=1e-3, atol=1e-3)
