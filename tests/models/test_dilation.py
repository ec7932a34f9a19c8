"""Widely dilated convolutions tap by tap, against torch's own."""

import pytest
import torch
from torch import nn

from pinmem_core.config import ComputeConfig, ModelConfig
from pinmem_core.models import Segmenter
from pinmem_core.models.speedups import DilatedConv, speed_up_dilation
from pinmem_core.training.compute import prepare


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dilation", [6, 12, 18])
@pytest.mark.parametrize("size", [(16, 16), (12, 7), (1, 1), (5, 23), (40, 40)])
def test_output_and_gradients_are_those_of_torch(size, dilation, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 4, 3, padding=dilation, dilation=dilation, bias=False)
    conv = conv.double().to(memory_format=layout)
    images = torch.randn(2, 5, *size, dtype=torch.float64).to(memory_format=layout)
    weigh = torch.randn(2, 4, *size, dtype=torch.float64)

    def outcome():
        conv.weight.grad = None
        leaf = images.clone().requires_grad_()
        output = conv(leaf)
        (output * weigh).sum().backward()
        return output.detach(), leaf.grad, conv.weight.grad

    expected = outcome()
    conv.__class__ = DilatedConv
    for of_torch, of_ours in zip(expected, outcome(), strict=True):
        torch.testing.assert_close(of_ours, of_torch, rtol=1e-12, atol=1e-12)


def test_only_wide_3x3_convolutions_are_exchanged():
    plain = nn.ModuleList(
        [
            nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False),
            nn.Conv2d(4, 4, 3, padding=6, dilation=6),
            nn.Conv2d(4, 4, 3, padding=6, dilation=6, bias=False, groups=2),
            nn.Conv2d(4, 4, 3, padding=0, dilation=6, bias=False),
            nn.Conv2d(4, 4, 1, bias=False),
        ]
    )
    speed_up_dilation(plain)
    assert all(type(conv) is nn.Conv2d for conv in plain)


@pytest.mark.parametrize(("head", "count"), [("deeplabv3plus", 3), ("deeplabv2", 4)])
def test_a_run_on_the_cpu_has_the_heads_branches_exchanged(head, count):
    config = ModelConfig(backbone="resnet10", decoder=head, feature_dim=16)
    segmenter = Segmenter(config)
    names = list(segmenter.state_dict())
    prepared = prepare(segmenter, ComputeConfig(), torch.device("cpu"))
    assert sum(type(module) is DilatedConv for module in prepared.modules()) == count
    assert list(prepared.state_dict()) == names
