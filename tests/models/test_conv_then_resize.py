"""Convolving before resizing gives what convolving afterwards gives, for less work."""

from functools import partial

import pytest
import torch
from torch import nn

from pinmem_core.config import ModelConfig
from pinmem_core.inference import Predictor
from pinmem_core.models import Segmenter
from pinmem_core.models.decoders.base import resize
from pinmem_core.models.flop_counter import cost_of
from pinmem_core.models.speedups import conv_then_resize


def plain(conv, fine, coarse):
    return conv(torch.cat([fine, resize(coarse, fine.shape[-2:])], dim=1))


@torch.no_grad()
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(
    ("small", "large"),
    [
        ((5, 7), (20, 28)),
        ((23, 30), (90, 120)),  # CamVid's, of output stride 16
        ((1, 1), (1, 1)),
        ((1, 3), (4, 9)),
        ((17, 2), (66, 5)),
        ((6, 40), (6, 40)),
        ((9, 8), (33, 257)),
    ],
)
def test_it_equals_the_convolution_of_the_resized_map(small, large, kernel):
    random = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3 + 4, 5, kernel, padding=kernel // 2).double()
    for layout in (torch.contiguous_format, torch.channels_last):
        fine = torch.randn(2, 3, *large, generator=random, dtype=torch.float64)
        coarse = torch.randn(2, 4, *small, generator=random, dtype=torch.float64)
        fine = fine.contiguous(memory_format=layout)
        found = conv_then_resize(conv, fine, coarse.contiguous(memory_format=layout))
        # torch's own resizing has its shares in double, too, and rounds them otherwise
        torch.testing.assert_close(found, plain(conv, fine, coarse), rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_it_is_less_work_the_wider_the_decoder_is():
    fine, coarse = torch.zeros(1, 48, 90, 120), torch.zeros(1, 256, 23, 30)
    conv = nn.Conv2d(48 + 256, 256, 3, padding=1, bias=False)
    early = cost_of(partial(conv_then_resize, conv, fine, coarse)).flops
    assert 3 * early < cost_of(partial(plain, conv, fine, coarse)).flops


@torch.no_grad()
def test_a_predictor_on_a_cpu_convolves_early_in_full_precision():
    segmenter = Segmenter(ModelConfig(backbone="tiny", feature_dim=64)).eval()
    full, half = (Predictor(segmenter, device="cpu", precision=p) for p in ("float32", "bf16"))
    image = torch.randn(1, 3, 40, 56)
    work = [cost_of(partial(each.network, image)).flops for each in (full, half)]
    assert work[0] < work[1] == cost_of(partial(segmenter, image)).flops
