"""Output of all commands: data goes to stdout, everything else to stderr.

All texts pass `printable`, so that no name from outside can control a terminal.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from pinmem_cli.streams import printable
from pinmem_core.addresses import redact_values
from pinmem_core.errors import ConfigError, DataError, MachineError, PinMemError, shell_join
from pinmem_core.events import Listener

SCHEMA_VERSION = 1

EXIT_CODES: dict[type[PinMemError], int] = {ConfigError: 2, DataError: 3, MachineError: 5}
"""Exit codes by kind of failure; any other failure is 1."""
_UNFOLDED = 10_000
"""Width of tables in files and pipes, where names are not folded."""
_NO_MEMORY = re.compile("failed to map segment|allocate memory|out of memory", re.IGNORECASE)
"""Messages of library loaders and of torch about a lack of memory."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISPLACED = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
VERIFICATION_FAILED = 4
"""Exit code of a check with findings."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def is_first_process() -> bool:
    """Return whether this is the only process, or the first one of torchrun."""
    return os.environ.get("RANK", "0") == "0"


def exit_code(error: PinMemError) -> int:
    """Return the exit code of a failure."""
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def unforeseen(error: Exception) -> PinMemError:
    """Convert an unexpected exception to a failure with a hint."""
    if _lacks_memory(error):
        return MachineError("there is not enough memory.", "Close other programs.")
    if not isinstance(error, OSError) or error.errno is None:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return PinMemError(text, f"This should not happen. {_where()}")
    reason = error.strerror or os.strerror(error.errno)
    message = f"{error.filename}: {reason}." if error.filename is not None else f"{reason}."
    if error.errno in _MISPLACED:
        return DataError(message, "Check the path.")
    if error.errno in _FULL:
        return MachineError(message, "The disk or your quota is full: make room.")
    if error.errno in _FORBIDDEN:
        return MachineError(message, "Check who may read and write there.")
    return MachineError(message, _where())


def _where() -> str:
    return f"'pinmem --debug {shell_join(*sys.argv[1:])}' shows where it happened."


def _lacks_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def errors() -> Console:
    """Return the console on stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def say(message: str, style: str = "") -> None:
    """Print one line on stderr."""
    errors().print(printable(message), style=style)


def show_error(error: PinMemError) -> None:
    """Print an error and its hint."""
    speaker = "" if is_first_process() else f"process {os.environ['RANK']}: "
    errors().print(f"{speaker}error:", style="bold red", end=" ")
    say(error.message)
    for line in (error.hint or "").splitlines():
        say(line, style="dim")


class Output:
    """Output of one command.

    Args:
        as_json: Whether to print one JSON object on stdout instead of text.
        quiet: Whether to print only results and errors.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def result(self, data: Mapping[str, Any], *human: str | Table) -> None:
        """Print the result: `data` as JSON, or the lines and tables `human`.

        Newlines in a text are escaped, because they are part of a name.
        """
        if self.as_json:
            from pinmem_core.documents import json_text

            answer = redact_values({"schema_version": SCHEMA_VERSION, **data})
            typer.echo(json_text(answer, indent=2))
            return
        console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = _UNFOLDED
        for part in human:
            if isinstance(part, str):
                console.print(printable(part))
            else:
                _print_table(console, part)

    def note(self, message: str) -> None:
        """Print a message on stderr."""
        if not self.quiet:
            say(message)

    def next_step(self, command: str) -> None:
        """Print the command that usually comes next."""
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


class _Rows(Table):
    """A table whose cells are one line of text each."""

    def add_row(self, *cells: RenderableType | None, **how: Any) -> None:
        shown = (Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **how)


def table(*columns: str, text: Sequence[str] = ()) -> Table:
    """Return an empty table of numbers; the first column and those of `text` hold text."""
    result = _Rows(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_text = column in (columns[0], *text)
        head = _lines(column.split("\n"))
        result.add_column(head, justify="left" if is_text else "right", overflow="fold")
    return result


def fields(pairs: Sequence[tuple[str, str | Sequence[str]]]) -> Table:
    """Return a table of names and their values, of one line or several, in two columns."""
    result = _Rows(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    result.add_column()
    result.add_column(overflow="fold")
    for name, text in pairs:
        result.add_row(name, _lines([text] if isinstance(text, str) else text))
    return result


def _lines(texts: Sequence[str]) -> Text:
    return Text("\n".join(map(printable, texts)))


def _print_table(console: Console, rows: Table) -> None:
    """Print a table; in files and pipes without trailing spaces."""
    with console.capture() as captured:
        console.print(rows, soft_wrap=False)
    lines = captured.get().splitlines()
    kept = lines if console.is_terminal else [line.rstrip() for line in lines]
    console.file.write("".join(f"{line}\n" for line in kept))


def counted(counts: Mapping[str, int]) -> str:
    """Return counts by name in a line, e.g. "train 512, val 127"."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def size(count: int | None) -> str:
    """Return a number of bytes in decimal units, such as "1.2 MB"."""
    return decimal(count) if count is not None else "unknown"
