"""The optimizer, its parameter groups, learning rates and state, and the average of the weights."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from pinmem_core.config import OptimConfig
from pinmem_core.errors import ConfigError
from pinmem_core.models import Segmenter
from pinmem_core.sharding import exchanged, is_sharded, local_part, sharded_like
from pinmem_core.training.optimizers import Groups, optimizers

_GATE = "memory.fuse.1.weight"
"""Scales of the norm through which the memory's output passes."""
_MATRICES = ("weight", "lora_a", "lora_b")
"""Ends of the names of parameters that multiply features, with weight decay if 2-dimensional."""
_NOT_SAVED = {"lr", "fused", "foreach", "capturable", "differentiable"}
"""Entries of a group that the schedule sets, or that suit one device or sharding only."""


def learning_rate(config: OptimConfig, iteration: int, iterations: int) -> float:
    """Return the learning rate of `iteration`, counted from 0, in a run of `iterations`.

    The paper's "exponential" schedule decays over a constant span, independent of `iterations`. In
    the first `warmup` iterations the rate is (iteration + 1) / warmup of that of the schedule.
    """
    warm = min(1.0, (iteration + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "exponential":
        return warm * config.lr * math.exp(-config.decay * iteration / config.decay_span)
    return float(warm * config.lr * (1 - iteration / iterations) ** config.power)


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
    """Return the optimizer `config.name` over the parameters of a segmenter.

    Raises:
        ConfigError: The optimizer does not exist, or a run cannot use it.
    """
    optimizer: object = optimizers.get(config.name)(parameter_groups(config, segmenter), config)
    if not isinstance(optimizer, Optimizer):
        problem = f"is a {type(optimizer).__name__}, no torch.optim.Optimizer"
    elif not all({"lr_scale", "weight_decay"} <= group.keys() for group in optimizer.param_groups):
        problem = "lacks 'lr_scale' or 'weight_decay' in a parameter group: keep the given groups"
    elif any(
        of.default is of.empty and of.kind not in (of.VAR_POSITIONAL, of.VAR_KEYWORD)
        for of in signature(optimizer.step).parameters.values()
    ):
        problem = "needs arguments in 'step', such as a closure; a run steps without any"
    else:
        return optimizer
    raise ConfigError(f"the optimizer '{config.name}' {problem}.")


def parameter_groups(config: OptimConfig, segmenter: Segmenter) -> Groups:
    """Return the parameters in groups of equal learning rate and weight decay.

    The backbone has its own `lr_scale`, which shrinks from stage to stage by `layer_decay`. If
    `config.decay_vectors` is off, only matrices and kernels have weight decay: no biases, scales,
    tokens and position embeddings. Frozen parameters are in no group. With the default settings,
    all parameters are in one group, in the order of the network. Sharded parameters have groups of
    their own, because torch cannot update them and others in one call. With `gate_lr_scale`, the
    scales of the memory's output have this `lr_scale` and no weight decay.
    """
    depths = _depths(segmenter) if config.layer_decay < 1 else {}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in segmenter.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = config.backbone_lr_scale if name.startswith("backbone.") else 1.0
        scale *= config.layer_decay ** depths.get(parameter, 0)
        gate_scale = config.gate_lr_scale if name == _GATE else None
        scale = scale if gate_scale is None else gate_scale
        decays = config.decay_vectors or (parameter.ndim > 1 and name.endswith(_MATRICES))
        decay = config.weight_decay if decays and gate_scale is None else 0.0
        groups.setdefault((scale, decay, is_sharded(parameter)), []).append(parameter)
    return [
        {"params": parameters, "lr": config.lr * scale, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay, _), parameters in groups.items()
    ]


def _depths(segmenter: Segmenter) -> dict[nn.Parameter, int]:
    """Return how many stages each parameter of the backbone is from the decoder, from 1.

    A parameter outside of the stages belongs to the stage before it, or to the first one.
    """
    stages = segmenter.backbone.stages()
    stage_of = {p: index for index, stage in enumerate(stages) for p in stage.parameters()}
    depths, current = {}, 0
    for parameter in segmenter.backbone.parameters():
        current = stage_of.get(parameter, current)
        depths[parameter] = len(stages) - current
    return depths


def optimizer_state(
    optimizer: Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of an optimizer: tensors by "parameter/name", and the rest as JSON data.

    Args:
        optimizer: Optimizer of parameters of `model`.
        model: Network whose parameter names identify the state.

    Raises:
        ConfigError: The optimizer keeps something that would be lost in a resumed run.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        if parameter not in names:
            raise _lost(optimizer, "a state that belongs to no parameter")
        for kind, value in state.items():
            key = f"{names[parameter]}/{kind}"
            if not isinstance(kind, str) or "/" in kind:
                raise _lost(optimizer, f"a state under the name {kind!r}")
            if isinstance(value, Tensor):
                tensors[key] = value
            elif _is_plain(value):
                numbers[key] = value
            else:
                raise _lost(optimizer, f"a {type(value).__name__} as the state '{kind}'")
    groups = []
    for group in optimizer.param_groups:
        values = {k: v for k, v in group.items() if k not in _NOT_SAVED}
        for kind, value in values.items():
            if isinstance(value, Tensor):
                raise _lost(optimizer, f"a tensor as '{kind}' of a parameter group")
            if isinstance(value, float) and not math.isfinite(value):
                raise _lost(optimizer, f"the number {value} as '{kind}' of a parameter group")
        plain = {kind: value for kind, value in values.items() if _is_plain(value)}
        groups.append({"parameters": [names[p] for p in group["params"]], "values": plain})
    return tensors, {"state": dict(sorted(numbers.items())), "groups": groups}


def _is_plain(value: object) -> bool:
    """Return whether a JSON file keeps the value."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | str | None) or (
        isinstance(value, float) and math.isfinite(value)
    )


def _lost(optimizer: Optimizer, what: str) -> ConfigError:
    return ConfigError(
        f"the optimizer {type(optimizer).__name__} keeps {what}: a resumed run would lose it.",
        "Keep tensors and finite numbers in 'state[parameter]', or numbers in 'param_groups'.",
    )


def load_optimizer_state(
    optimizer: Optimizer,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Load the result of `optimizer_state`, in place where the state exists already.

    A group takes the values of the group that its first parameter was in: a sharded run has more
    groups than others.
    """
    parameters = dict(model.named_parameters())
    for key, value in {**tensors, **numbers.get("state", {})}.items():
        name, _, kind = key.rpartition("/")
        parameter = parameters[name]
        state = optimizer.state[parameter]
        if isinstance(state.get(kind), Tensor):
            state[kind].copy_(sharded_like(value, state[kind]))
        elif isinstance(value, Tensor):  # an optimizer that creates its state in its first step
            value = value.to(parameter.device)
            state[kind] = (
                sharded_like(value, parameter) if value.shape == parameter.shape else value
            )
        else:
            state[kind] = value
    names = {parameter: name for name, parameter in parameters.items()}
    # Snapshots of older versions name no parameters; sgd and adamw change nothing in their groups.
    saved = {n: g["values"] for g in numbers.get("groups", ()) for n in g.get("parameters", ())}
    for group in optimizer.param_groups:
        for kind, value in saved.get(names[group["params"][0]], {}).items():
            group[kind] = tuple(value) if isinstance(group.get(kind), tuple) else value


class WeightAverage:
    """Exponential moving average of the trained parameters.

    Args:
        model: Network whose parameters are averaged.
        decay: Weight of the old average in an update, in 0..1.

    Attributes:
        average: Averages by parameter name; initially the parameters.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def restart(self) -> None:
        """Set the averages to the parameters."""
        for name, parameter in self._parameters.items():
            self.average[name].copy_(parameter)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters."""
        averages = [local_part(average) for average in self.average.values()]
        values = [local_part(parameter) for parameter in self._parameters.values()]
        torch._foreach_lerp_(averages, values, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the averages as parameters in the block."""
        averages = [local_part(average) for average in self.average.values()]
        with exchanged([*self._parameters.values()], averages):
            yield


@torch.no_grad()
def estimate_statistics(segmenter: Segmenter, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of batch norm to their mean over batches of training images.

    Args:
        segmenter: Network; it is left in training mode.
        batches: Normalised images, each (N, 3, H, W).
    """
    norms = [m for m in segmenter.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    segmenter.train()
    for done, images in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1 / done
        segmenter.auxiliary_logits(segmenter.run(images).encoding)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
