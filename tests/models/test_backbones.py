"""Backbones: torchvision's and timm's, and their pretrained weights."""

import sys
from typing import ClassVar

import pytest
import timm
import torch
from conftest import Result
from safetensors.torch import save_file
from testers import BackboneTester

import pinmem_core as pm
from pinmem_core.config import ModelConfig
from pinmem_core.errors import ConfigError, DataError, MachineError
from pinmem_core.export.files import export_model
from pinmem_core.models import Segmenter
from pinmem_core.models.backbones import backbones
from pinmem_core.models.norm import synchronize_batch_norm

CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [8, 12, 16, 20]}
VIT = {"depth": 3, "embed_dim": 32, "num_heads": 2}


class TestTiny(BackboneTester):
    model: ClassVar = {"backbone": "tiny"}


class TestResNet(BackboneTester):
    model: ClassVar = {"backbone": "resnet10"}


class TestMobileNet(BackboneTester):
    model: ClassVar = {"backbone": "mobilenet_v2", "output_stride": 8}


@pytest.mark.slow
class TestConvNeXt(BackboneTester):
    model: ClassVar = {"backbone": "timm:convnext_atto", "backbone_options": CONVNEXT}


class TestViT(BackboneTester):
    model: ClassVar = {"backbone": "timm:vit_tiny_patch16_224", "backbone_options": VIT}


@pytest.mark.slow
class TestDINOv2(BackboneTester):
    model: ClassVar = {
        "backbone": "timm:vit_small_patch14_dinov2",
        "backbone_options": VIT,
        "output_stride": 32,
        "decoder": "linear",
    }


@pytest.mark.exhaustive
class TestSwin(BackboneTester):
    model: ClassVar = {
        "backbone": "timm:swin_tiny_patch4_window7_224",
        "backbone_options": {"depths": [1, 1, 2, 1], "embed_dim": 8, "num_heads": [1, 1, 2, 2]},
        "output_stride": 32,
    }


@pytest.mark.slow
class TestDINOv3(BackboneTester):
    model: ClassVar = {"backbone": "timm:vit_small_patch16_dinov3", "backbone_options": VIT}


@pytest.mark.slow
class TestEVA02(BackboneTester):
    model: ClassVar = {
        "backbone": "timm:eva02_tiny_patch14_224",
        "backbone_options": VIT,
        "decoder": "fpn",
    }


@pytest.mark.exhaustive
class TestRegisters(BackboneTester):
    model: ClassVar = {
        "backbone": "timm:vit_small_patch14_reg4_dinov2",
        "backbone_options": VIT,
        "decoder": "segformer",
    }


@pytest.mark.exhaustive
class TestCLIP(BackboneTester):
    model: ClassVar = {"backbone": "timm:vit_base_patch16_clip_224", "backbone_options": VIT}


@pytest.mark.exhaustive
class TestConvNeXtV2(BackboneTester):
    model: ClassVar = {"backbone": "timm:convnextv2_atto", "backbone_options": CONVNEXT}


@pytest.mark.exhaustive
class TestResNetOfTimm(BackboneTester):
    model: ClassVar = {"backbone": "timm:resnet18", "output_stride": 8}


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(
    "backbone",
    [
        "mobilenet_v2",
        "resnet10",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("resnet101-v2", marks=pytest.mark.slow),
    ],
)
def test_every_backbone_has_the_output_stride_asked_for(backbone, stride):
    features = backbones.get(backbone)(stride).eval()(torch.zeros(1, 3, 64, 96))
    assert features[-1].shape[-2:] == (64 // stride, 96 // stride)
    assert features[0].shape[-2:] == (16, 24)


def test_dilation_reaches_the_first_block_too():
    layer4 = backbones.get("resnet50")(16).layer4
    assert [b.conv2.dilation for b in layer4] == [(2, 2)] * 3
    assert [b.conv2.stride for b in layer4] == [(1, 1)] * 3
    assert layer4[0].downsample[0].stride == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_load_strictly_from_a_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    source, backbone = backbones.get("mobilenet_v2")(32), backbones.get("mobilenet_v2")(16)
    state = source.state_dict() | {"classifier.1.bias": torch.zeros(3)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    backbone.load_pretrained(str(path))
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in backbone.state_dict().items())
    with pytest.raises(DataError, match="do not fit resnet18"):
        backbones.get("resnet18")(32).load_pretrained(str(path))


@pytest.mark.parametrize(
    ("weights", "said"), [("nowhere.pth", "does not exist"), ("IMAGENET1K_V3", "unknown weights")]
)
def test_weights_that_do_not_exist_are_named(weights, said):
    with pytest.raises(ConfigError, match=said):
        backbones.get("resnet50")(16).load_pretrained(weights)


def test_a_damaged_weights_file_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(DataError, match="cannot be read"):
        backbones.get("resnet18")(32).load_pretrained(str(path))


class _Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def test_weights_that_would_run_code_are_refused_and_do_not(tmp_path):
    torch.save({"conv1.weight": _Payload(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(DataError, match="could run code"):
        backbones.get("resnet18")(32).load_pretrained(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"a": torch.zeros(1)}}])
def test_weights_that_are_no_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(DataError, match="does not hold a state dict"):
        backbones.get("resnet18")(32).load_pretrained(str(tmp_path / "weights.pth"))


def dinov2(**options):
    return backbones.get("timm:vit_small_patch14_dinov2")(16, **{**VIT, **options})


def test_weights_of_a_vit_are_resampled_to_patches_of_16_pixels(tmp_path):
    given, taken = dinov2(patch_size=14, img_size=56), dinov2(img_size=64)
    state = {k: v.half() for k, v in given.network.state_dict().items()}
    save_file({**state, "mask_token": torch.zeros(1, 32)}, tmp_path / "w.safetensors")
    assert (given.strides, given.size_multiple) == ([3, 7, 14, 14], 14)
    assert (taken.strides, taken.size_multiple) == ([4, 8, 16, 16], 16)
    assert taken.load_pretrained(str(tmp_path / "w.safetensors"))
    assert taken.network.patch_embed.proj.weight.shape[2:] == (16, 16)
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(taken.network.state_dict()[name], state[name].float())


def test_weights_of_a_whole_network_lose_the_head_and_nothing_else(tmp_path):
    convnext = backbones.get("timm:convnext_atto")
    state = timm.create_model("convnext_atto", num_classes=9, **CONVNEXT).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    backbone = convnext(16, **CONVNEXT)
    assert backbone.load_pretrained(str(tmp_path / "w.safetensors"))
    assert all(torch.equal(v, state[k]) for k, v in backbone.network.state_dict().items())
    save_file(state | {"extra": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match="do not fit timm:convnext_atto: they have an extra extra"):
        backbone.load_pretrained(str(tmp_path / "w.safetensors"))


def test_weights_by_tag_are_downloaded_only_when_that_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = dinov2()
    assert not backbone.load_pretrained("lvd142m", download=False)
    assert not backbone.load_pretrained("default", download=False)
    with pytest.raises(ConfigError, match="unknown weights of timm:vit_small") as error:
        backbone.load_pretrained("lvd142", download=False)
    assert "Did you mean 'lvd142m'?" in error.value.hint


def test_each_backbone_has_a_normalisation_of_its_own():
    vit, convnext = (
        Segmenter(ModelConfig(backbone=name, backbone_options=options, feature_dim=16))
        for name, options in (
            ("timm:vit_tiny_patch16_224", VIT),
            ("timm:convnext_atto", CONVNEXT),
        )
    )
    assert vit.normalization.mean == (0.5, 0.5, 0.5)
    assert convnext.normalization == Segmenter(ModelConfig(backbone="tiny")).normalization


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "timm:convnext_ato"}, "timm has no network 'convnext_ato'"),
        ({"backbone": "tim:convnext_atto"}, "unknown backbone 'tim:convnext_atto'"),
        ({"backbone": "timm:swin_tiny_patch4_window7_224"}, "fixed output stride"),
        ({"backbone_options": {"depth": 3}}, "backbone_options do not fit the backbone 'resnet50'"),
        (
            {"backbone": "timm:convnext_atto", "test_time_bn": 0.1},
            "needs batch norm without further functions, and the backbone 'timm:convnext_atto'",
        ),
    ],
)
def test_what_a_backbone_cannot_do_is_refused(settings, said):
    with torch.device("meta"), pytest.raises(ConfigError, match=said):
        Segmenter(ModelConfig(**settings))


def test_batch_norms_that_do_more_are_not_replaced():
    network = Segmenter(ModelConfig(backbone="timm:test_efficientnet", feature_dim=16))
    with pytest.raises(ConfigError, match="BatchNormAct2d cannot be synchronised"):
        synchronize_batch_norm(network, torch.device("cpu"))
    with pytest.raises(ConfigError, match="needs batch norm without further functions"):
        Segmenter(network.config.model_copy(update={"test_time_bn": 0.1}))


def test_without_timm_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MachineError, match="timm is not installed") as error:
        Segmenter(ModelConfig(backbone="timm:convnext_atto"))
    assert "pip install 'pinmem[backbones]'" in error.value.hint


def test_names_are_listed_by_pattern():
    assert "resnet50" in pm.list_backbones() and "deeplabv3plus" in pm.list_decoders()
    assert pm.list_backbones("mobile*") == ["mobilenet_v2"]
    assert "timm:vit_small_patch14_dinov2" in pm.list_backbones("timm:dinov2*")
    assert "timm:convnext_atto" in pm.list_backbones("timm:convnext_att*")
    assert "timm:convnext_tiny" in pm.list_backbones("timm:convnext*dinov3*")  # weights' tag
    assert pm.list_backbones("timm:convnext*nonsense*") == []


@pytest.mark.slow
def test_backbones_are_listed_with_the_licences_of_their_weights():
    listed = {
        of["name"]: of["weights"]
        for of in Result("train", "--backbones", "*net50", "--json").json["backbones"]
    }
    assert listed["resnet50"] == {} and listed["timm:resnet50"]["a1_in1k"] == "apache-2.0"
    shown = Result("train", "--backbones", "dinov2*").out
    assert "timm:vit_small_patch14_dinov2" in shown and "lvd142m" in shown


def test_the_licence_of_published_weights_is_known_and_that_of_a_file_is_not(tmp_path):
    vit = dinov2()
    assert vit.licence_of("lvd142m") == vit.licence_of("default") == "apache-2.0"
    assert vit.licence_of(str(tmp_path / "vit.safetensors")) is None


def test_drop_path_is_an_option_of_the_backbone():
    vit = dinov2(drop_path_rate=0.5).train()
    torch.manual_seed(0)
    first, second = (vit(torch.ones(8, 3, 32, 32))[-1] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (vit.eval()(torch.ones(8, 3, 32, 32))[-1] for _ in range(2))
    assert torch.equal(first, second)


def test_a_fixed_size_is_asked_for_where_an_export_needs_one(tmp_path):
    segmenter = Segmenter(TestConvNeXt().config()).eval()
    with pytest.raises(ConfigError, match="exported for one image size only"):
        export_model(segmenter, tmp_path / "file", "onnx")
