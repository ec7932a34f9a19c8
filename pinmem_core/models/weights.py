"""Pretrained weights for a backbone: from torchvision by name, or from a file."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import safetensors.torch
import torch
import torchvision
from safetensors import SafetensorError
from torch import Tensor
from torchvision.models import WeightsEnum

from pinmem_core.checkpoints.torch_file import is_state_dict, read_torch_file
from pinmem_core.errors import ConfigError, DataError, MachineError, unknown_name
from pinmem_core.models.backbones.base import Backbone
from pinmem_core.paths import expanded


def load_backbone_weights(
    backbone: Backbone, name: str, source: str, *, download: bool = True
) -> bool:
    """Load pretrained weights into `backbone`, strictly.

    Args:
        backbone: Backbone that receives the weights.
        name: Name of the network in torchvision.
        source: File (.safetensors, or .pth with a state dict) with torchvision's parameter names,
            or name of torchvision's weights, e.g. "IMAGENET1K_V1".
        download: Whether to download torchvision's weights if they are not on this machine.

    Returns:
        True if the weights are loaded; False if they need a download that is not allowed.

    Raises:
        ConfigError: The file or the weights do not exist.
        DataError: The file is damaged, or its tensors do not fit the backbone.
        MachineError: torchvision's weights cannot be downloaded.
    """
    path = expanded(source)
    if path.is_file():
        state = _read_file(path)
    else:
        published = _published(name, source)
        if not download and not _cached_path(published).is_file():
            return False
        state = _download(name, published)
    state = {k: v for k, v in state.items() if not k.startswith(backbone.unused_weights)}
    wanted = backbone.state_dict()
    missing = sorted(k for k in wanted.keys() - state.keys() if "num_batches_tracked" not in k)
    extra = sorted(state.keys() - wanted.keys())
    reshaped = [k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape]
    for problem, keys in (("lack", missing), ("have an extra", extra), ("reshape", reshaped)):
        if keys:
            raise DataError(
                f"the weights in {source} do not fit {name}: they {problem} {keys[0][:100]} "
                f"({len(keys)} such tensors).",
                "Use weights of this network with torchvision's parameter names.",
            )
    backbone.load_state_dict(state, strict=False)  # batch norm's counters may be missing
    return True


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors":
        state = read_torch_file(path)
        if not is_state_dict(state):
            raise DataError(
                f"{path} does not hold a state dict (tensors by name, and nothing else)."
            )
        return state
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"the weights in {path} cannot be read: {error}.") from error


def _published(name: str, weights: str) -> WeightsEnum:
    """Return the weights of torchvision by name."""
    try:
        known = torchvision.models.get_model_weights(_network(name))
    except ValueError:
        raise ConfigError(
            f"there is no weights file '{weights}', and torchvision publishes none for '{name}'."
        ) from None
    if weights not in known.__members__:
        if "/" in weights or "." in weights:
            raise ConfigError(f"the weights file '{weights}' does not exist.")
        raise unknown_name(f"weights of {name}", weights, known.__members__)
    return known[weights]


def _network(name: str) -> str:
    return name.removesuffix("-v2") if name.startswith("resnet") else name


def _cached_path(weights: WeightsEnum) -> Path:
    """Return the path where torchvision caches downloaded weights."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(weights.url).path).name)


def _download(name: str, weights: WeightsEnum) -> Mapping[str, Tensor]:
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False)
        return state
    except OSError as error:
        raise MachineError(
            f"{_network(name)}'s weights {weights.name} cannot be downloaded: {error}.",
            "Download them on another machine and pass the file: '--init-weights FILE'.",
        ) from error
