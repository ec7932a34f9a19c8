"""Bilinear resizing by matrix products, as training does it on a GPU, against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from pinmem_core.models.decoders.base import resize_by_products


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("small", "large"),
    [((6, 9), (21, 30)), ((1, 1), (5, 4)), ((12, 12), (12, 48)), ((7, 5), (3, 2))],
)
def test_values_and_gradients_are_those_of_torch(small, large, layout):
    torch.manual_seed(0)
    maps = torch.randn(2, 5, *small, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    expected = F.interpolate(maps, size=large, mode="bilinear", align_corners=True)
    resized = resize_by_products(maps, large)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(r, maps, upstream)[0] for r in (expected, resized)]
    torch.testing.assert_close(resized, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-13)
    assert resized.is_contiguous(memory_format=layout) or small == (1, 1)
