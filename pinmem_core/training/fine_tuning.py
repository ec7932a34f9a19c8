"""Fine-tuning: a run that starts from the weights of another model.

Tensors are matched by name and shape, and the rows of classifiers and memory by the names of the
classes. What the model lacks is initialised as in any run; `linear_probe` then fits new rows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from pinmem_core.checkpoints.checkpoint import weights_sha256
from pinmem_core.checkpoints.config_file import read_architecture, read_config
from pinmem_core.checkpoints.hub import checkpoint_of, lasting_name, model_name
from pinmem_core.checkpoints.model_card import WEIGHTS_LICENCE
from pinmem_core.config import ModelConfig, Settings, TrainConfig
from pinmem_core.distributed import broadcast_tensors, on_first_rank
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation import TrainedOn
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.models import Segmenter, load_checkpoint


class InitialModel(Settings):
    """Record of the model that a run starts from."""

    model: str
    """Name of the model, without local folders."""
    sha256: str
    """SHA-256 of its weights file."""
    sources: tuple[str, ...]
    """Sources that it was trained on; empty if unknown."""
    trained_on: Mapping[str, Any]
    """Record of its training images, as in a checkpoint; empty if unknown."""
    weights_licence: str | None = None
    """Licence of the pretrained weights that it started from; None if unknown."""

    @classmethod
    def read(cls, name: str) -> Self:
        """Return the record of a model.

        Raises:
            DataError: The model does not exist or is damaged.
            MachineError: The Hub cannot be reached.
        """
        folder = checkpoint_of(name)
        config = read_config(folder)
        record = TrainedOn.of_folder(folder, config)
        return cls(
            model=model_name(folder),
            sha256=weights_sha256(folder),
            sources=record.sources,
            trained_on=record.as_json(),
            weights_licence=config.get(WEIGHTS_LICENCE),
        )

    def record(self) -> TrainedOn:
        """Return the record of the training images."""
        return TrainedOn.of_checkpoint(
            {"training": {"sources": self.sources}, "trained_on": self.trained_on}
        )


def with_architecture_of(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run with the architecture of a model.

    The classes and the number of batches for the initial memory stay those of `settings`; so does
    the whole section of the memory if the model has none.

    Raises:
        DataError: The model does not exist or is damaged.
        MachineError: The Hub cannot be reached.
    """
    theirs = _without_classes(read_architecture(checkpoint_of(name)))
    own = settings.get("model", {})
    memory = own.get("memory", {})
    if theirs["memory"]:
        count = {k: v for k, v in memory.items() if k == "init_batches"}
        memory = theirs["memory"] | count
    model = {**own, **theirs, "memory": memory}
    return {**settings, "model": model}


def pinned(config: TrainConfig) -> TrainConfig:
    """Return the configuration with `init_from` as a name that stays, after checking that it fits.

    Raises:
        ConfigError: Another setting contradicts `init_from`.
        DataError: The model does not exist or is damaged.
        MachineError: The Hub cannot be reached.
    """
    name = config.init_from
    if name is None:
        return config
    theirs, model = read_architecture(checkpoint_of(name)), config.model
    if config.init_weights:
        raise ConfigError(
            f"init_weights={config.init_weights} contradicts init_from={name}, which has weights "
            "of the backbone, too.",
            "Leave one of them out.",
        )
    for key in ("backbone", "backbone_options"):
        given, expected = getattr(model, key), getattr(theirs, key)
        if given != expected:
            raise ConfigError(
                f"model.{key} is {given}, but the model {name} has {expected}.",
                f"Leave 'model.{key}' and the recipe out; the architecture then follows the model.",
            )
    if theirs.adapters and theirs.adapters != model.adapters:
        raise ConfigError(
            f"the adapters of the model {name} ({', '.join(theirs.adapters)}) differ from those of "
            "the run.",
            "Leave 'model.adapters' and the recipe out, and use the method of that model.",
        )
    return config.model_copy(update={"init_from": lasting_name(name)})


def start_from(segmenter: Segmenter, config: TrainConfig, on_event: Listener = ignore) -> None:
    """Load the weights of `config.init_from` into a new network, and insert its adapters.

    The first of several processes reads the weights and sends them to the others.

    Args:
        segmenter: Network without adapters, with its initial weights.
        config: Configuration of the run, with `init_from`.
        on_event: Callback for the notice of what the model lacks.

    Raises:
        ConfigError: A frozen part would contain new weights.
        DataError: The model does not exist or is damaged.
        MachineError: The Hub cannot be reached.
    """
    folder = checkpoint_of(config.init_from or "")
    adapted = bool(read_architecture(folder).adapters)
    if adapted:
        segmenter.adapt(config.model)
    taken = on_first_rank(lambda: _take_weights(segmenter, folder))
    broadcast_tensors([*segmenter.state_dict().values()])
    new = [segmenter.config.class_names.index(name) for name in taken.classes]
    segmenter.new_rows = {name: new for name in taken.rows if new and name.endswith(".weight")}
    if segmenter.memory is not None:
        segmenter.memory.taken = taken.slots
    if not adapted:
        segmenter.adapt(config.model, initialize=True)
    name = model_name(folder)
    for part in config.optim.freeze:
        if missing := taken.new_in(part):
            raise ConfigError(
                f"optim.freeze={part} would leave new weights untrained: {missing}, which {name} "
                "lacks.",
                f"Train the {part}: leave it out of 'optim.freeze'.",
            )
    on_event(Notice(f"initialised from {name}; new: {taken.new_in() or 'nothing'}"))


class _Taken(NamedTuple):
    """What another model lacked: whole tensors, rows of classes, and which slots it had."""

    tensors: list[str]
    rows: list[str]
    classes: list[str]
    slots: frozenset[int]

    def new_in(self, part: str = "") -> str:
        """Return what is new in the parts whose names start with `part`, in words."""
        what = [name for name in self.tensors if name.startswith(part)]
        if self.classes and any(name.startswith(part) for name in self.rows):
            what.append(f"classifier rows for {', '.join(self.classes)}")
        return ", ".join(what)


@torch.no_grad()
def _take_weights(segmenter: Segmenter, folder: Path) -> _Taken:
    with torch.random.fork_rng(devices=[]):
        base, _ = load_checkpoint(folder)
        by_class = _tensors_by_class(segmenter.config)
    names, theirs, own = segmenter.config.class_names, base.config.class_names, base.state_dict()
    rows = {k: theirs.index(name) for k, name in enumerate(names) if name in theirs}
    new, partial, slots = [], [], frozenset[int]()
    state = segmenter.state_dict()
    for name, tensor in state.items():
        other, at = own.get(name), int(name in by_class)
        if other is None or other.shape[at:] != tensor.shape[at:]:
            new.append(name)
        elif name in by_class:
            tensor[[*rows]] = other[[*rows.values()]]
            partial.append(name)
            if name == "memory.slots":  # the slot of a class that never occurred is zero
                slots = frozenset(k for k, row in rows.items() if other[row].any())
        else:
            tensor.copy_(other)
    kept = {name.partition(".")[0] for name in state.keys() - new}
    depths = {name: 2 if name.partition(".")[0] in kept else 1 for name in new}
    parts = dict.fromkeys(".".join(name.split(".")[:depth]) for name, depth in depths.items())
    return _Taken([*parts], partial, [name for name in names if name not in theirs], slots)


def _tensors_by_class(config: ModelConfig) -> set[str]:
    """Return the names of the tensors with a row for each class."""
    plain = _without_classes(config.model_copy(update={"adapters": {}}))
    with torch.device("meta"):
        few, many = (
            Segmenter(ModelConfig.model_validate({**plain, "num_classes": count})).state_dict()
            for count in (2, 3)
        )
    return {name for name, tensor in few.items() if tensor.shape != many[name].shape}


def _without_classes(model: ModelConfig) -> dict[str, Any]:
    """Return the settings of an architecture that do not depend on its classes."""
    settings = model.model_dump()
    return {k: v for k, v in settings.items() if k not in ("num_classes", "label_space")}
