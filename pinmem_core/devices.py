"""Choosing the device that computes."""

import torch

from pinmem_core.errors import ConfigError, MachineError


def pick_device(name: str) -> torch.device:
    """Return the device that `name` means; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: The name is no device's.
        MachineError: This machine lacks the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'.", "Known: auto, cpu, cuda, cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(
            f"this machine has no device '{name}'.", "Use '--device cpu', or '--device auto'."
        )
    return device
