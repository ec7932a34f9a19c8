"""Errors of torch's compiler as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from pinmem_core.errors import MachineError


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
