"""Every method keeps the promises of a method; a new one is a subclass of three lines."""

from pathlib import Path

import pytest
import torch
from conftest import small_config
from method_tester import MethodTester
from torchvision.models.resnet import BasicBlock, Bottleneck

from pinmem_core.config import ModelConfig, TrainConfig
from pinmem_core.errors import ConfigError
from pinmem_core.inference import Predictor
from pinmem_core.methods import methods
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.models.adapters.ibn import (
    HalfInstanceNorm,
    InstanceNorm,
    NormalizedBasicBlock,
    NormalizedBottleneck,
)
from pinmem_core.training.setup import initial_segmenter, resolve

CPU = torch.device("cpu")


class TestPinMem(MethodTester):
    method = "pinmem"


class TestMLDG(MethodTester):
    method = "mldg"


class TestAggregate(MethodTester):
    method = "aggregate"


@pytest.mark.slow
class TestIBN(MethodTester):
    method = "ibn"
    settings = {"model__backbone": "resnet10", "method_config": {"variant": "b"}}  # noqa: RUF012


class TestISW(MethodTester):
    method = "isw"
    settings = {"method_config": {"start": 0.7, "trials": 1, "trial_batches": 1}}  # noqa: RUF012


@pytest.mark.slow
class TestMixStyle(MethodTester):
    method = "mixstyle"


@pytest.mark.slow
class TestDSU(MethodTester):
    method = "dsu"


@pytest.mark.slow
class TestWildNet(MethodTester):
    method = "wildnet"


class TestConsistency(MethodTester):
    """The plug-in with settings of its own, state, and a second view."""

    method = "consistency"
    settings = {"method_config": {"weight": 0.5}}  # noqa: RUF012


def test_settings_of_a_method_are_its_own():
    config = resolve(small_config(method="consistency", method_config__weight=0.5))
    assert config.method_config == {"weight": 0.5, "decay": 0.5}
    assert methods.get("consistency")(config).settings.weight == 0.5
    with pytest.raises(ConfigError, match=r"unknown .*'method_config\.wieght'") as e:
        resolve(small_config(method="consistency", method_config__wieght=0.5))
    assert "Did you mean 'method_config.weight'" in (e.value.hint or "")
    with pytest.raises(ConfigError, match=r"method_config\.weight.*number"):
        resolve(small_config(method="consistency", method_config__weight="much"))
    with pytest.raises(ConfigError, match=r"unknown configuration key 'method_config\.x'"):
        resolve(small_config(method="pinmem", method_config__x=1))


def test_a_configuration_fits_its_method():
    assert resolve(small_config(method="pinmem")).model.memory is not None
    assert resolve(small_config(method="mldg")).model.memory is None
    for method, wanted in (("pinmem", False), ("mldg", True)):
        with pytest.raises(ConfigError, match=f"contradicts the method '{method}'"):
            resolve(small_config(method=method, use_memory=wanted))
        with pytest.raises(ConfigError, match="at least 2 images of each domain"):
            resolve(small_config(method=method, batch=1))
    for method in ("pinmem", "mldg", "aggregate"):
        assert resolve(small_config(method=method, compute__graph=True)).compute.graph
    with pytest.raises(ConfigError, match=r"compute\.graph contradicts the method"):
        resolve(small_config(method="consistency", compute__graph=True))


def test_the_documentation_shows_the_whole_file_of_mixstyle():
    root = Path(__file__).parents[2]
    source = (root / "pinmem_core/methods/mixstyle.py").read_text()
    assert f"```python\n{source}```\n" in (root / "docs/methods.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "backbone"),
    [
        ("isw", "resnet10"),
        ("isw", "mobilenet_v2"),
        ("mixstyle", "timm:resnet10t"),
        ("dsu", "mobilenet_v2"),
        ("wildnet", "resnet10"),
    ],
)
def test_methods_of_style_train_other_backbones_also_with_recomputation(method, backbone):
    pytest.importorskip("timm")
    tester, totals = MethodTester(), []
    tester.method = method
    tester.settings = {"method_config": {"p": 1.0}} if method in ("mixstyle", "dsu") else {}
    for recompute in (False, "finest"):
        step = tester.train_step(model__backbone=backbone, compute__recompute=recompute)
        step.step(0, tester.batch(step, images=2))
        totals.append(step.states()["model"])
    for name, value in totals[0].items():
        torch.testing.assert_close(totals[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


# IBN-Net


def ibn_model(variant: str, backbone: str = "resnet10", **values) -> ModelConfig:
    adapters = {"ibn": {"variant": variant}}
    return ModelConfig(backbone=backbone, feature_dim=16, adapters=adapters, **values)


def instance_norm_by_hand(maps, weight, bias, eps=1e-5):
    """Return the norm by the equations, one image and channel at a time."""
    result = torch.empty_like(maps)
    for image in range(maps.shape[0]):
        for channel in range(maps.shape[1]):
            values = maps[image, channel].flatten().tolist()
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            scale = (variance + eps) ** -0.5
            normalized = (maps[image, channel] - mean) * scale
            result[image, channel] = weight[channel] * normalized + bias[channel]
    return result


def batch_norm_by_hand(maps, norm):
    columns = (slice(None), None, None)
    scale = norm.weight * (norm.running_var + norm.eps) ** -0.5
    return (maps - norm.running_mean[columns]) * scale[columns] + norm.bias[columns]


def test_instance_norm_follows_the_equations():
    torch.manual_seed(0)
    norm, maps = InstanceNorm(5).double(), torch.randn(3, 5, 4, 6, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = instance_norm_by_hand(maps, norm.weight, norm.bias)
    torch.testing.assert_close(norm(maps), expected, rtol=0, atol=1e-9)
    point = norm(maps[..., :1, :1])[0, :, 0, 0]
    torch.testing.assert_close(point, norm.bias, rtol=0, atol=1e-9)


def test_half_instance_norm_is_instance_norm_in_front_and_batch_norm_behind():
    torch.manual_seed(0)
    norm, maps = torch.nn.BatchNorm2d(5).double(), torch.randn(3, 5, 4, 6, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    norm(maps)  # moves the statistics
    half = HalfInstanceNorm(norm).double().eval()
    expected = instance_norm_by_hand(maps[:, :2], norm.weight[:2], norm.bias[:2])
    torch.testing.assert_close(half(maps)[:, :2], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(half(maps)[:, 2:], norm.eval()(maps)[:, 2:], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("plain", "normalized", "names"),
    [
        (BasicBlock(4, 4), NormalizedBasicBlock, "12"),
        (Bottleneck(16, 4), NormalizedBottleneck, "123"),
    ],
)
def test_a_block_normalizes_the_sum_before_the_relu(plain, normalized, names):
    torch.manual_seed(0)
    block = plain.double().eval()
    block.__class__ = normalized
    channels = block.conv1.in_channels
    block.instance_norm = InstanceNorm(channels).double()
    torch.nn.init.normal_(block.instance_norm.weight)
    maps = torch.randn(2, channels, 5, 6, dtype=torch.float64)
    inner = maps
    for name in names:
        conv, batch_norm = (block.get_submodule(f"{kind}{name}") for kind in ("conv", "bn"))
        inner = batch_norm_by_hand(conv(inner), batch_norm)
        inner = inner if name == names[-1] else inner.clamp(min=0)
    norm = block.instance_norm
    expected = instance_norm_by_hand(inner + maps, norm.weight, norm.bias).clamp(min=0)
    torch.testing.assert_close(block(maps), expected, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize("backbone", ["resnet10", "resnet50"])
def test_the_norms_are_where_the_paper_puts_them(variant, backbone):
    network = Segmenter(ibn_model(variant, backbone)).backbone
    norms = [name for name, part in network.named_modules() if isinstance(part, InstanceNorm)]
    last = {"resnet10": (0, 0), "resnet50": (2, 3)}[backbone]
    if variant == "b":
        assert norms == ["bn1", *(f"layer{n + 1}.{i}.instance_norm" for n, i in enumerate(last))]
    else:
        assert {name.split(".")[0] for name in norms} == {"layer1", "layer2", "layer3"}
        assert len(norms) == {"resnet10": 3, "resnet50": 3 + 4 + 6}[backbone]


def test_contrast_and_colour_of_an_image_do_not_pass_the_stem():
    """The stem is linear, and instance norm removes an affine change of each of its channels."""
    torch.manual_seed(0)
    backbone = Segmenter(ibn_model("b")).double().eval().backbone
    maps = torch.randn(2, 64, 8, 8, dtype=torch.float64)
    scale, shift = torch.rand(2, 64, 1, 1).double() + 0.5, torch.randn(2, 64, 1, 1).double()
    normalized = backbone.bn1(scale * maps + shift)
    torch.testing.assert_close(normalized, backbone.bn1(maps), rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_pretrained_weights_fit_before_the_norms_are_inserted(tmp_path, variant):
    plain = Segmenter(ModelConfig(backbone="resnet10", feature_dim=16))
    torch.nn.init.normal_(plain.backbone.bn1.weight)
    torch.save(plain.backbone.state_dict(), tmp_path / "w.pth")
    config = small_config(
        method="ibn",
        method_config__variant=variant,
        model__backbone="resnet10",
        init_weights=str(tmp_path / "w.pth"),
    )
    segmenter = initial_segmenter(resolve(config))
    assert torch.equal(segmenter.backbone.bn1.weight, plain.backbone.bn1.weight)
    assert torch.equal(segmenter.backbone.conv1.weight, plain.backbone.conv1.weight)


@pytest.mark.parametrize("variant", ["a", pytest.param("b", marks=pytest.mark.slow)])
def test_a_checkpoint_describes_the_norms(tmp_path, variant):
    torch.manual_seed(0)
    segmenter = Segmenter(ibn_model(variant, test_time_bn=0.1)).eval()
    save_checkpoint(segmenter, tmp_path / "c", {})
    loaded, config = load_checkpoint(tmp_path / "c")
    assert config["model"]["adapters"] == {"ibn": {"variant": variant}}
    images = torch.rand(1, 3, 40, 56)
    assert torch.equal(loaded(images), segmenter(images))
    image = images[0].mul(255).byte().permute(1, 2, 0).numpy()
    assert Predictor(loaded, device="cpu").predict(image).shape == (40, 56)


def test_any_method_may_have_the_norms():
    config = resolve(small_config(method="pinmem", model__adapters__ibn__variant="a"))
    assert config.model.adapters == {"ibn": {"variant": "a"}} and config.model.memory


def test_variant_a_needs_a_resnet():
    with pytest.raises(ConfigError, match=r"\(ibn\) needs a ResNet, not 'mobilenet_v2'"):
        Segmenter(ibn_model("a", "mobilenet_v2"))
    with pytest.raises(ConfigError, match="unknown adapter 'ibm'"):
        Segmenter(ModelConfig(backbone="tiny", feature_dim=16, adapters={"ibm": {}}))


def test_a_mobilenet_has_the_norms_after_blocks_1_6_and_10():
    torch.manual_seed(0)
    segmenter = Segmenter(ibn_model("b", "mobilenet_v2")).eval()
    backbone, maps, outputs = segmenter.backbone, torch.randn(1, 3, 64, 64), []
    for number, block in enumerate(backbone.features):
        maps = block(maps)
        if number in (1, 6, 10):
            outputs.append(maps)
    moments = [torch.var_mean(maps, dim=(2, 3)) for maps in outputs]
    for variance, mean in moments:
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
        assert variance.max() > 0.5
    assert [norm.num_channels for norm in backbone.instance_norms] == [16, 32, 64]


@pytest.mark.slow
def test_a_backbone_without_batch_norm_is_refused_and_timm_with_it_is_not():
    pytest.importorskip("timm")
    for name in ("timm:convnext_atto", "timm:hrnet_w18_small"):
        with pytest.raises(ConfigError, match=r"\(ibn\) needs a backbone with batch"):
            Segmenter(ibn_model("b", name, output_stride=32))
    segmenter = Segmenter(ibn_model("b", "timm:resnet10t")).eval()
    assert [norm.num_channels for norm in segmenter.backbone.instance_norms] == [64, 64, 128]


def test_a_configuration_without_adapters_does_not_mention_them():
    assert "adapters" not in TrainConfig().model_dump()["model"]
    assert "adapters" in ibn_model("a").model_dump()
