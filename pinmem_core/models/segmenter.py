"""The segmenter: encode, read the memory, decode."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pinmem_core.checkpoints import checkpoint
from pinmem_core.checkpoints.base_weights import Kind, fingerprints
from pinmem_core.checkpoints.checkpoint import CheckpointModule
from pinmem_core.checkpoints.hub import checkpoint_of
from pinmem_core.config import ModelConfig
from pinmem_core.data.transforms import Normalization
from pinmem_core.errors import ConfigError
from pinmem_core.label_space import LabelSpace
from pinmem_core.models.adapters import build_adapters
from pinmem_core.models.backbones import backbones
from pinmem_core.models.backbones.base import Backbone, require_described
from pinmem_core.models.decoders import decoders
from pinmem_core.models.decoders.base import AuxiliaryHead, resize
from pinmem_core.models.memory import CategoricalMemory
from pinmem_core.models.norm import full_precision, has_batch_norm, set_alpha

PRECISIONS: Mapping[str, torch.dtype | None] = {
    "float32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Value of `Segmenter.autocast` for each precision."""


class Encoding(NamedTuple):
    """Features before the memory.

    Attributes:
        features: Features of the backbone, from the finest to the coarsest.
        feature: Feature F of the decoder, (N, D, h, w), never in half precision.
    """

    features: list[Tensor]
    feature: Tensor


class SegmenterOutput(NamedTuple):
    """Output of a network.

    Attributes:
        logits: Logits at the decoder's resolution, (N, K, ·, ·).
        scores: Cosines of feature and slots, (N, K, h, w); None without memory.
        encoding: Features that the logits were decoded from.
        decoded: Output of the decoder, for its loss.
    """

    logits: Tensor
    scores: Tensor | None
    encoding: Encoding
    decoded: Any


class Segmenter(CheckpointModule):
    """A segmentation network with a categorical memory between encoder and decoder.

    Args:
        config: Architecture of the network.

    Attributes:
        autocast: Dtype of the convolutions, e.g. torch.bfloat16; None for the dtype of the
            weights. The memory, its scores and the logits are never in half precision.
        frozen: Parts that `freeze` froze.
        packed: Shapes (C, h, w) of the maps that `pack` flattened.
        new_rows: Rows of the classes that the model lacks which the network starts from, by the
            name of the weights; empty otherwise.
    """

    frozen: tuple[str, ...] = ()
    packed: tuple[torch.Size, ...] = ()
    new_rows: Mapping[str, Sequence[int]] = MappingProxyType({})

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.autocast: torch.dtype | None = None
        self.backbone = _backbone(config)
        channels, strides = self.backbone.channels, self.backbone.strides
        self.decoder = decoders.get(config.decoder)(
            channels, strides, config.feature_dim, config.num_classes
        )
        self.auxiliary: AuxiliaryHead | None = None
        if self.decoder.auxiliary:
            self.auxiliary = AuxiliaryHead(channels[-2:][0], config.num_classes)
        self.memory: CategoricalMemory | None = None
        if config.memory:
            self.memory = CategoricalMemory(
                config.num_classes,
                self.decoder.dim,
                read=config.memory.read,
                momentum=config.memory.momentum,
                temperature=config.memory.attention_temperature,
                residual=config.memory.residual,
                gate=config.memory.gate,
                mask_empty=config.memory.mask_empty,
            )
        self.adapt(config)

    def adapt(self, config: ModelConfig, *, initialize: bool = False) -> None:
        """Insert the adapters of `config`, which equals the present one otherwise.

        Args:
            config: Architecture of the network.
            initialize: Whether to initialise the adapters from the weights of the backbone, which
                are pretrained and loaded already.

        Raises:
            ConfigError: An adapter does not exist or does not fit the backbone.
        """
        adapters = build_adapters(config.adapters)
        self._adapters_freeze = any(adapter.freezes for adapter in adapters)
        if self._adapters_freeze:
            self.backbone.pretrained().requires_grad_(False)
        for adapter in adapters:
            adapter.insert(self.backbone)
            adapter.insert_into_decoder(self.decoder, self.backbone)
            if initialize:
                adapter.initialize(self.backbone)
        self.config = config
        if config.test_time_bn:
            _require_batch_norm(self.backbone)
            set_alpha(self, config.test_time_bn)

    def freeze(self, parts: Sequence[str]) -> None:
        """Exclude "backbone" (its pretrained part) or "decoder" from training.

        Frozen parts stay in evaluation mode. What adapters train in a frozen backbone stays
        trained.
        """
        self.frozen = tuple(parts)
        for part in parts:
            if not (part == "backbone" and self._adapters_freeze):
                self._part(part).requires_grad_(False)
        self.train(self.training)

    def count_parameters(self) -> dict[str, int]:
        """Return the numbers of "trained" and "total" parameters."""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return {"trained": trained, "total": sum(p.numel() for p in self.parameters())}

    def _part(self, name: str) -> nn.Module:
        return self.backbone.pretrained() if name == "backbone" else self.get_submodule(name)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self.frozen:
            self._part(part).eval()
        return self

    @property
    def label_space(self) -> LabelSpace:
        """Classes of the network."""
        return self.config.label_space

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation of the images that the backbone expects."""
        return self.backbone.normalization

    @classmethod
    def base_tensors(cls, config: ModelConfig, kind: Kind, source: str) -> dict[str, Tensor]:
        """Return the tensors that base weights hold for a network, by their names in it."""
        with torch.random.fork_rng(devices=[]):
            if kind == "model":
                return load_checkpoint(checkpoint_of(source))[0].state_dict()
            backbone = _backbone(config)
            weights = backbone.read_pretrained(source) or {}
            backbone.load_weights(weights, source)
        published = {*fingerprints(weights).values()}
        state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
        return {n: state[n] for n, digest in fingerprints(state).items() if digest in published}

    def encode(self, images: Tensor) -> Encoding:
        """Return the features of normalised images (N, 3, H, W) before the memory.

        Sides that are no multiple of the backbone's `size_multiple` are resized to the next one.
        The result of `pack` can take the place of the images.
        """
        with self._autocasting(images):
            features = self.features(images)
            return Encoding(features, full_precision(self.decoder.project(features)))

    def features(self, images: Tensor, backbone: Backbone | None = None) -> list[Tensor]:
        """Return the features of normalised images (N, 3, H, W) of a backbone of the same kind.

        Args:
            images: Normalised images, or the result of `pack`.
            backbone: Backbone to run; None for that of the network.
        """
        backbone = backbone or self.backbone
        with self._autocasting(images):
            if images.ndim == 2:
                return backbone.neck(self._unpacked(images))
            features: list[Tensor] = backbone(_at_multiple(images, backbone.size_multiple))
            return features

    @torch.no_grad()
    def pack(self, images: Tensor) -> Tensor:
        """Return the outputs of the backbone's pretrained part, flattened to (N, F) float32.

        Later calls must have images of the same size.
        """
        with self._autocasting(images):
            images = _at_multiple(images, self.backbone.size_multiple)
            maps = self.backbone.pretrained_outputs(images)
        self.packed = tuple(each.shape[1:] for each in maps)
        return torch.cat([full_precision(each).flatten(1) for each in maps], dim=1)

    def _unpacked(self, packed: Tensor) -> list[Tensor]:
        parts = packed.split([shape.numel() for shape in self.packed], dim=1)
        return [part.unflatten(1, size) for part, size in zip(parts, self.packed, strict=True)]

    def decode(self, refined: Tensor, encoding: Encoding) -> Any:
        """Return the decoder's output, such as logits, for the refined feature F'."""
        with self._autocasting(refined):
            return tree_map(full_precision, self.decoder.decode(refined, encoding.features))

    def auxiliary_logits(self, encoding: Encoding) -> Tensor | None:
        """Return logits (N, K, ·, ·) of the auxiliary head at its resolution, if there is one."""
        if self.auxiliary is None:
            return None
        with self._autocasting(encoding.feature):
            return full_precision(self.auxiliary(encoding.features[-2:][0]))

    def run(self, images: Tensor, slots: Tensor | None = None) -> SegmenterOutput:
        """Segment normalised images (N, 3, H, W); read `slots` (K, D), by default the memory's."""
        return self.segment(self.encode(images), slots)

    def segment(self, encoding: Encoding, slots: Tensor | None = None) -> SegmenterOutput:
        """Read `slots` (K, D), by default the memory's, and decode."""
        refined, scores = encoding.feature, None
        if self.memory is not None:
            slots = self.memory.slots if slots is None else slots
            refined, scores = self.memory.read(encoding.feature, slots)
        decoded = self.decode(refined, encoding)
        return SegmenterOutput(self.decoder.predict(decoded), scores, encoding, decoded)

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


def _backbone(config: ModelConfig) -> Backbone:
    build = backbones.get(config.backbone)
    try:
        backbone = build(config.output_stride, **config.backbone_options)
    except TypeError as error:
        if not config.backbone_options:
            raise
        raise ConfigError(
            f"model.backbone_options do not fit the backbone '{config.backbone}': {error}."
        ) from error
    require_described(backbone, config.backbone)
    return backbone


def _require_batch_norm(backbone: Backbone) -> None:
    if not has_batch_norm(backbone):
        raise ConfigError(
            f"model.test_time_bn needs batch norm without further functions, and the backbone "
            f"'{backbone.name}' has none.",
            "Set '--set model.test_time_bn=0'.",
        )


def _at_multiple(images: Tensor, multiple: int) -> Tensor:
    """Resize images to sides that are multiples of `multiple`; each side grows."""
    height, width = (-(-side // multiple) * multiple for side in images.shape[-2:])
    dynamic = type(images.shape[-1]) is not int  # an exported size, which cannot be compared
    if multiple == 1 or (not dynamic and (height, width) == images.shape[-2:]):
        return images
    return resize(images, (height, width))
