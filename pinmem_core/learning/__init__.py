"""How a segmenter learns: losses, methods, schedule, trainer."""

from pinmem_core.learning.trainer import RunResult, train

__all__ = ["RunResult", "train"]
