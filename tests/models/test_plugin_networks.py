"""A backbone or decoder of one's own that is not as it says is refused before it is trained."""

import numpy as np
import pytest
from conftest import small_config

import pinmem_core.models.backbones
import pinmem_core.models.decoders
from pinmem_core.errors import ConfigError
from pinmem_core.inference import load
from pinmem_core.training import train

BACKBONE = """
import torch
from torch import nn
from pinmem_core.models.backbones.base import Backbone
from pinmem_core.models.backbones.tiny import Tiny
class Added(Tiny):
{}
BACKBONES = {{"added": Added}}
"""
INIT = "    def __init__(self, output_stride):\n        super().__init__(output_stride)\n        "
DECODER = """
import torch
from pinmem_core.models.decoders.flat import Flat
class Added(Flat):
{}
DECODERS = {{"added": Added}}
"""


@pytest.mark.parametrize(
    "text",
    [
        f"{INIT}self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 4)]",
        f"{INIT}self.rates = torch.linspace(0, 0.1, 4).numpy()",
        f"{INIT}self.again = self.stage2",
    ],
)
def test_a_backbone_that_reads_values_or_shares_weights_can_be_loaded(text, add_plugin, tmp_path):
    add_plugin(pinmem_core.models.backbones, BACKBONE.format(text))
    config = small_config(method="aggregate", model__backbone="added")
    train(config, tmp_path / "run")
    assert load(tmp_path / "run").predict(np.zeros((40, 50, 3), np.uint8)).shape == (40, 50)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{INIT}del self.channels", "lacks the attribute 'channels'"),
        (f"{INIT}self.strides = [16]", "has 3 channels and 1 strides"),
        (f"{INIT}self.strides = [8, 16, 32]", "of 8 channels has the stride 4 instead of 8"),
        (f"{INIT}self.channels = [8, 12, 17]", r"\(1, 16, 4, 4\) instead of 17 channels"),
        ("    def stages(self): return super().stages()[:2]", "returns 2 features instead of 3"),
        ("    size_multiple = 0", "a size_multiple, stride or number of channels below 1"),
        ("    mean = std = (0.5,)", "a mean and a std of three numbers"),
        ("    mean = torch.zeros(3)", "a mean and a std of three numbers"),
        ("    mean = (123.0, 116.0, 103.0)", "images in 0..1, not 0..255"),
        ("    std = (0.0, 0.0, 0.0)", "a std that is not above 0"),
    ],
)
def test_a_backbone_that_is_not_as_it_says_is_refused(text, message, add_plugin, tmp_path):
    add_plugin(pinmem_core.models.backbones, BACKBONE.format(text))
    with pytest.raises(ConfigError, match=f"the backbone 'added' .*{message}"):
        train(small_config(method="aggregate", model__backbone="added"), tmp_path / "run")


def test_a_constructor_that_returns_no_backbone_is_refused(add_plugin, tmp_path):
    text = "import torch\nBACKBONES = {'added': lambda stride: torch.nn.Conv2d(3, 8, 1)}"
    add_plugin(pinmem_core.models.backbones, text)
    with pytest.raises(ConfigError, match="'added' is a Conv2d, no Backbone"):
        train(small_config(method="aggregate", model__backbone="added"), tmp_path / "run")


LOSS = "    def loss(self, output, labels, pixel_loss): return "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "    def __init__(self, channels, strides, dim, classes):\n"
            "        super().__init__(channels, strides, dim, classes + 1)",
            r"\(1, 20, 4, 4\) instead of \(N, 19, h, w\) for 19 classes",
        ),
        ("    dim = property(lambda _: 5, lambda *_: None)", "its 'dim' is 5"),
        (
            "    def decode(self, refined, features): return refined[:, :19].flatten(2)",
            r"\(1, 16, 16\) instead of",
        ),
        (f"{LOSS}pixel_loss(output, labels)", "returns no losses by name"),
        (f"{LOSS}{{}}", "returns no losses by name"),
        (f"{LOSS}{{'seg': pixel_loss(output, labels)[None]}}", "returns no losses by name"),
        (
            f"{LOSS}{{'seg': pixel_loss(output, labels), 'aux': output.square().mean()}}",
            "names a loss 'aux'",
        ),
    ],
)
def test_a_decoder_that_is_not_as_it_says_is_refused(text, message, add_plugin, tmp_path):
    add_plugin(pinmem_core.models.decoders, DECODER.format(text))
    with pytest.raises(ConfigError, match=f"the decoder 'added' .*{message}"):
        train(small_config(method="aggregate", model__decoder="added"), tmp_path / "run")
