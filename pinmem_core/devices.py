"""Selection of the device for a computation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pinmem_core.errors import ConfigError, MachineError


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device `name`; "auto" is CUDA if available, then Apple's MPS, then the CPU.

    Args:
        name: Name of the device: "auto", "cpu", "mps", "cuda", "cuda:1", ...
        local_rank: Rank of this process on its machine, from 0; "auto" and "cuda" select the GPU
            with this index.

    Raises:
        ConfigError: The name is unknown.
        MachineError: The device is not available on this machine.
    """
    if name == "auto":
        name = _best()
    if name == "cuda" and local_rank:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        hint = "Known: auto, cpu, mps, cuda, cuda:N."
        raise ConfigError(f"unknown device '{name}'.", hint) from None
    if not _exists(device):
        raise MachineError(
            f"this machine has no device '{name}'.", "Use '--device cpu', or '--device auto'."
        )
    return device


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _exists(device: torch.device) -> bool:
    """Return whether this machine has a CUDA or MPS device; True for other kinds."""
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type != "mps" or torch.backends.mps.is_available()


@contextmanager
def full_float32() -> Iterator[None]:
    """Disable TF32 in the block, as on a CPU; CUDA uses it for convolutions by default."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    kept = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, kept, strict=True):
            backend.fp32_precision = precision
