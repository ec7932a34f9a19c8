"""The whole network."""

import pytest
import torch

from pinmem_core.config import ModelConfig
from pinmem_core.models import Segmenter


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
