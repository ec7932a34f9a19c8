"""Choosing the device that computes."""

import torch

from pinmem_core.errors import ConfigError, MachineError


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device that `name` means; "auto" is CUDA where there is one, else the CPU.

    Args:
        name: "auto", "cpu", "cuda", "cuda:1", ...
        local_rank: Number of this process among those of this machine: "auto" and "cuda" mean the
            GPU of that number.

    Raises:
        ConfigError: The name is no device's.
        MachineError: This machine lacks the device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'.", "Known: auto, cpu, cuda, cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(
            f"this machine has no device '{name}'.", "Use '--device cpu', or '--device auto'."
        )
    return device
