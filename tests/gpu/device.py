"""Refusing a GPU on which nothing could be measured."""

import torch

from pinmem_core.devices import pick_device
from pinmem_core.errors import MachineError

OLDEST = (8, 0)
"""The compute capability that first computes in bf16."""


def require(name: str, free_bytes: int) -> torch.device:
    """Return a device that can measure.

    Args:
        name: "cpu", "cuda", "cuda:1", ...
        free_bytes: What must be free of a GPU's memory.

    Raises:
        ConfigError: The name is no device's.
        MachineError: This machine lacks the device, or it is too old, unusable or in use.
    """
    device = pick_device(name)
    if device.type != "cuda":
        return device
    gpu = torch.cuda.get_device_name(device)
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        version = ".".join(map(str, capability))
        raise MachineError(f"{gpu} (compute capability {version}) is too old to compute in bf16.")
    try:
        free, _ = torch.cuda.mem_get_info(device)
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        raise MachineError(f"{gpu} cannot be used: {str(error).splitlines()[0]}.") from None
    if free < free_bytes:
        raise MachineError(
            f"{gpu} has {free / 1e9:.1f} GB free, and {free_bytes / 1e9:.1f} GB are needed.",
            "End what else uses it; 'nvidia-smi' lists it.",
        )
    return device
