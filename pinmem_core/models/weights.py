"""Pretrained weights: reading files, downloading torchvision's, and loading strictly."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import safetensors.torch
import torch
import torchvision
from safetensors import SafetensorError
from torch import Tensor, nn

from pinmem_core.checkpoints.torch_file import is_state_dict, read_torch_file
from pinmem_core.errors import ConfigError, DataError, MachineError, unknown_name


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    what: str,
    name: str,
    unused: tuple[str, ...] = (),
) -> None:
    """Load tensors into a module; only counters of batch norms may be missing.

    Args:
        module: Module that receives the tensors.
        state: Tensors by name.
        what: Source for the message, e.g. "the weights in FILE".
        name: Name of the network for the message.
        unused: Name prefixes of tensors to ignore.

    Raises:
        DataError: The tensors do not fit.
    """
    state = {k: v for k, v in state.items() if not k.startswith(unused)}
    wanted = module.state_dict()
    missing = sorted(k for k in wanted.keys() - state.keys() if "num_batches_tracked" not in k)
    extra = sorted(state.keys() - wanted.keys())
    reshaped = [k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape]
    for problem, keys in (("lack", missing), ("have an extra", extra), ("reshape", reshaped)):
        if keys:
            raise DataError(
                f"{what} do not fit {name}: they {problem} {keys[0][:100]} "
                f"({len(keys)} such tensors).",
                "Use weights of this network with the parameter names of the library that "
                "publishes it.",
            )
    module.load_state_dict(state, strict=False)


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a .safetensors file, or of a .pth file with a state dict.

    Raises:
        DataError: The file is damaged or holds something else.
    """
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


def torchvision_weights(network: str, name: str, download: bool) -> Mapping[str, Tensor] | None:
    """Return torchvision's weights by name, e.g. "IMAGENET1K_V1".

    Args:
        network: Name of the network in torchvision.
        name: Name of the weights.
        download: Whether to download them; without, the result is None if they are not cached.

    Raises:
        ConfigError: There are no such weights.
        MachineError: They cannot be downloaded.
    """
    try:
        known = torchvision.models.get_model_weights(network)
    except ValueError:
        raise ConfigError(
            f"there is no weights file '{name}', and torchvision publishes none for '{network}'."
        ) from None
    if name not in known.__members__:
        raise unknown_name(f"weights of {network}", name, known.__members__)
    weights = known[name]
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(weights.url).path).name)
    if not download and not cached.is_file():
        return None
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False)
        return state
    except OSError as error:
        raise MachineError(
            f"{network}'s weights {name} cannot be downloaded: {error}.",
            "Download them on another machine and pass the file: '--init-weights FILE'.",
        ) from error
