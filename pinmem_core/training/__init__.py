"""Training: optimizer and schedule, step, trainer, run folder, snapshots."""

from pinmem_core.training.trainer import RunResult, resume, train

__all__ = ["RunResult", "resume", "train"]
