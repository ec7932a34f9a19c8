"""`spc`: the promises of a method, its bases, and what it refuses."""

import pytest
import torch
from conftest import small_config
from method_tester import MethodTester

from pinmem_core.errors import ConfigError
from pinmem_core.models.adapters.class_bases import ClassBases
from pinmem_core.models.adapters.style_projection import Projection
from pinmem_core.training.setup import initial_segmenter, resolve


@pytest.mark.slow
class TestSPCNet(MethodTester):
    method = "spc"


def test_the_control_is_instance_norm_with_a_linear_classifier():
    settings = {"projection": "instance_norm", "clustering": False}
    step = TestSPCNet().train_step(method_config=settings)
    assert "compact" not in step.step(0, TestSPCNet().batch(step)).losses["train"].terms
    backbone, decoder = step.segmenter.eval().backbone, step.segmenter.decoder
    assert isinstance(decoder.classifier, torch.nn.Conv2d)
    features = backbone(torch.randn(2, 3, 64, 64))
    for feature in features[:2]:
        means, stds = feature.mean(dim=(2, 3)), feature.std(dim=(2, 3), correction=0)
        torch.testing.assert_close(means, torch.zeros_like(means), rtol=0, atol=1e-5)
        assert (stds < 1.001).all() and stds.max() > 0.99
    assert features[2].mean() > 0.01


@pytest.mark.parametrize("uniform", [False, True])
def test_the_output_has_a_mixture_of_the_styles_of_the_domains(uniform):
    torch.manual_seed(0)
    projection = Projection(3, 2, 0.9, uniform=uniform).double()
    maps = (
        torch.randn(4, 3, 8, 8, dtype=torch.float64)
        + torch.tensor([0.0, 3.0] * 2)[:, None, None, None]
    )
    restyled = projection(maps)  # before the first update: instance norm
    torch.testing.assert_close(restyled.mean(dim=(2, 3)), torch.zeros(4, 3).double())
    projection.update(2)
    restyled = projection(maps)
    weights = (restyled.mean(dim=(2, 3)) - projection.means[0]) / (
        projection.means[1] - projection.means[0]
    )
    torch.testing.assert_close(weights, weights[:, :1].expand(-1, 3))
    if uniform:
        torch.testing.assert_close(weights, torch.full_like(weights, 0.5))
    else:
        assert (weights[::2] < 0.45).all() and (weights[1::2] > 0.55).all()


def test_bases_are_moving_averages_and_the_first_update_replaces_them():
    projection = Projection(1, 2, 0.75, uniform=False)
    for value in (1.0, 5.0):
        projection(torch.full((2, 1, 2, 2), value))
        projection.update(2)
    assert projection.means.flatten().tolist() == [2.0, 2.0]

    bases = ClassBases(2, 1, 2, 0.75, 1.0)
    right, up = torch.tensor([[[1.0, 0.0]]] * 2), torch.tensor([[[0.0, 1.0]]] * 2)
    counts = torch.tensor([[3.0], [0.0]])
    bases.update(right, counts)
    assert bases.bases.flatten(0, 1).tolist() == [[1, 0], [0, 0]]
    bases.update(up, counts)
    moved = torch.tensor([3.0, 1.0]) / 10**0.5
    torch.testing.assert_close(bases.bases[0, 0], moved)


def test_one_source_has_the_pseudo_domains():
    config = resolve(small_config(method="spc", sources=["toy:red"], pseudo_domains=3))
    assert config.model.adapters["style_projection"]["domains"] == 3
    assert initial_segmenter(config).decoder.classifier.bases.shape[1] == 3


def test_what_it_is_not_defined_for_is_refused():
    config = resolve(small_config(method="spc", model__decoder="mask"))
    with pytest.raises(ConfigError, match="class bases need a decoder that ends in a 1x1") as error:
        initial_segmenter(config)
    assert "method_config.clustering=false" in error.value.hint
    with pytest.raises(ConfigError, match="needs 9 stages of feature maps"):
        initial_segmenter(resolve(small_config(method="spc", method_config__stages=9)))


@pytest.mark.slow
def test_tokens_of_a_vit_have_no_style():
    pytest.importorskip("timm")
    config = small_config(method="spc", model__backbone="timm:vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match="style projection needs 2 stages of feature maps"):
        initial_segmenter(resolve(config))


@pytest.mark.parametrize("backbone", ["resnet10", "mobilenet_v2"])
def test_it_works_with_other_backbones(backbone):
    config = resolve(small_config(method="spc", model__backbone=backbone))
    segmenter = initial_segmenter(config).eval()
    assert segmenter(torch.randn(1, 3, 64, 64)).shape == (1, 19, 64, 64)
