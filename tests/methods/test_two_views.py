"""`two-views`: the promises of a method, and what its views and its consistency are."""

import math

import pytest
import torch
from conftest import small_config
from method_tester import MethodTester

from pinmem_core.data.batches import CropDataset, load_domains
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.methods.losses import consistency_loss


@pytest.mark.slow
class TestTwoViews(MethodTester):
    method = "two-views"
    settings = {"method_config": {"weight": 3.0}}  # noqa: RUF012


def test_consistency_is_0_for_equal_views_and_at_most_ln_2():
    torch.manual_seed(0)
    logits = 5 * torch.randn(2, 7, 3, 4, dtype=torch.float64)
    assert consistency_loss(logits, logits).item() == pytest.approx(0, abs=1e-14)
    assert consistency_loss(logits, logits + 3.0).item() == pytest.approx(0, abs=1e-14)
    apart = torch.eye(7, dtype=torch.float64)[:, :, None, None] * 1000
    distance = consistency_loss(apart, apart.roll(1, 0))
    assert distance.item() == pytest.approx(math.log(2))
    assert consistency_loss(logits, logits.flip(1)) == consistency_loss(logits.flip(1), logits)


def test_the_second_view_is_the_same_crop_with_strong_colours():
    prepare_synthetic(["toy:red", "toy:blue"])
    config = small_config(augmentation__strong="none")
    domains = load_domains(config.sources, pseudo_domains=2, seed=0)
    crops = CropDataset(domains, config, range(2), augment=False, views=2)
    drawn = crops[0]
    first, second = drawn.appearances
    assert not any(look.strong for look in first) and all(look.strong for look in second)
    assert {look.seed for look in first}.isdisjoint(look.seed for look in second)
    plain = CropDataset(domains, config, range(2), augment=False)[0]
    assert plain.appearances == (first,) and torch.equal(plain.images, drawn.images)
