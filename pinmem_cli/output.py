"""The one sink of all commands: data goes to stdout, everything else to stderr."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.table import Table

from pinmem_core.errors import ConfigError, DataError, MachineError, PinMemError
from pinmem_core.events import Listener

SCHEMA_VERSION = 1

EXIT_CODES: dict[type[PinMemError], int] = {ConfigError: 2, DataError: 3, MachineError: 5}
"""Exit codes by kind of failure; any other failure is 1."""
_UNFOLDED = 10_000
"""Columns of a file or pipe, in which names are not folded."""
VERIFICATION_FAILED = 4
"""The exit code of a check that found something."""


def is_first_process() -> bool:
    """Return whether this is the process that speaks, of those that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def exit_code(error: PinMemError) -> int:
    """Return the exit code that tells this kind of failure."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def errors() -> Console:
    """Return the console on stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def show_error(error: PinMemError) -> None:
    """Say what failed and how to mend it."""
    console = errors()
    speaker = "" if is_first_process() else f"process {os.environ['RANK']}: "
    console.print(f"[bold red]{speaker}error:[/] ", end="")
    console.print(error.message, markup=False)
    if error.hint:
        console.print(error.hint, markup=False, style="dim")


class Output:
    """How one command speaks.

    Args:
        as_json: Give one JSON object on stdout instead of text.
        quiet: Say nothing but results and errors.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def result(self, data: Mapping[str, Any], *human: RenderableType) -> None:
        """Give the result: `data` under --json, else the `human` lines and tables."""
        if self.as_json:
            text = json.dumps({"schema_version": SCHEMA_VERSION, **data}, indent=2)
            Console(soft_wrap=True, highlight=False, markup=False, emoji=False).print(text)
            return
        console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = _UNFOLDED
        for part in human:
            console.print(part, soft_wrap=isinstance(part, str))

    def note(self, message: str) -> None:
        """Say something that is no result."""
        if not self.quiet:
            errors().print(message, markup=False)

    def next_step(self, command: str) -> None:
        """Name the command that usually comes next."""
        if not self.as_json:
            self.note(f"next: {command}")

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Yield a listener that shows the core's events on stderr while the block runs."""
        from pinmem_cli.progress import EventView

        if self.quiet:
            yield lambda event: None
            return
        with EventView(errors()) as view:
            yield view.show


def table(*columns: str, text: Sequence[str] = ()) -> Table:
    """Return an empty table of figures; the first column and those of `text` hold text."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_text = column in (columns[0], *text)
        result.add_column(column, justify="left" if is_text else "right", overflow="fold")
    return result


def fields(pairs: Sequence[tuple[str, str]]) -> Table:
    """Return a table of names and what they stand for, in two columns."""
    result = Table.grid(padding=(0, 2))
    result.add_column()
    result.add_column(overflow="fold")
    for name, text in pairs:
        result.add_row(name, text)
    return result


def counted(counts: Mapping[str, int]) -> str:
    """Return counts by name in a line, e.g. "train 512, val 127"."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def size(count: int | None) -> str:
    """Return a number of bytes for people, in decimal units as sites publish them."""
    return decimal(count) if count is not None else "unknown"
