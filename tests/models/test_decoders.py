"""Decoders."""

from typing import ClassVar

import pytest
import torch
from testers import DecoderTester
from torch import nn

from pinmem_core.config import ModelConfig
from pinmem_core.models import Segmenter


class TestDeepLabV2(DecoderTester):
    model: ClassVar = {"decoder": "deeplabv2"}


class TestDeepLabV3Plus(DecoderTester):
    model: ClassVar = {"decoder": "deeplabv3plus"}


class TestLinear(DecoderTester):
    model: ClassVar = {"decoder": "linear"}


class TestFlat(DecoderTester):
    model: ClassVar = {"decoder": "flat"}


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


class TestSegFormer(DecoderTester):
    model: ClassVar = {"decoder": "segformer"}


class TestFPN(DecoderTester):
    model: ClassVar = {"decoder": "fpn"}


class TestMask(DecoderTester):
    model: ClassVar = {"decoder": "mask"}

    @pytest.mark.exhaustive
    def test_it_is_exported(self, tmp_path):
        super().test_it_is_exported(tmp_path, (50, 70))
