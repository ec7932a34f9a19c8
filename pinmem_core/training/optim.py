"""Parameter groups of the optimizer, and learning rates as functions of the iteration."""

import math

from torch import Tensor, nn
from torch.optim import Optimizer

from pinmem_core.config import OptimConfig
from pinmem_core.models import Segmenter
from pinmem_core.training.optimizers import Groups, optimizers


def learning_rate(config: OptimConfig, iteration: int, iterations: int) -> float:
    """Return the learning rate of `iteration`, counted from 0, in a run of `iterations`.

    The paper's "exponential" schedule decays over a constant span, independent of `iterations`.
    """
    if config.schedule == "exponential":
        return config.lr * math.exp(-config.decay * iteration / config.decay_span)
    return float(config.lr * (1 - iteration / iterations) ** config.power)


def inner_learning_rate(config: OptimConfig, iteration: int, iterations: int) -> float:
    """Return the step size α of the meta methods' inner step (docs/method.md, section 4).

    It is constant in the first iteration, then a fraction of the outer learning rate.
    """
    if iteration == 0:
        return config.inner_lr
    return config.inner_share * learning_rate(config, iteration, iterations)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times its `lr_scale`.

    A learning rate that is a tensor (for a CUDA graph) is changed in place.
    """
    for group in optimizer.param_groups:
        rate, kept = lr * group["lr_scale"], group["lr"]
        group["lr"] = kept.fill_(rate) if isinstance(kept, Tensor) else rate


def build_optimizer(config: OptimConfig, segmenter: Segmenter) -> Optimizer:
    """Return the optimizer `config.name` over all parameters of a segmenter.

    Raises:
        ConfigError: The optimizer does not exist.
    """
    return optimizers.get(config.name)(parameter_groups(config, segmenter), config)


def parameter_groups(config: OptimConfig, segmenter: Segmenter) -> Groups:
    """Return the parameters in groups of equal learning rate and weight decay.

    The backbone has its own `lr_scale`. Biases and the scales and shifts of norms have no weight
    decay if `config.decay_vectors` is off. With the default settings, all parameters are in one
    group, in the order of the network.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in segmenter.named_parameters():
        scale = config.backbone_lr_scale if name.startswith("backbone.") else 1.0
        decays = config.decay_vectors or parameter.ndim > 1
        decay = config.weight_decay if decays else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": config.lr * scale, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]
