"""The time of a run's parts, and how many iterations fit into a limit of time."""

from dataclasses import dataclass

from pinmem_core.config import TrainConfig

_SCORING_SHARE = 1 / 3
_INIT_SHARE = 0.1
_MARGIN = 0.95
"""Share of the time for training that is planned."""
FINISHING = 5.0
"""Seconds for saving a run and drawing its plots."""


@dataclass(frozen=True)
class Timing:
    """Time and memory of a run's parts.

    Attributes:
        iteration: Seconds of an iteration, with loading.
        scoring: Seconds of scoring one image of each scored domain, and their numbers of images.
        memory_bytes: Peak memory in bytes; 0 if it was not measured.
    """

    iteration: float
    scoring: tuple[tuple[float, int], ...] = ()
    memory_bytes: int = 0

    def initial_memory(self, config: TrainConfig) -> float:
        """Return the seconds of the initial memory, of which a batch takes half an iteration."""
        memory = config.model.memory
        return memory.init_batches * self.iteration / 2 if memory else 0.0

    def scores(self, max_images: int | None = None) -> float:
        """Return the seconds of scoring at most `max_images` of each domain."""
        return sum(each * min(count, max_images or count) for each, count in self.scoring)

    def total(self, config: TrainConfig) -> float:
        """Return the seconds of the whole run."""
        training = config.iterations * self.iteration
        return self.initial_memory(config) + training + self.scores(config.evaluation.max_images)


def within_time(config: TrainConfig, timing: Timing, spent: float) -> TrainConfig:
    """Return the configuration with as many iterations as fit into `config.minutes`.

    Where they would take too much of the time, the batches for the initial memory and the images
    that are scored become fewer, too.

    Args:
        config: Configuration with `minutes`.
        timing: Measured time of its parts.
        spent: Seconds since the start of the run.
    """
    left = max(0.0, 60 * (config.minutes or 0) - spent - FINISHING)
    evaluation, model = config.evaluation, config.model
    most = _SCORING_SHARE * left
    if timing.scores(evaluation.max_images) > most:
        images = max(1, int(most / sum(each for each, _ in timing.scoring)))
        evaluation = evaluation.model_copy(update={"max_images": images})
    if model.memory and timing.initial_memory(config) > _INIT_SHARE * left:
        batches = max(1, int(_INIT_SHARE * left / (timing.iteration / 2)))
        memory = model.memory.model_copy(update={"init_batches": batches})
        model = model.model_copy(update={"memory": memory})
    config = config.model_copy(update={"evaluation": evaluation, "model": model})
    rest = left - timing.initial_memory(config) - timing.scores(evaluation.max_images)
    fitting = max(1, int(_MARGIN * rest / timing.iteration))
    return config.model_copy(update={"iterations": min(config.iterations, fitting)})
