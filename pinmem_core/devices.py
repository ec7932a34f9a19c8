"""Devices: selection, precision, memory, and readable errors of memory and compilers."""

import ctypes
import errno
import platform
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


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
_NEVER = 2**31 - 1
_LARGEST = 32 * 2**20
"""Largest block that glibc allows to allocate from the heap, in bytes."""


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for the rest of the process; do nothing without glibc."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python, torch or safetensors means that memory ran out."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or "allocate memory" in text
        or "out of memory" in text
    )


@contextmanager
def memory_for(aim: str) -> Iterator[None]:
    """Convert out-of-memory errors in the block to a `MachineError`.

    Args:
        aim: Action that the error message names, e.g. "loading the checkpoint runs/first".

    Raises:
        MachineError: Memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        raise MachineError(
            f"memory ran out while {aim}.",
            "Close other programs, or use a machine with more memory.",
        ) from None


@contextmanager
def compiling_explained() -> Iterator[None]:
    """Convert errors of torch's compiler in the block to a `MachineError`.

    The block must include the first run: torch compiles a network when it first gets an input of a
    new size.

    Raises:
        MachineError: torch's compiler failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().partition("\n")[0].removesuffix(".")
        raise MachineError(
            f"torch could not compile the network: {reason}.",
            "Turn compilation off. On a CPU, it needs a C++ compiler such as g++.",
        ) from error
