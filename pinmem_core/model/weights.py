"""Pretrained weights for a trunk: from torchvision by name, or from a file."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
import torchvision
from safetensors import SafetensorError
from torch import Tensor

from pinmem_core.errors import ConfigError, DataError, MachineError, unknown_name
from pinmem_core.model.torch_file import read_torch_file
from pinmem_core.model.trunk import Trunk
from pinmem_core.paths import expanded


def load_trunk_weights(trunk: Trunk, name: str, source: str) -> None:
    """Load pretrained weights into `trunk`, strictly.

    Args:
        trunk: Receives the weights.
        name: torchvision's name of the network.
        source: A file (.safetensors, or .pth holding a state dict) under torchvision's parameter
            names, or the name of torchvision's weights, e.g. "IMAGENET1K_V1".

    Raises:
        ConfigError: No such file or weights exist.
        DataError: The file is damaged, or its tensors are not this trunk's.
        MachineError: torchvision's weights cannot be downloaded.
    """
    path = expanded(source)
    state = _read_file(path) if path.is_file() else _download(name, source)
    state = {k: v for k, v in state.items() if not k.startswith(trunk.unused_weights)}
    wanted = trunk.state_dict()
    missing = sorted(k for k in wanted.keys() - state.keys() if "num_batches_tracked" not in k)
    extra = sorted(state.keys() - wanted.keys())
    reshaped = [k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape]
    for problem, keys in (("lack", missing), ("have an extra", extra), ("reshape", reshaped)):
        if keys:
            raise DataError(
                f"the weights in {source} do not fit {name}: they {problem} {keys[0]} "
                f"({len(keys)} such tensors).",
                "Give the weights of that network under torchvision's names.",
            )
    trunk.load_state_dict(state, strict=False)  # counters of batch norm may be missing


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors":
        state = read_torch_file(path)
        if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
            raise DataError(f"{path} holds no state dict: tensors by name, and nothing else.")
        return state
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"the weights in {path} cannot be read: {error}.") from error


def _download(name: str, weights: str) -> Mapping[str, Tensor]:
    network = name.removesuffix("-v2") if name.startswith("resnet") else name
    try:
        known = torchvision.models.get_model_weights(network)
    except ValueError:
        raise ConfigError(
            f"there is no weights file '{weights}', and torchvision publishes none for '{name}'."
        ) from None
    if weights not in known.__members__:
        if "/" in weights or "." in weights:
            raise ConfigError(f"the weights file '{weights}' does not exist.")
        raise unknown_name(f"weights of {name}", weights, known.__members__)
    try:
        state: Mapping[str, Tensor] = known[weights].get_state_dict(progress=False)
        return state
    except OSError as error:
        raise MachineError(
            f"{network}'s weights {weights} cannot be downloaded: {error}.",
            "Fetch them on another machine and name the file: '--init-weights FILE'.",
        ) from error
