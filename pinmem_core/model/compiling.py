"""Saying in one sentence why torch cannot compile a network."""

from collections.abc import Iterator
from contextlib import contextmanager

from pinmem_core.errors import MachineError


@contextmanager
def compiling_explained() -> Iterator[None]:
    """Compile and run inside; torch compiles what it first sees of a size.

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
            "Do without; on a CPU, compiling takes a C++ compiler such as g++.",
        ) from error
