"""Training: optimizer and schedule, step, trainer, run folder, snapshots."""

from pinmem_core.training.run import RunResult, resume, train

__all__ = ["RunResult", "resume", "train"]
