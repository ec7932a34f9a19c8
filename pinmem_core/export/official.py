"""Convert checkpoints of the original implementation and of its family to segmenters.

Names and shapes of tensors do not determine the output stride and how the memory was read and
written. These settings are assumed to be the original's, and are reported.
"""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from pinmem_core.checkpoints.checkpoint import state_dict_mismatch
from pinmem_core.checkpoints.torch_file import is_state_dict, is_weight, read_torch_file
from pinmem_core.config import MemoryConfig, ModelConfig
from pinmem_core.errors import CheckpointError
from pinmem_core.files import sha256_of
from pinmem_core.label_space import CITYSCAPES
from pinmem_core.models import Segmenter
from pinmem_core.models.decoders.base import AuxiliaryHead

MEMORY = "memory.m_items"
"""Name of the memory's slots, which the original stores outside of its state dict."""

_PREFIXES = {
    "backbone.conv1": "layer0.0",
    "backbone.bn1": "layer0.1",
    "backbone.layer": "layer",
    "decoder.pooled": "aspp.img_conv",
    "decoder.pyramid": "aspp.features",
    "decoder.branches": "aspp.conv2d_list",
    "decoder.projection": "bot_aspp",
    "decoder.fine": "bot_fine",
    "decoder.fusion": "final1",
    "decoder.classifier": "final2.0",
    "auxiliary": "dsn",
    "memory.slots": MEMORY,
    "memory.fuse": "memory.output",
    "memory.write_map": "memory.writenet.writefeat",
    "memory.classifier": "memory.clsfier",
}


def official_name(name: str) -> str:
    """Return the original's name of a segmenter's parameter or buffer.

    Args:
        name: Name in a segmenter with a ResNet, the only backbone of the original.
    """
    prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
    return _PREFIXES[prefix] + name.removeprefix(prefix)


FAMILY = (
    "pinmem supports DeepLabV3+ on a ResNet-18, -50 or -101 and DeepLabV2 on a ResNet-101, with "
    "batch norm throughout and a 7x7 stem, for up to 19 classes, but without whitening or instance "
    "norm (RobustNet's ISW, IBN-Net)."
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
_LOSSES = "criterion"
"""Prefix of the losses' buffers, which inference does not need."""


def recognized(given: Mapping[str, Tensor]) -> ModelConfig | None:
    """Return the architecture of a state dict with the original's names, or None if unknown.

    Settings of the memory are the defaults; the output stride is the original's.
    """
    blocks = "bottleneck" if any(".conv3." in name for name in given) else "basic"
    layers = (f"layer{number}." for number in range(1, 5))
    counts = tuple(len({n.split(".")[1] for n in given if n.startswith(la)}) for la in layers)
    decoder = next((head for prefix, head in _DECODERS.items() if _has(given, prefix)), "")
    if (blocks, counts, decoder) not in _NETWORKS:
        return None
    backbone, output_stride = _NETWORKS[blocks, counts, decoder]
    last = given.get("final2.0.weight")  # (K, feature_dim, 1, 1)
    sizes = {}
    if last is not None and last.ndim == 4:
        sizes = {"num_classes": last.shape[0], "feature_dim": last.shape[1]}
    try:
        return ModelConfig(
            backbone=backbone,
            decoder=decoder,
            output_stride=output_stride,
            memory=MemoryConfig() if _has(given, "memory.") else None,
            **sizes,
        )
    except ValidationError:  # no segmenter has such a size
        return None


def _has(given: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in given)


def convert_official(
    path: Path, *, allow_missing_memory: bool = False
) -> tuple[Segmenter, dict[str, Any]]:
    """Convert a `.pth` file to a segmenter.

    The file may come from the original, with or without memory, or from its family (RobustNet's
    baseline, plain DeepLabV3+). It may be a training state or a bare state dict, in any
    floating-point type. No code in the file is executed.

    Args:
        path: Path of the file.
        allow_missing_memory: Whether to accept a network with memory whose memory is not in the
            file. Its slots become zero, which the method uses for "nothing written yet". Zeros are
            deterministic, unlike random slots, and closer to the training inputs of the decoder
            than the feature without the memory.

    Returns:
        Segmenter in evaluation mode on the CPU, and a dict for `save_checkpoint`. Its `converted`
        holds the `file`, its `sha256`, the `method` and the `assumed` settings.

    Raises:
        CheckpointError: The file holds no network of this family, or the network is damaged or
            lacks its memory.
        DataError: The file cannot be read, or contains code.
    """
    given = _tensors(path, read_torch_file(path))
    config = recognized(given)
    if config is None:
        names = _listed(given)
        raise CheckpointError(f"{path} holds no network that pinmem knows, but {names}.", FAMILY)
    with torch.device("meta"):
        segmenter = Segmenter(config)
    method = "pinmem" if config.memory else "aggregate"
    assumed = [f"method {method}", *_assumptions(config)]
    if config.memory and MEMORY not in given:
        if not allow_missing_memory:
            raise CheckpointError(
                f"{path} holds a network with memory, but not the memory itself (entry 'memory'): "
                "it would read from noise.",
                "Convert the whole file that training wrote, not its state dict alone; or take an "
                "empty memory with --allow-missing-memory.",
            )
        given[MEMORY] = torch.zeros(config.num_classes, config.feature_dim)
        assumed.append("an empty memory (zeros)")
    if not _has(given, "dsn."):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head = AuxiliaryHead(segmenter.backbone.channels[-2], config.num_classes)
        given |= {official_name(f"auxiliary.{n}"): t for n, t in head.state_dict().items()}
        assumed.append("a random auxiliary head (only training uses it)")
    _fill(path, segmenter, given)
    digest = sha256_of(path)
    about = {"file": path.name, "sha256": digest, "method": method, "assumed": assumed}
    return segmenter.eval(), {"converted": about}


def _tensors(path: Path, content: object) -> dict[str, Tensor]:
    """Return the network's tensors, including the memory, by the original's names."""
    entries = content if isinstance(content, Mapping) else {type(content).__name__: content}
    state = entries.get("state_dict", entries)
    if not is_state_dict(state):
        raise CheckpointError(
            f"{path} holds no state dict, but {_listed(entries)}.",
            "Give the file that training wrote, or a state dict saved with torch.save.",
        )
    wrapped = all(name.startswith("module.") for name in state)  # by DataParallel
    tensors = {name.removeprefix("module.") if wrapped else name: t for name, t in state.items()}
    if is_weight(memory := entries.get("memory")):
        tensors[MEMORY] = memory
    return {name: t for name, t in tensors.items() if not name.startswith(_LOSSES)}


def _listed(entries: Mapping[Any, object]) -> str:
    names = [repr(name)[:60] for name in islice(entries, 5)]
    return ", ".join([*names, "..."] if len(entries) > len(names) else names) or "nothing"


def _assumptions(config: ModelConfig) -> list[str]:
    assumed = [f"output stride {config.output_stride}"]
    if config.backbone == "resnet101":
        assumed.append("strides in the 3x3 convolutions, as torchvision has them")
    if config.num_classes != len(CITYSCAPES):
        assumed.append(
            f"its {config.num_classes} classes, the first of Cityscapes' {len(CITYSCAPES)}"
        )
    if memory := config.memory:
        assumed.append(f"a memory read by {memory.read}, written with momentum {memory.momentum:g}")
    return assumed


def _fill(path: Path, segmenter: Segmenter, given: dict[str, Tensor]) -> None:
    """Load copies of the tensors into the segmenter; names and shapes must match exactly."""
    ours = {official_name(name): name for name in segmenter.state_dict()}
    wanted = dict(zip(ours, segmenter.state_dict().values(), strict=True))
    # files of early torch versions lack these counters
    counters = {n: torch.tensor(0) for n in wanted if n.endswith("num_batches_tracked")}
    given = counters | given
    if problem := state_dict_mismatch(given, wanted):
        network = f"{segmenter.config.decoder} on {segmenter.config.backbone}"
        raise CheckpointError(f"{path} is no {network}: {problem}.", FAMILY)
    copies = {ours[n]: given[n].detach().to(t.dtype, copy=True) for n, t in wanted.items()}
    segmenter.load_state_dict(copies, assign=True)
