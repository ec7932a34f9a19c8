"""Learning rates as pure functions of the iteration."""

import math

from pinmem_core.config import OptimConfig


def learning_rate(config: OptimConfig, iteration: int, iterations: int) -> float:
    """Return the learning rate of `iteration`, counted from 0, in a run of `iterations`.

    The paper's "exponential" schedule decays over a constant span, whatever the run's length.
    """
    if config.schedule == "exponential":
        return config.lr * math.exp(-config.decay * iteration / config.decay_span)
    return float(config.lr * (1 - iteration / iterations) ** config.power)


def inner_learning_rate(config: OptimConfig, iteration: int, iterations: int) -> float:
    """Return the step size α of the meta methods' inner step (docs/method.md, section 4).

    A constant in the first iteration, then a share of the outer learning rate.
    """
    if iteration == 0:
        return config.inner_lr
    return config.inner_share * learning_rate(config, iteration, iterations)
