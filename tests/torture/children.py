"""Real pinmem processes that start at once: children of a parent that has imported what is slow.

Each child is a process of its own, with its own memory, descriptors and locks, and dies of SIGKILL
as any other: at a moment that the parent chooses, or just before its N-th rename or removal.
"""

import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SLOW = (
    "conftest",
    "pinmem_cli.app",
    "pinmem_core.evaluation",
    "pinmem_core.inference",
    "pinmem_core.training",
    "pinmem_core.inference.jobs",
    "pinmem_core.methods.pinmem",
    "pinmem_core.data.encodings.images",
    "pinmem_core.data.pack",
    "pinmem_core.data.unpack",
    "pinmem_core.data.verify",
    "pinmem_core.export.files",
    "rich.live",
    "rich.progress",
    "torchvision.models",
)
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.link"}
PATIENCE = 600.0
"""Seconds after which a child counts as hanging."""


def warm_up() -> None:
    """Import what is slow, once."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    for name in _SLOW:
        importlib.import_module(name)
    import conftest
    import PIL.Image

    conftest.pytest_configure()  # one thread, and the tiny backbone
    PIL.Image.init()


def start(
    work: Callable[[], object],
    log: Path,
    *,
    folder: Path,
    environment: Mapping[str, str | None] | None = None,
    before: Callable[[], object] | None = None,
) -> int:
    """Begin `work` in a child, which writes into `log`, and return the child's number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(number, 1)
        os.dup2(number, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        for name, value in (environment or {}).items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if before:
            before()
        code = int(work() is not None)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def pinmem(*arguments: str) -> Callable[[], object]:
    """Return what runs a command line as `pinmem` does."""

    def work() -> None:
        from pinmem_cli.app import main

        sys.argv = ["pinmem", *arguments]
        main()

    return work


def wait(child: int, patience: float = PATIENCE) -> int:
    """Return a child's exit code, negative where a signal ended it.

    Raises:
        TimeoutError: It did not end in time, and was killed.
    """
    deadline = time.monotonic() + patience
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code == -signal.SIGKILL:
                raise TimeoutError(f"a command did not end within {patience:.0f} s")
            return code
        time.sleep(0.005)


def kill_when(child: int, ready: Callable[[], bool]) -> None:
    """Kill a child once `ready` returns True."""
    while not ready():
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            raise RuntimeError(f"a command ended with {code} before it could be killed")
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def die_before(number: int, *, exchange: bool) -> Callable[[], None]:
    """Return what has this process killed just before its `number`-th rename or removal.

    Args:
        number: Counted from 1.
        exchange: Two folders can be exchanged in one step; otherwise the system is without.
    """

    def arm() -> None:
        main, count = os.getpid(), 0

        def hook(event: str, details: tuple[Any, ...]) -> None:
            nonlocal count
            if event == "ctypes.dlsym" and details[1] in ("renameat2", "renamex_np"):
                if not exchange:
                    raise OSError("this system exchanges no folders")
            elif event not in _CHANGES:
                return
            if os.getpid() == main:
                count += 1
                if count == number:
                    os.kill(main, signal.SIGKILL)

        ctypes.CDLL(None)  # what that reads is no part of the command
        sys.addaudithook(hook)

    return arm
