"""Studies: variants and seeds with equal training and scoring, compared in one table."""

from pinmem_core.study.plan import StudyPlan, plan_study
from pinmem_core.study.sweep import Sweep, Variant, read_sweep, run_study, states_of
from pinmem_core.study.table import StudyTable, make_table

__all__ = [
    "StudyPlan",
    "StudyTable",
    "Sweep",
    "Variant",
    "make_table",
    "plan_study",
    "read_sweep",
    "run_study",
    "states_of",
]
