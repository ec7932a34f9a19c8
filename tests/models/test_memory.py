"""The categorical memory."""

import pytest
import torch
import torch.nn.functional as F

from pinmem_core.config import MemoryConfig, ModelConfig
from pinmem_core.models import Segmenter
from pinmem_core.models.memory import (
    CategoricalMemory,
    class_prototypes,
    gumbel_noise,
    read,
    similarity,
    soft_masks,
    write,
)


def tiny(**values) -> ModelConfig:
    return ModelConfig(**{"backbone": "tiny", "feature_dim": 16, **values})


def test_the_memory_is_a_buffer_that_cannot_be_lost():
    segmenter = Segmenter(tiny())
    assert "memory.slots" in segmenter.state_dict()
    assert segmenter.double().memory.slots.dtype == torch.float64
    state = segmenter.state_dict()
    del state["memory.slots"]
    with pytest.raises(RuntimeError, match=r"memory\.slots"):
        segmenter.load_state_dict(state)


def test_gumbel_reading_is_random_in_training_and_never_in_evaluation():
    segmenter = Segmenter(tiny(memory=MemoryConfig(read="gumbel")))
    feature, slots = torch.rand(2, 16, 4, 4), segmenter.memory.slots
    memory = segmenter.memory.eval()
    assert torch.equal(memory.read(feature, slots)[0], memory.read(feature, slots)[0])
    memory.train()
    assert not torch.equal(memory.read(feature, slots)[0], memory.read(feature, slots)[0])
    memory.gumbel = False
    assert torch.equal(memory.read(feature, slots)[0], memory.read(feature, slots)[0])


def test_gumbel_noise_has_gumbels_moments():
    torch.manual_seed(0)
    noise = gumbel_noise(torch.empty(200_000, dtype=torch.float64))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.03)


@pytest.mark.parametrize("source", [(96, 96), (13, 40), (7, 5)])
@pytest.mark.parametrize("target", [(12, 12), (6, 5), (1, 1), (2, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_masks_equal_the_resized_one_hot(source, target, dtype):
    torch.manual_seed(0)
    labels = torch.randint(0, 8, (2, *source))
    labels[labels == 7] = 255
    classes = torch.where(labels == 255, 7, labels)
    one_hot = F.one_hot(classes, 8).permute(0, 3, 1, 2).to(dtype)
    expected = F.interpolate(one_hot, target, mode="bilinear", align_corners=True)[:, :7]
    masks = soft_masks(labels, 7, target, dtype)
    assert masks.dtype == dtype
    torch.testing.assert_close(masks, expected, rtol=0, atol=2 * torch.finfo(dtype).eps)
    assert torch.equal(masks == 0, expected == 0)  # exact zeros decide what is written


def test_writing_moves_only_the_classes_that_occur():
    torch.manual_seed(0)
    slots = F.normalize(torch.randn(5, 8, dtype=torch.float64), dim=1)
    features = F.normalize(torch.rand(2, 8, 3, 3, dtype=torch.float64), dim=1)
    labels = torch.full((2, 3, 3), 255)
    labels[0], labels[1, 0] = 2, 4
    new = write(features, labels, slots, momentum=0.8)
    for absent in (0, 1, 3):
        torch.testing.assert_close(new[absent], slots[absent])
    expected = 0.8 * slots[2] + 0.2 * features[0].mean(dim=(1, 2))
    torch.testing.assert_close(new[2], expected / expected.norm())
    torch.testing.assert_close(new.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_a_class_that_does_not_occur_spoils_no_gradient():
    slots = F.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    features = F.normalize(torch.rand(1, 4, 2, 2), dim=1).requires_grad_()
    new = write(features, torch.ones(1, 2, 2, dtype=torch.long), slots, momentum=0.8)
    new.sum().backward()
    assert features.grad.isfinite().all() and features.grad.any()
    assert not slots.grad[[0, 2]].any()


def test_reading_mixes_slots_by_softmax_of_cosines():
    query = F.normalize(torch.rand(1, 4, 1, 1), dim=1)
    slots = F.normalize(torch.randn(3, 4), dim=1)
    scores = similarity(query, slots)
    torch.testing.assert_close(scores[0, :, 0, 0], slots @ query[0, :, 0, 0])
    torch.testing.assert_close(
        read(scores.softmax(dim=1), slots)[0, :, 0, 0], scores[0, :, 0, 0].softmax(0) @ slots
    )


def test_prototypes_of_a_class_never_seen_are_zero():
    features, labels = torch.rand(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    slots = class_prototypes([(features, labels)], 3)
    assert slots[0].norm() == pytest.approx(1) and not slots[1:].any()


def test_prototypes_are_the_mean_direction_over_all_pixels_of_all_batches():
    torch.manual_seed(0)
    batches = [
        (torch.randn(n, 4, 3, 3, dtype=torch.float64), torch.randint(0, 2, (n, 3, 3)))
        for n in (1, 2)
    ]
    pixels = torch.cat([F.normalize(f, dim=1).movedim(1, -1).reshape(-1, 4) for f, _ in batches])
    classes = torch.cat([labels.flatten() for _, labels in batches])
    expected = [F.normalize(pixels[classes == k].mean(dim=0), dim=0) for k in (0, 1)]
    torch.testing.assert_close(class_prototypes(batches, 2), torch.stack(expected))


def memory(**settings) -> CategoricalMemory:
    torch.manual_seed(0)
    made = CategoricalMemory(5, 8, **{"read": "softmax", "momentum": 0.8, **settings})
    return made.double().eval()


def test_a_memory_begins_with_unit_slots_and_layers_that_do_little():
    made = CategoricalMemory(19, 256, read="gumbel", momentum=0.8)
    torch.testing.assert_close(made.slots.norm(dim=1), torch.ones(19))
    assert (made.temperature, made.residual, made.mask_empty, made.gumbel) == (
        1,
        False,
        False,
        True,
    )
    assert made.classifier.weight.std().item() == pytest.approx(1e-4, rel=0.1)
    assert made.classifier.weight.shape == (19, 256) and not made.classifier.bias.any()
    for layer, inputs in ((made.fuse, 512), (made.write_map, 256)):
        conv, norm = layer
        assert conv.weight.shape == (256, inputs, 1, 1) and conv.bias is None
        assert conv.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.05)
        assert (norm.weight == 1).all() and norm.bias.tolist() == pytest.approx([1e-4] * 256)
    gated = CategoricalMemory(19, 256, read="softmax", momentum=0.8, residual=True)
    assert not gated.fuse[1].weight.any() and not gated.fuse[1].bias.any() and not gated.gumbel


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("residual", [False, True])
def test_reading_follows_the_equations(temperature, residual):
    made = memory(temperature=temperature, residual=residual, gate=0.5)
    feature = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    refined, scores = made.read(feature, made.slots)
    query = feature / feature.norm(dim=1, keepdim=True)
    cosines = (query[:, None] * made.slots[:, :, None, None]).sum(dim=2)
    weights = (cosines / temperature).exp() / (cosines / temperature).exp().sum(dim=1, keepdim=True)
    value = (weights[:, :, None] * made.slots[:, :, None, None]).sum(dim=1)
    torch.testing.assert_close(scores, cosines)
    attention = made.attention(feature, made.slots)
    torch.testing.assert_close(attention.query, query)
    torch.testing.assert_close(attention.weights, weights)
    for constant in (None, made.slots[1]):
        made.constant = constant
        used = value if constant is None else constant[:, None, None].expand_as(value)
        fused = made.fuse(torch.cat([query, used], dim=1)) + (feature if residual else 0)
        torch.testing.assert_close(made.read(feature, made.slots)[0], fused.clamp(min=0))
    assert (refined == 0).any() and (refined > 0).any()


def test_the_noise_is_added_to_the_scores_in_training_before_the_softmax():
    made = memory(read="gumbel", temperature=0.5).train()
    feature = torch.randn(1, 8, 2, 2, dtype=torch.float64)
    torch.manual_seed(3)
    attention = made.attention(feature, made.slots)
    torch.manual_seed(3)
    noisy = attention.scores + gumbel_noise(attention.scores)
    torch.testing.assert_close(attention.weights, (noisy / 0.5).softmax(dim=1))


def test_writing_raw_features_maps_them_first():
    made = memory(momentum=0.6)
    feature, labels = torch.randn(2, 8, 3, 3).double(), torch.randint(0, 4, (2, 3, 3))
    mapped = (feature + made.write_map(feature)).clamp(min=0)
    expected = write(mapped / mapped.norm(dim=1, keepdim=True), labels, made.slots, 0.6)
    torch.testing.assert_close(made.write(feature, labels, made.slots), expected)
