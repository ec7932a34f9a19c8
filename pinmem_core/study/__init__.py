"""Studies: variants and seeds with equal training and scoring, compared in one table."""

from pinmem_core.study.plan import plan_study
from pinmem_core.study.run import RunEvent
from pinmem_core.study.runs import StudyResult, run_study, states_of
from pinmem_core.study.sweep import Run, Sweep, read_sweep
from pinmem_core.study.table import StudyTable, make_table
from pinmem_core.study.writers import write_study

__all__ = [
    "Run",
    "RunEvent",
    "StudyResult",
    "StudyTable",
    "Sweep",
    "make_table",
    "plan_study",
    "read_sweep",
    "run_study",
    "states_of",
    "write_study",
]
