"""How a segmenter learns: losses, methods, schedule, trainer."""

from pinmem_core.learning.trainer import RunResult, resume, train

__all__ = ["RunResult", "resume", "train"]
