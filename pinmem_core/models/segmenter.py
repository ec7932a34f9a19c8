"""The segmenter: encode, read the memory, decode."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pinmem_core.checkpoints import checkpoint
from pinmem_core.checkpoints.checkpoint import CheckpointModule
from pinmem_core.config import ModelConfig
from pinmem_core.models.backbones import backbones
from pinmem_core.models.backbones.base import BackboneFeatures
from pinmem_core.models.decoders import decoders
from pinmem_core.models.decoders.base import AuxiliaryHead, resize
from pinmem_core.models.memory import CategoricalMemory
from pinmem_core.models.norm import set_alpha

PRECISIONS: Mapping[str, torch.dtype | None] = {
    "float32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Value of `Segmenter.autocast` for each precision."""


class Encoding(NamedTuple):
    """Features before the memory.

    Attributes:
        backbone: Features of the backbone.
        feature: Feature F, (N, D, h, w), non-negative, never in half precision.
    """

    backbone: BackboneFeatures
    feature: Tensor


class SegmenterOutput(NamedTuple):
    """Output of a network.

    Attributes:
        logits: Logits at the decoder's resolution, (N, K, ·, ·).
        scores: Cosines of feature and slots, (N, K, h, w); None without memory.
        encoding: Features that the logits were decoded from.
    """

    logits: Tensor
    scores: Tensor | None
    encoding: Encoding


class Segmenter(CheckpointModule):
    """A segmentation network with a categorical memory between encoder and decoder.

    Args:
        config: Architecture of the network.

    Attributes:
        autocast: Dtype of the convolutions, e.g. torch.bfloat16; None for the dtype of the
            weights. The memory, its scores and the logits are never in half precision.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.autocast: torch.dtype | None = None
        self.backbone = backbones.get(config.backbone)(config.output_stride)
        self.decoder = decoders.get(config.decoder)(
            self.backbone.low_channels,
            self.backbone.top_channels,
            config.output_stride,
            config.feature_dim,
            config.num_classes,
        )
        self.auxiliary = AuxiliaryHead(self.backbone.aux_channels, config.num_classes)
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
        if config.test_time_bn:
            set_alpha(self, config.test_time_bn)

    def encode(self, images: Tensor) -> Encoding:
        """Return the features of normalised images (N, 3, H, W) before the memory."""
        with self._autocasting(images):
            backbone = self.backbone(images)
            return Encoding(backbone, _full(self.decoder.project(backbone)))

    def decode(self, refined: Tensor, encoding: Encoding) -> Tensor:
        """Return logits (N, K, ·, ·) of the refined feature F', at the decoder's resolution."""
        with self._autocasting(refined):
            return _full(self.decoder.decode(refined, encoding.backbone))

    def auxiliary_logits(self, encoding: Encoding) -> Tensor:
        """Return logits (N, K, ·, ·) of the auxiliary head, at its resolution."""
        with self._autocasting(encoding.feature):
            return _full(self.auxiliary(encoding.backbone.aux))

    def run(self, images: Tensor, slots: Tensor | None = None) -> SegmenterOutput:
        """Segment normalised images (N, 3, H, W); read `slots` (K, D), by default the memory's."""
        return self.segment(self.encode(images), slots)

    def segment(self, encoding: Encoding, slots: Tensor | None = None) -> SegmenterOutput:
        """Read `slots` (K, D), by default the memory's, and decode."""
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


def load_checkpoint(folder: Path) -> tuple[Segmenter, dict[str, Any]]:
    """Return the segmenter in `folder`, in evaluation mode on the CPU, and its `config.json`.

    Raises:
        CheckpointError: As for `checkpoints.checkpoint.load_checkpoint`.
        MachineError: Memory ran out.
    """
    return checkpoint.load_checkpoint(folder, Segmenter)


def _full(values: Tensor) -> Tensor:
    """Return half-precision `values` as float32, and other values unchanged."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
