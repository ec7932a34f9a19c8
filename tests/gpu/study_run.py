"""One run of a study, in a process of its own; and the journal that it keeps for the others."""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pinmem_cli.output import Output
from pinmem_cli.signals import stopping
from pinmem_core.checkpoints.hub import CHECKPOINT
from pinmem_core.errors import PinMemError, StoppedRunError
from pinmem_core.evaluation.report import evaluate_run
from pinmem_core.events import Event, Progress, Speed
from pinmem_core.files import write_atomic
from pinmem_core.study import Sweep, run_study
from pinmem_core.study.sweep import report_path, run_path


class OneRun(Sweep):
    """A study of which one run alone is wanted."""

    chosen: tuple[str, int]

    def runs(self) -> Iterator[tuple[str, int]]:
        """Yield the chosen run."""
        yield self.chosen


def journal_path(folder: Path, variant: str, seed: int) -> Path:
    """Return where a run notes when it was how far."""
    return folder / "journal" / f"{variant}-{seed}.jsonl"


def unfinished_path(folder: Path, variant: str, seed: int) -> Path:
    """Return where the scores of a run are that time did not suffice for."""
    return folder / "unfinished" / f"{variant}-{seed}.json"


class Journal:
    """Notes the time of every logged iteration, a JSON object a line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = path.open("a", encoding="utf-8", buffering=1)
        self._noted = self._done = 0

    def __call__(self, event: Event) -> None:
        """Note the speed of training; the first that is noted after a start begins a session."""
        if isinstance(event, Progress) and event.task == "training":
            self._done = event.done
        elif isinstance(event, Speed):
            self.note(begins=not self._noted, memory=event.memory_bytes)

    def note(self, **facts: Any) -> None:
        """Write a line with `facts`, the time and the iterations that are done, if any are."""
        done = {"iteration": self._done} if self._done else {}
        self._lines.write(json.dumps({"at": time.time(), **done, **facts}) + "\n")
        self._noted = self._done


def complete(sweep: Sweep, folder: Path, variant: str, seed: int, threads: int) -> None:
    """Train and score a run; where SIGTERM comes first, save it, and score it as it is."""
    os.setpgid(0, 0)  # signals for the parent are not for this process; the parent passes them on
    torch.set_num_threads(threads)
    one = OneRun.model_validate({**sweep.model_dump(), "chosen": (variant, seed)})
    journal = Journal(journal_path(folder, variant, seed))
    parent = multiprocessing.parent_process()
    with stopping(Output(quiet=True)) as signalled:
        try:
            result = run_study(
                one,
                folder,
                on_event=journal,
                stop=lambda: signalled() or (parent is not None and not parent.is_alive()),
            )
            for error in result.failed.values():
                journal.note(error=error.message)
        except StoppedRunError:
            journal.note()
            _score_unfinished(one, folder)
        except PinMemError as error:
            journal.note(error=error.message)
        except BaseException as error:
            journal.note(error=f"{type(error).__name__}: {error}")
            raise


def _score_unfinished(one: OneRun, folder: Path) -> None:
    run = run_path(folder, *one.chosen)
    if not (run / CHECKPOINT).exists() or report_path(folder, *one.chosen).exists():
        return
    report = evaluate_run(str(run), one.scored(), protocol=one.protocol)
    path = unfinished_path(folder, *one.chosen)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, report.as_text().encode())
