"""Segmenters as the original ran them, and what goes on inside them."""

import functools
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

from pinmem_core.config import ModelConfig
from pinmem_core.label_space import CITYSCAPES
from pinmem_core.models import Segmenter
from pinmem_core.models.memory import soft_masks

from .fixtures import DEVICE
from .names import rule_state


@functools.lru_cache(maxsize=1)
def _rule_state(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    return rule_state(_empty(config), seed)


def _empty(config: ModelConfig) -> Segmenter:
    with torch.device("meta"):
        return Segmenter(config)


def rule_segmenter(config: ModelConfig, seed: int, dtype: torch.dtype) -> Segmenter:
    """Return a segmenter with the rule's weights and memory, without dropout."""
    state = {
        key: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        for key, tensor in _rule_state(config, seed).items()
    }
    segmenter = _empty(config)
    segmenter.load_state_dict(state, assign=True)
    for module in segmenter.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    return segmenter.to(DEVICE)


_OUTPUTS = {
    "backbone.maxpool": "layer0",
    "backbone.layer1": "layer1",
    "backbone.layer2": "layer2",
    "backbone.layer3": "layer3",
    "backbone.layer4": "layer4",
    "decoder.projection": "bot_aspp",
    "decoder.fine": "bot_fine",
    "decoder.fusion": "final1",
    "decoder.classifier": "final2",
    "auxiliary": "dsn",
}


@contextmanager
def features(segmenter: Segmenter) -> Iterator[dict[str, Tensor]]:
    """Collect what a forward computes, by the original's names of layers; F is "inter_feature"."""
    seen: dict[str, Tensor] = {}
    head = segmenter.decoder

    def keep(layer: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[layer] = output.detach()
        if layer == "bot_aspp":
            seen["aspp"] = inputs[0].detach()

    def project(backbone: list[Tensor]) -> Tensor:
        seen["inter_feature"] = type(head).project(head, backbone)
        seen.setdefault("aspp", seen["inter_feature"])  # a head without projection
        return seen["inter_feature"]

    def decode(refined: Tensor, backbone: list[Tensor]) -> Tensor:
        seen["memory"] = refined.detach()
        return type(head).decode(head, refined, backbone)

    with ExitStack() as stack:
        for path, module in segmenter.named_modules():
            if path in _OUTPUTS:
                hook = functools.partial(keep, _OUTPUTS[path])
                stack.enter_context(module.register_forward_hook(hook))
        stack.enter_context(patch.object(head, "project", project))
        stack.enter_context(patch.object(head, "decode", decode))
        yield seen


def soft_counts(labels: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the counts of all classes, and what is left for the ignored pixels."""
    counts = soft_masks(labels, len(CITYSCAPES), size, dtype).sum(dim=(0, 2, 3))
    return torch.cat([counts, (len(labels) * math.prod(size) - counts.sum())[None]])
