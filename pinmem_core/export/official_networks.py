"""Recognize the original's networks by names and shapes of their tensors."""

from collections.abc import Mapping

from pydantic import ValidationError
from torch import Tensor

from pinmem_core.config import MemoryConfig, ModelConfig

FAMILY = (
    "pinmem supports DeepLabV3+ on a ResNet-18, -50 or -101 and DeepLabV2 on a ResNet-101, with "
    "batch norm throughout and a 7x7 stem, but without whitening or instance norm (RobustNet's "
    "ISW, IBN-Net)."
)
"""Hint for an unsupported network."""

_NETWORKS: Mapping[tuple[str, tuple[int, ...], str], tuple[str, int]] = {
    ("basic", (2, 2, 2, 2), "deeplabv3plus"): ("resnet18", 32),
    ("bottleneck", (3, 4, 6, 3), "deeplabv3plus"): ("resnet50", 16),
    ("bottleneck", (3, 4, 23, 3), "deeplabv3plus"): ("resnet101", 16),
    ("bottleneck", (3, 4, 23, 3), "deeplabv2"): ("resnet101-v2", 8),
}
"""Backbone and the original's output stride, by block type, number of blocks in layer1 to layer4,
and decoder."""

_DECODERS = {"aspp.img_conv.": "deeplabv3plus", "aspp.conv2d_list.": "deeplabv2"}
"""Decoders by a prefix of tensor names that only they have."""


def recognised(given: Mapping[str, Tensor]) -> ModelConfig | None:
    """Return the architecture of a state dict with the original's names, or None if unknown.

    Settings of the memory are the defaults; the output stride is the original's.
    """
    blocks = "bottleneck" if any(".conv3." in name for name in given) else "basic"
    counts = tuple(_count_blocks(given, layer) for layer in range(1, 5))
    head = next((head for prefix, head in _DECODERS.items() if _has(given, prefix)), "")
    if (blocks, counts, head) not in _NETWORKS:
        return None
    backbone, output_stride = _NETWORKS[blocks, counts, head]
    num_classes, feature_dim = _sizes(given)
    try:
        return ModelConfig(
            backbone=backbone,
            decoder=head,
            output_stride=output_stride,
            num_classes=num_classes,
            feature_dim=feature_dim,
            memory=MemoryConfig() if _has(given, "memory.") else None,
        )
    except ValidationError:  # no segmenter has such a size
        return None


def _has(given: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in given)


def _count_blocks(given: Mapping[str, Tensor], layer: int) -> int:
    prefix = f"layer{layer}."
    return len({name.split(".")[1] for name in given if name.startswith(prefix)})


def _sizes(given: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return K and the channels of the feature; the defaults if the classifier is invalid."""
    last = given.get("final2.0.weight")
    if last is None or last.ndim != 4:
        return ModelConfig().num_classes, ModelConfig().feature_dim
    return last.shape[0], last.shape[1]
