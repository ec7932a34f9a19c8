import pytest
import torch
import torch.nn.functional as F

from pinmem_core.label_space import IGNORE_INDEX
from pinmem_core.methods.losses import divided_cross_entropy, summed_cross_entropy
from pinmem_core.models.flop_counter import cost_of

SIZE = (9, 12)
DIVISOR = torch.tensor(7.0, dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 0.5, 0.0, 2.0, 3.0], dtype=torch.float64)


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Three images of five classes at a third of the resolution; the second has no label."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn((3, 5, 3, 4), generator=rng, dtype=torch.float64)
    labels = torch.randint(0, 5, (3, *SIZE), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.3] = 255
    labels[1] = 255
    return logits.requires_grad_(), labels


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weighed"])
def test_it_is_the_plain_sum_and_its_gradient(weights):
    logits, labels = example()
    maps = F.interpolate(logits, SIZE, mode="bilinear", align_corners=True)
    plain = F.cross_entropy(maps, labels, weight=weights, ignore_index=255, reduction="sum") / 7
    ours = divided_cross_entropy(logits, labels, DIVISOR, weights)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    (expected,) = torch.autograd.grad(3 * plain, logits)
    (gradient,) = torch.autograd.grad(3 * ours, logits)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    assert gradient[0].any() and not gradient[1].any()


def test_it_can_be_computed_without_a_gradient():
    logits, labels = example()
    with torch.no_grad():
        value = divided_cross_entropy(logits, labels, DIVISOR)
    assert value == divided_cross_entropy(logits, labels, DIVISOR)
    assert not value.requires_grad
    assert not divided_cross_entropy(logits.detach(), labels, DIVISOR).requires_grad


def test_maps_of_one_image_exist_at_a_time():
    def peak(images: int) -> int:
        logits = torch.randn(images, 19, 8, 8, requires_grad=True)
        labels = torch.randint(0, 19, (images, 128, 128))
        one = torch.ones(())
        return cost_of(lambda: divided_cross_entropy(logits, labels, one).backward()).memory_bytes

    assert peak(8) < 1.3 * peak(1)


@pytest.mark.parametrize("weighted", [False, True])
def test_pixels_taken_as_one_list_lose_what_maps_do(weighted):
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 9, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (2, 9, 7))
    labels[0, :3] = IGNORE_INDEX
    weights = torch.rand(5, dtype=torch.float64) if weighted else None
    losses = [summed_cross_entropy(maps, labels, weights, by_pixel=way) for way in (False, True)]
    gradients = [torch.autograd.grad(loss, maps)[0] for loss in losses]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-14)
