"""The core's events as bars on a terminal, and as plain lines elsewhere."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from pinmem_cli.streams import printable
from pinmem_core import events

_WIDTH_WITH_BARS = 96
"""Columns from which a terminal has room for a bar."""


class _Shortened(ProgressColumn):
    """A text that is cut off first if the terminal is narrow."""

    def __init__(self, text: Callable[[Task], str]) -> None:
        super().__init__(Column(no_wrap=False))  # the table narrows only columns that may wrap
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(printable(self._text(task)), no_wrap=True, overflow="ellipsis")


class _Amount(ProgressColumn):
    """Completed part: a count, or bytes with their speed."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        done, total = int(task.completed), int(task.total or 0)
        if task.fields["unit"] != "bytes":
            return Text(f"{done}/{total}")
        of = f"/{decimal(total)}" if total else ""
        return Text(f"{decimal(done)}{of}  {decimal(int(task.speed or 0))}/s")


class LiveView:
    """What a terminal shows while the context is open.

    Args:
        shown: The bars or the table; None to show nothing.
    """

    def __init__(self, shown: Progress | Live | None) -> None:
        self._shown = shown

    def __enter__(self) -> Self:
        """Start showing."""
        if self._shown:
            self._shown.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what is shown."""
        if self._shown:
            self._shown.stop()


class EventView(LiveView):
    """Show events on a console while the context is open.

    On a terminal, each task has a bar, which vanishes at the end. Lines above it remain: notices,
    validations, and the metrics of each tenth of a run. Elsewhere, all metrics and notices are
    printed, one per line.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        columns: list[ProgressColumn] = [
            _Shortened(lambda task: task.description),
            _Amount(),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            _Shortened(lambda task: task.fields["metrics"]),
        ]
        if console.width >= _WIDTH_WITH_BARS:
            columns.insert(1, BarColumn(20))
        self._bars = Progress(
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        # Where the bars are disabled, rich before 15 would print an empty line at the end.
        super().__init__(self._bars if console.is_terminal else None)
        self._tasks: dict[str, TaskID] = {}
        self._current: TaskID | None = None
        self._speed = ""
        self._tenth = 0

    def show(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.Progress():
                self._show_progress(event)
            case events.Metrics():
                self._show_metrics(event)
            case events.Speed():
                used = decimal(event.memory_bytes)
                self._speed = f"{event.images_per_second:.1f} images/s  {used}"
            case events.Notice():
                prefix = "warning: " if event.warning else ""
                self.console.print(printable(f"{prefix}{event.message}"))

    def _show_progress(self, event: events.Progress) -> None:
        if event.task not in self._tasks:
            total = event.total or None  # None for a bar without an end
            task = self._bars.add_task(event.task, total=total, metrics="", unit=event.unit)
            self._tasks[event.task] = task
        self._current = self._tasks[event.task]
        self._bars.update(self._current, completed=event.done, total=event.total or None)
        if event.done == event.total:
            self._bars.remove_task(self._tasks.pop(event.task))
            self._current = None

    def _show_metrics(self, event: events.Metrics) -> None:
        values = event.values.items()
        shown = {k: v for k, v in values if k.endswith("total") or k.startswith("val/")}
        metrics = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
        metrics = f"{metrics}  {self._speed}".rstrip()
        if self.console.is_terminal and self._current is not None:
            self._bars.update(self._current, metrics=metrics)
        if not self.console.is_terminal or self._is_kept(event):
            self.console.print(printable(f"iteration {event.iteration}  {metrics}"))

    def _is_kept(self, event: events.Metrics) -> bool:
        """Return whether a line above the bars shows the metrics: validations, and each tenth."""
        if self._current is None:
            return True
        total = self._bars.tasks[0].total
        tenth = int(10 * event.iteration / total) if total else self._tenth
        is_new, self._tenth = tenth != self._tenth, tenth
        return is_new or any(name.startswith("val/") for name in event.values)
