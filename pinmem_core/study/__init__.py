"""Studies: variants and seeds with equal training and scoring, compared in one table."""

from pinmem_core.study.sweep import Sweep, Variant, read_sweep, run_study, states_of
from pinmem_core.study.table import StudyTable, make_table

__all__ = ["StudyTable", "Sweep", "Variant", "make_table", "read_sweep", "run_study", "states_of"]
