"""Styles of maps, and the places where methods change them."""

import pytest
import torch

from pinmem_core.config import ModelConfig
from pinmem_core.errors import ConfigError
from pinmem_core.methods.style import Places, restyle, style_of
from pinmem_core.models import Segmenter


def network(backbone: str, **values) -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(backbone=backbone, feature_dim=8, memory=None, **values)
    return Segmenter(config).eval()


def test_the_style_is_mean_and_deviation_of_each_channel():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    style = style_of(maps)
    for image in range(2):
        for channel in range(3):
            values = maps[image, channel].flatten().tolist()
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            assert style.mean[image, channel].item() == pytest.approx(mean, abs=1e-12)
            assert style.std[image, channel].item() == pytest.approx((variance + 1e-6) ** 0.5)


def test_restyled_maps_have_the_new_style_and_the_own_style_changes_nothing():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 8, 8)
    own = style_of(maps)
    assert torch.equal(restyle(maps, own, own), maps)
    new = style_of(7 * torch.randn(2, 3, 5, 5) + 2)
    for got, expected in zip(style_of(restyle(maps, own, new)), new, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    half = restyle(maps.bfloat16(), style_of(maps.bfloat16()), new)
    assert half.dtype == torch.bfloat16 and style_of(half).mean.dtype == torch.float32


@pytest.mark.parametrize("backbone", ["tiny", "resnet10"])
def test_every_place_is_reached_and_changed_only_in_the_block(backbone):
    segmenter, images = network(backbone), torch.randn(1, 3, 64, 64)
    before, seen = segmenter.backbone(images), []
    places = Places(segmenter)

    def zero(number, maps):
        seen.append(number)
        return torch.zeros_like(maps)

    with places.changing(zero):
        features = segmenter.backbone(images)
    assert seen == [*range(len(features) + 1)]
    assert not any(feature.any() for feature in features)
    for feature, expected in zip(segmenter.backbone(images), before, strict=True):
        assert torch.equal(feature, expected)


def test_a_place_that_the_backbone_lacks_is_refused():
    with pytest.raises(ConfigError, match="has no place 7") as error:
        Places(network("tiny"), (0, 7))
    assert "Choose from 0 to 3" in (error.value.hint or "")


@pytest.mark.slow
def test_a_backbone_without_maps_is_refused():
    pytest.importorskip("timm")
    for name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "hrnet_w18_small"):
        with pytest.raises(ConfigError, match="needs a convolutional backbone with stages, not"):
            Places(network(f"timm:{name}", decoder="linear", output_stride=32))


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "timm:resnet10t", pytest.param("timm:convnext_atto", marks=pytest.mark.slow)],
)
def test_the_stem_comes_before_the_first_stage(name):
    pytest.importorskip("timm")
    segmenter, order = network(name, output_stride=32), []
    places = Places(segmenter, (0, 1))
    with places.changing(lambda number, maps: (order.append((number, maps.shape[2])), maps)[1]):
        segmenter.backbone(torch.randn(1, 3, 64, 64))
    assert order == [(0, 32 if name == "mobilenet_v2" else 16), (1, 16)]
