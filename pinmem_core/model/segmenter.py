"""The segmenter: encode, read the memory, decode."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pinmem_core.config import ModelConfig
from pinmem_core.model.calibrated_norm import calibrate
from pinmem_core.model.head import AuxiliaryHead, resize
from pinmem_core.model.heads import heads
from pinmem_core.model.hub_model import HubModel
from pinmem_core.model.memory import CategoricalMemory
from pinmem_core.model.trunk import TrunkFeatures
from pinmem_core.model.trunks import trunks

PRECISIONS: Mapping[str, torch.dtype | None] = {
    "float32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""What `Segmenter.autocast` is in each precision."""


class Encoding(NamedTuple):
    """What is computed before the memory.

    Attributes:
        trunk: The trunk's features.
        feature: F (N, D, h, w), non-negative, never of half precision.
    """

    trunk: TrunkFeatures
    feature: Tensor


class SegmenterOutput(NamedTuple):
    """What a network makes of images.

    Attributes:
        logits: (N, K, ·, ·), at the head's resolution.
        scores: (N, K, h, w) cosines of feature and slots, or None without memory.
        encoding: What the logits were decoded from.
    """

    logits: Tensor
    scores: Tensor | None
    encoding: Encoding


class Segmenter(nn.Module, HubModel):
    """A segmentation network with a categorical memory between encoder and decoder.

    Args:
        config: The architecture.

    Attributes:
        autocast: The type that convolutions compute in, e.g. torch.bfloat16; None for that of
            the weights. The memory, its scores and the logits are never of half precision.
        about: What its checkpoint says of it beside the architecture, e.g. how it was trained.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.about: dict[str, Any] = {}
        self.autocast: torch.dtype | None = None
        self.trunk = trunks.get(config.trunk)(config.output_stride)
        self.head = heads.get(config.head)(
            self.trunk.low_channels,
            self.trunk.top_channels,
            config.output_stride,
            config.feature_dim,
            config.num_classes,
        )
        self.auxiliary = AuxiliaryHead(self.trunk.aux_channels, config.num_classes)
        self.memory: CategoricalMemory | None = None
        if config.memory:
            self.memory = CategoricalMemory(
                config.num_classes,
                config.feature_dim,
                read=config.memory.read,
                momentum=config.memory.momentum,
                temperature=config.memory.attention_temperature,
                residual=config.memory.residual,
            )
        if config.own_statistics:
            calibrate(self, config.own_statistics)

    def encode(self, images: Tensor) -> Encoding:
        """Return the features of normalised images (N, 3, H, W) before the memory."""
        with self._autocasting(images):
            trunk = self.trunk(images)
            return Encoding(trunk, _full(self.head.project(trunk)))

    def decode(self, refined: Tensor, encoding: Encoding) -> Tensor:
        """Return logits (N, K, ·, ·), at the head's resolution, of the refined feature F'."""
        with self._autocasting(refined):
            return _full(self.head.decode(refined, encoding.trunk))

    def auxiliary_logits(self, encoding: Encoding) -> Tensor:
        """Return the auxiliary head's logits (N, K, ·, ·), at its resolution."""
        with self._autocasting(encoding.feature):
            return _full(self.auxiliary(encoding.trunk.aux))

    def run(self, images: Tensor, slots: Tensor | None = None) -> SegmenterOutput:
        """Segment normalised images (N, 3, H, W), reading `slots` (K, D), by default the memory."""
        return self.segment(self.encode(images), slots)

    def segment(self, encoding: Encoding, slots: Tensor | None = None) -> SegmenterOutput:
        """Read `slots` (K, D), by default the memory, and decode."""
        refined, scores = encoding.feature, None
        if self.memory is not None:
            slots = self.memory.slots if slots is None else slots
            refined, scores = self.memory.read(encoding.feature, slots)
        return SegmenterOutput(self.decode(refined, encoding), scores, encoding)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K, H, W) of normalised images (N, 3, H, W)."""
        return resize(self.run(images).logits, images.shape[-2:])

    def _autocasting(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, self.autocast, enabled=self.autocast is not None)


def _full(values: Tensor) -> Tensor:
    """Return `values` in float32, if their precision is less."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
