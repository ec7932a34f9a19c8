"""The categorical memory."""

import pytest
import torch
import torch.nn.functional as F

from pinmem_core.config import MemoryConfig, ModelConfig
from pinmem_core.models import Segmenter
from pinmem_core.models.memory import (
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
@pytest.mark.parametrize("target", [(12, 12), (6, 5), (1, 1), (1, 4)])
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
