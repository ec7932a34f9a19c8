"""What a check leaves: rows, appended to a JSON file as they come, and a table of them."""

import json
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

EXPECTED: Mapping[str, tuple[str, ...]] = {
    "right": (
        "memory, float64",
        "network, float64",
        "iterations, float64",
        "reference figures, float64",
        "step without host synchronisation",
        "non-finite loss",
        "graph against plain",
        "predictions against CPU",
        "two processes on one device",
        "SIGTERM and resume, deterministic",
        "SIGTERM and resume, default",
    ),
    "fast": (
        "limits",
        "naive float32",
        "pinmem bf16",
        "pinmem bf16, graph",
        "pinmem bf16, compiled",
        "pinmem bf16, compiled, graph",
        "pinmem float32",
        "pinmem tf32",
        "pinmem fp16",
        "profile",
        "resize, backward",
    ),
    "fed": ("PNG 2048x1024", "JPEG 2048x1024", "appearance on the device"),
    "evaluation": (
        "whole",
        "sliding 768 with flip",
        "latency 1024x512",
        "latency 2048x1024",
        "latency 1024x512, compiled",
    ),
    "tuning": (
        "two sharded processes",
        "DINOv2-L full",
        "DINOv2-L lora",
        "DINOv2-L rein",
    ),
}
"""The rows of a complete check, by section and in order."""


@dataclass
class Row:
    """One measurement.

    Attributes:
        section: A key of `EXPECTED`.
        name: Within the section.
        status: "ok", "failed" (a bound does not hold), "error", or "skipped".
        values: Figures and words by label.
        goal: What was aimed at, in words.
        met: Whether the goal is reached; None without goal.
        note: What else there is to say.
        seconds: That it took.
    """

    section: str
    name: str
    status: str = "ok"
    values: dict[str, Any] = field(default_factory=dict)
    goal: str | None = None
    met: bool | None = None
    note: str = ""
    seconds: float = 0.0


class Results:
    """The rows so far, on disk after each one.

    Args:
        path: The JSON file.
        device: Where the check computes.
        command: The command line, to be repeated.
        deadline: `time.monotonic()` after which nothing more begins.
    """

    def __init__(self, path: Path, device: torch.device, command: str, deadline: float) -> None:
        self.path = path
        self.deadline = deadline
        self.rows: list[Row] = []
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.meta = {
            "device": name,
            "cores": len(os.sched_getaffinity(0)),
            "date": time.strftime("%Y-%m-%d"),
            "torch": torch.__version__,
            "commit": _commit(),
            "command": command,
        }

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.monotonic()

    def add(self, row: Row) -> None:
        """Append a row and write the file anew, whole."""
        self.rows.append(row)
        content = {"meta": self.meta, "rows": [asdict(row) for row in self.rows]}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)
        print(line(row), flush=True)

    def run(self, section: str, name: str, check: Callable[[Row], None], needs: float) -> None:
        """Run a check, which fills its row; whatever it raises becomes the row's note.

        Args:
            section: Of the row.
            name: Of the row.
            check: Fills a row.
            needs: Seconds that must be left.
        """
        row = Row(section, name)
        began = time.monotonic()
        if self.left() < needs:
            row.status, row.note = "skipped", f"{self.left():.0f} s left, {needs:.0f} s needed"
        else:
            try:
                check(row)
            except AssertionError as error:
                row.status, row.note = "failed", str(error) or traceback.format_exc(limit=-1)
            except Exception as error:
                row.status = "error"
                row.note = f"{type(error).__name__}: {error}"[:600]
                traceback.print_exc()
        row.seconds = round(time.monotonic() - began, 2)
        self.add(row)


def line(row: Row) -> str:
    """Return a row in one line."""
    values = ", ".join(f"{label} {shown(value)}" for label, value in row.values.items())
    goal = "" if row.goal is None else f" [goal {row.goal}: {'met' if row.met else 'missed'}]"
    note = f" ({row.note})" if row.note else ""
    return f"{row.section:10} {row.name:34} {row.status:7} {values}{goal}{note}"


def shown(value: object) -> str:
    """Return a figure with three significant digits, anything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def markdown(rows: list[Row]) -> str:
    """Return all rows as a table."""
    lines = ["| section | row | status | values | goal |", "|---|---|---|---|---|"]
    for row in rows:
        values = "; ".join(f"{label}: {shown(value)}" for label, value in row.values.items())
        goal = "" if row.goal is None else f"{row.goal}: {'met' if row.met else 'missed'}"
        lines.append(f"| {row.section} | {row.name} | {row.status} | {values} | {goal} |")
    return "\n".join(lines)


def _commit() -> str:
    """Return the commit of the working tree; "unknown" outside of one."""
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return os.environ.get("PINMEM_COMMIT") or run.stdout.strip() or "unknown"
