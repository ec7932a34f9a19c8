"""The original's names of parameters and buffers, and its networks' names."""

import hashlib

import torch
from torch import Tensor, nn

from pinmem_core.config import MemoryConfig, ModelConfig
from pinmem_core.export.official import MEMORY as M_ITEMS
from pinmem_core.export.official import official_name
from pinmem_core.models import Segmenter

from .weight_rule import value

_ARCHITECTURES = {
    "DeepR18V3PlusD": ("resnet18", "deeplabv3plus"),
    "DeepR50V3PlusD": ("resnet50", "deeplabv3plus"),
    "DeepR101V2D": ("resnet101-v2", "deeplabv2"),
}


def official_tensors(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a segmenter, or of its part `prefix`, by the original's names."""
    return {official_name(prefix + key): tensor for key, tensor in module.state_dict().items()}


def official_parameters(segmenter: Segmenter) -> dict[str, nn.Parameter]:
    """Return the parameters by the original's names."""
    return {official_name(key): parameter for key, parameter in segmenter.named_parameters()}


def rule_state(module: nn.Module, seed: int, prefix: str = "") -> dict[str, Tensor]:
    """Return the rule's float32 state dict for a segmenter, or for its part `prefix`."""
    return {
        key: torch.from_numpy(value(official_name(prefix + key), tensor.shape, seed))
        for key, tensor in module.state_dict().items()
    }


def fingerprint(segmenter: Segmenter) -> str:
    """Return the manifest's `sha256_of_float32_state_dict` of this segmenter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(official_tensors(segmenter).items()):
        if name != M_ITEMS and not name.endswith("num_batches_tracked"):
            digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def batch_counts(segmenter: Segmenter) -> list[int]:
    """Return the different numbers of batches that batch norms have seen."""
    tensors = official_tensors(segmenter).items()
    return sorted({int(t) for name, t in tensors if name.endswith("num_batches_tracked")})


def stride_of(pixels: int, positions: int) -> int:
    """Return the output stride that leaves so many positions of so many pixels."""
    return min((8, 16, 32), key=lambda stride: abs(stride - pixels / positions))


def model_config(
    architecture: str, stride: int, *, memory: bool, momentum: float = 0.8
) -> ModelConfig:
    """Return the configuration of the original's `architecture`, read by softmax."""
    backbone, head = _ARCHITECTURES[architecture]
    return ModelConfig(
        backbone=backbone,
        decoder=head,
        output_stride=stride,
        memory=MemoryConfig(read="softmax", momentum=momentum) if memory else None,
    )
