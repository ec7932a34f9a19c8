"""`shade`: the promises of a method, its bank, its weights and its things."""

from typing import ClassVar

import pytest
import torch
from conftest import small_config
from method_tester import MethodTester

from pinmem_core.errors import ConfigError
from pinmem_core.label_space import label_space
from pinmem_core.methods import methods
from pinmem_core.methods.shade import dirichlet_weights, farthest_points, things_of
from pinmem_core.models import Segmenter
from pinmem_core.training.setup import initial_segmenter, resolve


@pytest.mark.slow
class TestShade(MethodTester):
    """With retrospection, so that the frozen copy of the initial backbone is in the state."""

    method = "shade"
    options: ClassVar[dict] = {"styles": 5, "refresh_epochs": 2}
    settings: ClassVar[dict] = {"method_config": options}

    @pytest.fixture(autouse=True)
    def _pretrained(self, tmp_path):
        torch.manual_seed(0)
        weights = tmp_path / "w.pth"
        torch.save(Segmenter(small_config().model).backbone.state_dict(), weights)
        self.settings = {"init_weights": str(weights), "method_config": self.options}

    def batch(self, step, *arguments, **options):
        batch = super().batch(step, *arguments, **options)
        batch.labels[..., :32, :] = 13  # cars fill some cells
        return batch

    def test_features_at_things_are_compared_with_the_initial_ones(self):
        step = self.train_step()
        assert not step.method.notices()
        losses = step.step(0, self.batch(step)).losses["train"]
        assert losses.terms["retrospection"] > 0


def test_farthest_points_of_a_known_set():
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [10.0, 1.0], [0.2, 0.1], [5.0, 9.0]])
    # The mean is (5.04, 2.02): (10, 0) is the farthest from it, (5, 9) from that, then the origin.
    assert farthest_points(corners, 4).tolist() == [4, 0, 1, 2]
    assert sorted(farthest_points(corners, 5).tolist()) == [0, 1, 2, 3, 4]
    assert {*farthest_points(corners, 9).tolist()} == {0, 1, 2, 3, 4}


def test_weights_sum_to_1_and_mostly_name_few_styles():
    torch.manual_seed(0)
    weights = dirichlet_weights(64, 200)
    assert weights.shape == (200, 64) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(200, dtype=torch.float64))
    assert weights.amax(dim=1).mean() > 0.5
    torch.manual_seed(0)
    assert torch.equal(dirichlet_weights(64, 200), weights)


def test_things_follow_the_label_space():
    def named(space, names=None):
        space = label_space(space)
        return [space.names[train_id] for train_id in things_of(space, names)]

    cityscapes = label_space("cityscapes-19")
    assert things_of(cityscapes, None) == [6, 7, *range(11, 19)]
    assert named("camvid-11") == ["sign", "car", "pedestrian", "bicyclist"]
    assert named("idd-level1") == []
    assert named("idd-level1", ["vehicle"]) == ["vehicle"]
    with pytest.raises(ConfigError, match="class of idd-level1 'vehicles'"):
        named("idd-level1", ["vehicles"])


def test_a_run_says_why_it_has_no_retrospection():
    def notices(**values):
        config = resolve(small_config(method="shade", **values))
        method = methods.get("shade")(config)
        method.setup(Segmenter(config.model))
        return method.notices()

    (line,) = notices()
    assert "without retrospection: the run starts without pretrained weights" in line
    (line,) = notices(model__label_space="idd-level1")
    assert "no class of things" in line
    assert notices(method_config__retrospection=0) == []


def test_the_placebo_leaves_the_style_of_an_image():
    tester = TestShade()
    step = tester.train_step(method_config={"placebo": True})
    losses = step.step(0, tester.batch(step)).losses["train"]
    assert losses.terms["js"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_tokens_of_a_vit_have_no_style():
    pytest.importorskip("timm")
    config = resolve(small_config(method="shade", model__backbone="timm:vit_tiny_patch16_224"))
    with pytest.raises(ConfigError, match="needs a convolutional backbone"):
        methods.get("shade")(config).setup(initial_segmenter(config))
