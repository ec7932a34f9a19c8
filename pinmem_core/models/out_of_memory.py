"""Detection of out-of-memory errors while reading files, so that the file is not blamed."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pinmem_core.errors import MachineError


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
