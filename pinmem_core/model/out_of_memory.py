"""Memory that runs out says nothing against the file that was being read."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pinmem_core.errors import MachineError


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; torch and safetensors word it freely."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or "allocate memory" in text
        or "out of memory" in text
    )


@contextmanager
def memory_for(aim: str) -> Iterator[None]:
    """Raise a MachineError where memory runs out in the block.

    Args:
        aim: What the block does, e.g. "loading the checkpoint runs/first".

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
