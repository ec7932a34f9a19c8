"""Studies: variants and seeds with equal training and scoring, compared in one table."""

from pinmem_core.study.plan import StudyPlan, plan_study
from pinmem_core.study.run import RunEvent
from pinmem_core.study.runs import StudyResult, run_study, states_of
from pinmem_core.study.sweep import Fold, Run, Sweep, Variant, read_sweep
from pinmem_core.study.table import StudyTable, make_table
from pinmem_core.study.writers import write_study

__all__ = [
    "Fold",
    "Run",
    "RunEvent",
    "StudyPlan",
    "StudyResult",
    "StudyTable",
    "Sweep",
    "Variant",
    "make_table",
    "plan_study",
    "read_sweep",
    "run_study",
    "states_of",
    "write_study",
]
