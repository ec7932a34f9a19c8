"""Serve models over HTTP: a JSON API, and a page that uses it."""

from importlib.util import find_spec

from pinmem_core.errors import MachineError


def require_fastapi() -> None:
    """Raise MachineError if a library of the server is missing.

    Raises:
        MachineError: FastAPI or uvicorn is not installed.
    """
    for name in ("fastapi", "uvicorn"):
        if find_spec(name) is None:
            raise MachineError(
                f"the server needs {name}, which is missing.", "pip install 'pinmem[serve]'"
            )
