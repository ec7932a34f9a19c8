"""`prototypes`: the promises of a method, its assignment, and its placebo."""

import pytest
import torch
from conftest import small_config
from method_tester import MethodTester

from pinmem_core.methods.prototypes import own_prototypes
from pinmem_core.training.setup import initial_segmenter, resolve


@pytest.mark.slow
class TestPrototypes(MethodTester):
    method = "prototypes"
    settings = {"method_config": {"per_class": 4, "momentum": 0.9}}  # noqa: RUF012


def test_the_prototypes_of_a_class_share_its_pixels():
    """The nearest prototype is number 2 of its class for every pixel."""
    torch.manual_seed(0)
    classes = torch.tensor([0, 1]).repeat_interleave(60)
    cosines = 0.05 * torch.rand(120, 3, 4, dtype=torch.float64)
    cosines[..., 2] += 0.1
    assert (cosines[:60, 0].argmax(dim=1) == 2).all()
    own = own_prototypes(cosines, classes)
    assert torch.equal(own // 4, classes)
    shares = torch.bincount(own, minlength=12)
    assert (shares[:8] >= 10).all() and (shares[:8] <= 20).all() and not shares[8:].any()


def test_pixels_without_a_label_have_no_prototype():
    cosines = torch.rand(5, 2, 3)
    own = own_prototypes(cosines, torch.tensor([255, 0, 255, 1, 0]))
    assert (own[[0, 2]] == -100).all() and (own[[1, 3, 4]] // 3).tolist() == [0, 1, 0]
    assert (own_prototypes(cosines, torch.full((5,), 255)) == -100).all()


@pytest.mark.parametrize("placebo", [False, True])
def test_prototypes_move_to_the_features_unless_they_are_a_placebo(placebo):
    tester = TestPrototypes()
    step = tester.train_step(method_config={"per_class": 2, "placebo": placebo})
    first = step.method.state_dict()["prototypes"].clone()
    batch = tester.batch(step, images=1)
    losses = [step.step(0, batch).losses["train"].terms for _ in range(2)]
    assert torch.equal(step.method.state_dict()["prototypes"], first) == placebo
    assert (losses[1]["compact"] < 0.5 * losses[0]["compact"]) != placebo


def test_the_network_has_nothing_of_the_prototypes():
    one, other = (
        initial_segmenter(resolve(small_config(method=name, use_memory=False)))
        for name in ("prototypes", "aggregate")
    )
    assert one.state_dict().keys() == other.state_dict().keys()
    assert one.config == other.config
