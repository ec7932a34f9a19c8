import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from pinmem_core.config import MemoryConfig, ModelConfig
from pinmem_core.errors import CheckpointError, ConfigError, DataError
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint
from pinmem_core.models.backbones import backbones
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


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ModelConfig(), 45_284_057),
        (ModelConfig(memory=None), 45_081_542),
        (ModelConfig(backbone="resnet18", output_stride=32), 18_001_113),
        (ModelConfig(backbone="resnet101-v2", decoder="deeplabv2", output_stride=8), 66_904_185),
    ],
)
def test_networks_have_the_originals_parameter_counts(config, parameters):
    with torch.device("meta"):
        segmenter = Segmenter(config)
    assert sum(p.numel() for p in segmenter.parameters()) == parameters


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("backbone", sorted(backbones.all().keys() - {"tiny", "resnet101"}))
def test_every_trunk_has_the_output_stride_asked_for(backbone, stride):
    features = backbones.get(backbone)(stride).eval()(torch.zeros(1, 3, 64, 96))
    assert features[-1].shape[-2:] == (64 // stride, 96 // stride)
    assert features[0].shape[-2:] == (16, 24)


def test_dilation_reaches_the_first_block_too():
    layer4 = backbones.get("resnet50")(16).layer4
    assert [b.conv2.dilation for b in layer4] == [(2, 2)] * 3
    assert [b.conv2.stride for b in layer4] == [(1, 1)] * 3
    assert layer4[0].downsample[0].stride == (1, 1)


@pytest.mark.parametrize("size", [(33, 47), (64, 64), (1, 40), (100, 7)])
@pytest.mark.parametrize("head", ["deeplabv3plus", "deeplabv2"])
def test_logits_have_the_size_of_the_image(head, size):
    segmenter = Segmenter(tiny(decoder=head, num_classes=5)).eval()
    assert segmenter(torch.randn(2, 3, *size)).shape == (2, 5, *size)


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


def test_a_checkpoint_brings_back_the_same_network(tmp_path):
    segmenter = Segmenter(tiny()).eval()
    save_checkpoint(segmenter, tmp_path / "c", {"iteration": 7})
    save_checkpoint(segmenter, tmp_path / "c", {"iteration": 8})  # replaces
    loaded, config = load_checkpoint(tmp_path / "c")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(images), segmenter(images))
    assert torch.equal(loaded.memory.slots, segmenter.memory.slots)
    assert config["iteration"] == 8 and loaded.config == segmenter.config
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _drop_memory(folder):
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    del state["memory.slots"]
    save_file(state, folder / "model.safetensors")


def _other_version(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 9'))


def _other_width(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"feature_dim": 16', '"feature_dim": 24'))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_truncate, "cannot be read"),
        (_drop_memory, r"memory\.slots"),
        (_other_version, "format version 9"),
        (_other_width, "does not fit"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_a_sentence(tmp_path, spoil, said):
    folder = tmp_path / "c"
    save_checkpoint(Segmenter(tiny()), folder, {})
    spoil(folder)
    with pytest.raises(CheckpointError, match=said) as error:
        load_checkpoint(folder)
    assert "\n" not in error.value.message


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_trunk_weights_load_strictly_from_a_file(tmp_path, suffix):
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


def test_heads_are_initialised_as_stated():
    torch.manual_seed(0)
    segmenter = Segmenter(ModelConfig(backbone="resnet18", output_stride=32))
    conv = segmenter.decoder.pyramid[1][0].weight
    assert conv.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    memory = segmenter.memory
    assert torch.equal(memory.fuse[1].bias, torch.full((256,), 1e-4))
    assert memory.classifier.weight.std().item() == pytest.approx(1e-4, rel=0.05)
    norms = [m for m in segmenter.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


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
def test_weights_that_are_no_state_dict_are_told(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(DataError, match="does not hold a state dict"):
        backbones.get("resnet18")(32).load_pretrained(str(tmp_path / "weights.pth"))
