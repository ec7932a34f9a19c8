"""Networks for the tests of exports: random, but with values as large as a trained one's."""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from pinmem_core.config import ModelConfig
from pinmem_core.data.transforms import normalize
from pinmem_core.export.check import pictures
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.models import Segmenter


@torch.no_grad()
def network(
    backbone: str = "tiny",
    decoder: str = "deeplabv3plus",
    *,
    memory: bool = True,
    stride: int = 16,
    space: LabelSpace = CITYSCAPES,
) -> Segmenter:
    """Batch norm has seen synthetic scenes: without, values shrink until float16 cannot hold them.

    Residual branches are small, as training makes them: a deep ResNet of random ones magnifies
    rounding, whatever computes it, to a per mille of its logits.
    """
    torch.manual_seed(0)
    settings = {"memory": {} if memory else None, "feature_dim": 16, "output_stride": stride}
    settings["label_space"] = space
    segmenter = Segmenter(
        ModelConfig.model_validate({"backbone": backbone, "decoder": decoder, **settings})
    )
    for module in segmenter.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        if isinstance(module, BasicBlock | Bottleneck):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            nn.init.constant_(last.weight, 0.2)
    segmenter.train()(normalize(torch.from_numpy(pictures((4, 96, 160))).permute(0, 3, 1, 2)))
    return segmenter.eval()
