"""The runs of a study while they train: a live table on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from pinmem_cli.output import table
from pinmem_cli.progress import LiveView
from pinmem_cli.streams import printable
from pinmem_core import events
from pinmem_core.errors import PinMemError, StoppedRunError

if TYPE_CHECKING:
    from pinmem_core.study import Run, RunEvent
    from pinmem_core.study.runs import State


class StudyView(LiveView):
    """Show the events of a study on a console while the context is open.

    Args:
        console: The console.
        states: State of each run at the start.
        quiet: Whether to show nothing.
    """

    def __init__(
        self, console: Console, states: "Mapping[Run, State]", *, quiet: bool = False
    ) -> None:
        self.console, self.quiet = console, quiet
        self.states = {run: "done" if state == "done" else "-" for run, state in states.items()}
        self.active: dict[Run, list[str]] = {}
        """Task, progress, metrics and speed of each run in training."""
        live = Live(console=console, transient=True, get_renderable=self._table)
        self.is_live = console.is_terminal and not quiet
        super().__init__(live if self.is_live else None)

    def show(self, event: events.Event) -> None:
        """Show an event of the study."""
        if isinstance(event, events.Notice) and not self.quiet:
            warning = "warning: " if event.warning else ""
            self.console.print(printable(f"{warning}{event.message}"))

    def show_run(self, of: "RunEvent") -> None:
        """Show an event of a run."""
        run, event = of.run, of.event
        shown = self.active.setdefault(run, ["", "", "", ""])
        match event:
            case "started":
                self.states[run] = "..."
            case events.Progress():
                done = f"{event.done}/{event.total}" if event.total else str(event.done)
                shown[:2] = event.task, done
                if event.total and event.task == "training":
                    self.states[run] = f"{event.done / event.total:.0%}"
            case events.Metrics():
                totals = {k: v for k, v in event.values.items() if k.endswith("total")}
                shown[2] = "  ".join(f"{name} {value:.3f}" for name, value in totals.items())
                self._line(run, f"iteration {event.iteration}  {shown[2]}  {shown[3]}".rstrip())
            case events.Speed():
                shown[3] = f"{event.images_per_second:.1f} images/s"
            case events.Notice():
                warning = "warning: " if event.warning else ""
                if event.warning or not self.is_live:
                    self.show(events.Notice(f"{run}: {warning}{event.message}"))
            case PinMemError():
                self._end(run, "stopped" if isinstance(event, StoppedRunError) else "failed")
                if not isinstance(event, StoppedRunError):
                    self.show(events.Notice(f"{run} failed: {event.message}", warning=True))
            case "done" | "elsewhere":
                self._end(run, event)

    def _end(self, run: "Run", state: str) -> None:
        self.states[run] = state
        self.active.pop(run, None)

    def _line(self, run: "Run", text: str) -> None:
        if not self.is_live:
            self.show(events.Notice(f"{run}: {text}"))

    def _table(self) -> Group:
        """Return the runs in training, and the states of all by variant and seed."""
        seeds = [*dict.fromkeys(run.seed for run in self.states)]
        rows = table("variant", *(f"seed {seed}" for seed in seeds))
        by_row: dict[str, dict[int, str]] = {}
        for run, state in self.states.items():
            name = f"{run.fold}/{run.variant}".removeprefix("/")
            by_row.setdefault(name, {})[run.seed] = state
        for name, states in by_row.items():
            rows.add_row(name, *(states.get(seed, "") for seed in seeds))
        active: Table = table("in training", "task", "progress", "loss", "speed", text=["task"])
        for run, shown in self.active.items():
            active.add_row(str(run), *shown)
        return Group(active, "", rows)
