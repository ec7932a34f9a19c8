"""Cross-field checks of a configuration, and the initial network and memory of a run."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pinmem_core.checkpoints.base_weights import VARIABLE, Base, Kind, fingerprints
from pinmem_core.config import ComputeConfig, TrainConfig
from pinmem_core.data.batches import Batch, Domain, load_domains
from pinmem_core.data.prepared import PreparedDataset, Selection, matching
from pinmem_core.data.samples import ids_of
from pinmem_core.distributed import (
    broadcast_tensors,
    on_first_rank,
    started_by_torchrun,
)
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation import Target, TrainedOn, load_target, load_validation, shared_images
from pinmem_core.events import Listener, Notice, Progress, ignore
from pinmem_core.label_space import CITYSCAPES, common_space, label_space
from pinmem_core.methods import methods
from pinmem_core.methods.base import Method
from pinmem_core.models import Segmenter
from pinmem_core.models.memory import class_prototypes
from pinmem_core.paths import expanded
from pinmem_core.training.fine_tuning import InitialModel, pinned, start_from
from pinmem_core.training.loggers import loggers
from pinmem_core.training.network_check import require_consistent


def resolve(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the requirements and adapters of its method applied.

    Raises:
        ConfigError: The configuration contradicts itself, or names no source.
    """
    config = _tuned(config)
    method = methods.get(config.method)
    if not config.sources:
        raise ConfigError(
            "no source domain is named.",
            "Name some: '--sources demo:arcade,demo:toytown'. 'pinmem data list' shows all.",
        )
    wanted = method.memory == "required" if config.use_memory is None else config.use_memory
    if wanted != (method.memory == "required") and method.memory != "optional":
        raise ConfigError(
            f"use_memory={str(wanted).lower()} contradicts the method '{config.method}'.",
            f"Its memory is {method.memory}; leave use_memory out.",
        )
    if wanted and config.model.memory is None:
        raise ConfigError(
            f"the method '{config.method}' needs the section model.memory.",
            "Use the default settings of the memory: '--set model.memory={}'.",
        )
    parts = config.compute.accumulate
    if method.meta and config.batch // parts < 2:
        raise ConfigError(
            f"a step of '{config.method}' needs at least 2 images of each domain, not 1.",
            "Batch norm in the pooled branch cannot normalise a single value; use "
            f"'--batch {2 * parts}'.",
        )
    if config.compute.compile and config.compute.recompute:
        raise ConfigError(
            "compute.compile contradicts compute.recompute: torch cannot compile recomputed "
            "activations.",
            "Set one of them to false.",
        )
    _require_capturable(config.compute, method)
    _require_fixed_views(config)
    _require_cacheable(config, method)
    _require_shardable(config.compute)
    _require_trainable(config, wanted)
    _require_base(config)
    _require_initial_weights(config)
    for name in config.logger:
        loggers.get(name)
    settings = method.read_settings(config)
    adapters = {**config.model.adapters, **method.adapters(settings)}
    memory = config.model.memory if wanted else None
    model = config.model.model_copy(update={"memory": memory, "adapters": adapters})
    own = settings.model_dump(mode="json")
    return pinned(config.model_copy(update={"model": model, "method_config": own}))


def _tuned(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the adapter, or the frozen backbone, that `tune` asks for.

    Raises:
        ConfigError: There is an adapter that another `tune` stands for.
    """
    others = {"lora", "rein", "bias"} - {config.tune} if config.init_from is None else set()
    for name in sorted(others & {*config.model.adapters}):
        raise ConfigError(
            f"tune={config.tune} contradicts model.adapters.{name}, with which the pretrained "
            "weights are frozen.",
            f"Use '--set tune={name}', or '--set model.adapters={{}}'.",
        )
    if config.tune == "full":
        return config
    optim, model, name = config.optim, config.model, config.tune
    if name == "frozen":
        freeze = tuple(dict.fromkeys([*optim.freeze, "backbone"]))
        return config.model_copy(update={"optim": optim.model_copy(update={"freeze": freeze})})
    adapters = {**model.adapters, name: model.adapters.get(name, {})}
    return config.model_copy(update={"model": model.model_copy(update={"adapters": adapters})})


def with_classes(config: TrainConfig, on_event: Listener = ignore) -> TrainConfig:
    """Return the configuration with the classes of the run as those of the network.

    They are those that `classes` names, or else `model.label_space` if it is set, or else the
    finest ones to which the labels of all sources can be mapped.

    Args:
        config: Configuration of the run; its sources are prepared.
        on_event: Callback for the notice that names classes other than those of Cityscapes.

    Raises:
        ConfigError: There is no such label space, or the sources have none in common.
        DataError: A source is not prepared.
    """
    datasets = dict.fromkeys(Selection.parse(source).dataset for source in config.sources)
    spaces = {name: PreparedDataset.open(name).label_space for name in datasets}
    own, whose = {space.name: space for space in spaces.values()}, ""
    if config.classes:
        space = own.get(config.classes) or label_space(config.classes)
    elif "label_space" in config.model.model_fields_set:
        space = config.model.label_space
    else:
        space = common_space([*spaces.values()])
        how = "common to" if len(spaces) > 1 else "those of"
        whose = f", {how} {' and '.join(spaces)}"
    space = space.canonical
    if space != CITYSCAPES:
        on_event(Notice(f"classes: {space.name} ({len(space)}){whose}"))
    return config.model_copy(
        update={"model": config.model.model_copy(update={"label_space": space})}
    )


def _require_capturable(compute: ComputeConfig, method: type[Method]) -> None:
    """Raise ConfigError for settings that need the host within an iteration: no CUDA graph can."""
    obstacles = {
        "the method": not method.cuda_graph,
        "compute.precision=fp16": compute.precision == "fp16",
        "compute.recompute": bool(compute.recompute),
        "several processes": started_by_torchrun(),
    }
    for name in (name for name, there in obstacles.items() if there and compute.graph):
        raise ConfigError(
            f"compute.graph contradicts {name}: the host has to act within an iteration.",
            "Set 'compute.graph' to false.",
        )


def _require_fixed_views(config: TrainConfig) -> None:
    """Raise ConfigError for augmentation that depends on the iteration, with fixed views."""
    augmentation = config.augmentation
    if augmentation.views is None:
        return
    if augmentation.strong == "meta-test":
        raise ConfigError(
            "augmentation.views contradicts augmentation.strong=meta-test: these domains differ "
            "from iteration to iteration, and the views do not.",
            "Use '--set augmentation.strong=all', or 'first-source' or 'none'.",
        )
    if augmentation.rare_classes:
        raise ConfigError(
            "augmentation.views contradicts augmentation.rare_classes: crops would follow classes.",
            "Set one of them to none.",
        )


def _require_cacheable(config: TrainConfig, method: type[Method]) -> None:
    """Raise ConfigError for settings with which the backbone's outputs are not the same forever."""
    if config.compute.cache_features is None:
        return
    adapts = method.setup is not Method.setup or method.adapters(method.read_settings(config))
    inside = bool(adapts) or not method.cached_features
    obstacles = [
        ("backbone" in config.optim.freeze, "a backbone that is trained", "--set tune=frozen"),
        (not config.model.adapters, "adapters in the backbone", "--set model.adapters={}"),
        (not inside, f"the method '{config.method}', which looks into it", "--method aggregate"),
        (config.augmentation.views, "new crops each time", "--set augmentation.views=4"),
        (config.minutes is None, "a limit of time", "--set minutes=none"),
    ]
    for fits, obstacle, instead in obstacles:
        if not fits:
            raise ConfigError(
                f"compute.cache_features contradicts {obstacle}: a cache needs features that stay.",
                f"Use '{instead}'.",
            )
    if started_by_torchrun():
        raise ConfigError(
            "compute.cache_features needs one process, not several.", "Start it without torchrun."
        )


def _require_shardable(compute: ComputeConfig) -> None:
    """Raise ConfigError for settings that need whole parameters, or FSDP's hooks compiled."""
    reasons = {
        "precision=fp16": (compute.precision == "fp16", "processes would skip different steps"),
        "channels_last": (compute.channels_last, "FSDP keeps parameters in the default layout"),
        "compile": (compute.compile, "the gathering of parameters cannot be compiled with it"),
    }
    for name, (there, reason) in reasons.items():
        if compute.shard and there:
            other = "bf16" if "=" in name else "false"
            raise ConfigError(
                f"compute.shard contradicts compute.{name}: {reason}.",
                f"Use '--set compute.{name.partition('=')[0]}={other}'.",
            )


def _require_trainable(config: TrainConfig, memory: bool) -> None:
    """Raise ConfigError if a frozen part would be random, or nothing would be trained."""
    frozen = {*config.optim.freeze}
    weights = {"backbone": config.init_from or config.init_weights, "decoder": config.init_from}
    for part in (part for part, source in weights.items() if part in frozen and not source):
        raise ConfigError(
            f"optim.freeze={part} needs trained weights of the {part}.",
            "Start from a model: '--from starter'.",
        )
    if frozen == {*weights} and not (memory or config.model.adapters):
        raise ConfigError(
            f"optim.freeze leaves nothing to train: the method '{config.method}' has no memory.",
            "Freeze one of the parts.",
        )


def _require_initial_weights(config: TrainConfig) -> None:
    """Raise ConfigError if the network would be averaged with random weights."""
    if config.optim.initial_share and not config.init_from:
        raise ConfigError(
            f"optim.initial_share={config.optim.initial_share} needs the weights of a model.",
            "Start from one: '--from starter'.",
        )


def _require_base(config: TrainConfig) -> None:
    """Raise ConfigError if `adapter_only` leaves out no tensor, or its base is unknown."""
    trains_all = not (config.model.adapters or "backbone" in config.optim.freeze)
    if config.checkpoint.adapter_only and trains_all:
        raise ConfigError(
            "checkpoint.adapter_only contradicts tune=full, which trains all weights.",
            "Train a part of them: '--set tune=lora'.",
        )
    if config.checkpoint.adapter_only and not (config.init_from or config.init_weights):
        raise ConfigError(
            "checkpoint.adapter_only needs base weights, and the run starts from random ones.",
            "Start from pretrained ones: '--init-weights default'.",
        )


def base_of(config: TrainConfig, *, resumed: bool = False) -> Base | None:
    """Return the base weights that the checkpoints of a run name; None if they hold all weights.

    Args:
        config: Resolved configuration of the run.
        resumed: Whether the run has begun already; then the environment may name another place.

    Raises:
        ConfigError: The weights do not exist.
        DataError: The weights are damaged, or the model does not exist or is damaged.
        MachineError: They cannot be downloaded.
    """
    if not config.checkpoint.adapter_only:
        return None
    kind: Kind = "model" if config.init_from else "weights"
    source = config.init_from or config.init_weights or ""
    source = os.environ.get(VARIABLE, source) if resumed else source
    digests = fingerprints(Segmenter.base_tensors(config.model, kind, source))
    path = expanded(source)
    return Base(kind, str(path.absolute()) if path.exists() else source, digests)


class RunData(NamedTuple):
    """The data of a run.

    Attributes:
        domains: Source domains for training.
        validation: Validation splits of the sources.
        targets: Domains to score after training.
        trained_on: Record of the training images.
    """

    domains: list[Domain]
    validation: list[Target]
    targets: list[Target]
    trained_on: TrainedOn


def load_data(
    config: TrainConfig,
    on_event: Listener,
    start: InitialModel | None = None,
    *,
    resumed: bool = False,
) -> RunData:
    """Read the manifests of a run.

    Args:
        config: Configuration of the run.
        on_event: Callback for warnings.
        start: Model that the run starts from; the network has also seen its training images.
        resumed: Whether the run has begun already; then its domains are not questioned again.

    Raises:
        ConfigError: Sources share images, or a target cannot be scored with the classes of the run,
            or is one of the sources and `allow_seen_targets` is not set.
        DataError: A source or a target is missing or empty.
    """
    limit, space = config.evaluation.max_images, config.model.label_space
    domains = load_domains(
        config.sources, pseudo_domains=config.pseudo_domains, seed=config.seed, space=space
    )
    if not resumed:
        _require_disjoint(config.sources, domains)
    validation = load_validation(config.sources, limit, on_event, network=space)
    trained_on = TrainedOn.of_samples(config.sources, (ids_of(d.samples) for d in domains))
    own = trained_on
    method = methods.get(config.method)
    teachers = map(InitialModel.read, method.teachers(method.read_settings(config)))
    for model in (*teachers, *([start] if start else [])):
        trained_on |= model.record()
    targets = [load_target(text, trained_on, limit, network=space) for text in config.targets]
    named = {text: Selection.parse(text) for text in config.targets}
    seen = [t for t, of in named.items() if own.has_seen(of.dataset, matching(of, "all"))]
    if seen and not (config.allow_seen_targets or resumed):
        raise ConfigError(
            f"the network would be trained on {', '.join(seen)}, which are targets: their scores "
            "would say nothing about unseen domains.",
            "Choose other targets, or accept them with '--allow-seen-targets' (in a recipe or a "
            "sweep: allow_seen_targets = true).",
        )
    for warning in shared_images(targets):
        on_event(Notice(warning, warning=True))
    return RunData(domains, validation, targets, trained_on)


def _require_disjoint(sources: Sequence[str], domains: Sequence[Domain]) -> None:
    """Raise ConfigError if two sources share images; the parts of a single source never do."""
    known: dict[str, set[str]] = {}
    for source, domain in zip(sources, domains, strict=False):
        ids, of_dataset = ids_of(domain.samples), Selection.parse(source).dataset
        if not known.setdefault(of_dataset, set()).isdisjoint(ids):
            raise ConfigError(
                f"the source {source} has images of another source: a meta step would hold them "
                "out and train on them at once.",
                "Name sources without common images.",
            )
        known[of_dataset].update(ids)


def initial_segmenter(
    config: TrainConfig, *, download: bool = True, on_event: Listener = ignore
) -> Segmenter:
    """Return the initial segmenter, with pretrained weights where `config` names some.

    It depends on these weights, the configuration and the seed only. The first of
    several processes reads the weights and sends them to the others.

    Args:
        config: Configuration of the run.
        download: Whether to download weights that are not on this machine. Without a download, the
            backbone keeps its random weights.
        on_event: Callback for notices: weights that were not downloaded, and what `init_from`
            lacks.

    Raises:
        ConfigError: The backbone or its weights do not exist, a frozen part would be new, or the
            backbone or decoder is not as it describes itself.
        DataError: The weights are damaged or belong to another network.
        MachineError: The weights cannot be downloaded.
    """
    torch.manual_seed(config.seed)
    segmenter = Segmenter(config.model.model_copy(update={"adapters": {}}))
    name, source = config.model.backbone, config.init_weights
    if source:
        loaded = on_first_rank(
            lambda: segmenter.backbone.load_pretrained(source, download=download)
        )
        broadcast_tensors([*segmenter.backbone.state_dict().values()])
        if not loaded:
            message = (
                f"the weights {source} of {name} are not on this machine: training downloads them"
            )
            on_event(Notice(message))
    if config.init_from:
        start_from(segmenter, config, on_event)
    else:
        segmenter.adapt(config.model, initialize=True)  # adapters rename weights
        if config.model.adapters and not source:
            message = (
                f"tune={config.tune} leaves the backbone's random weights as they are; start from "
                "pretrained ones: '--init-weights default'"
            )
            on_event(Notice(message, warning=True))
    require_consistent(segmenter)
    return segmenter


@torch.no_grad()
def initialize_memory(
    segmenter: Segmenter,
    load: Callable[[range], Iterable[Batch]],
    config: TrainConfig,
    on_event: Listener,
) -> None:
    """Set the memory to the class means of the initial network's features.

    Source: docs/method.md, section 3, "Initial memory". The means are those of
    `memory.init_batches` augmented batches of all domains; with 0 the slots stay random. Slots that
    come from another model stay.

    Args:
        segmenter: Network on its device.
        load: Function that returns the batches of a range of iterations.
        config: Configuration of the run.
        on_event: Callback for progress events.
    """
    memory, settings = segmenter.memory, config.model.memory
    if memory is None or settings is None or settings.init_batches == 0:
        return
    new = sorted({*range(len(memory.slots))} - memory.taken)
    if not new:
        return
    count = settings.init_batches
    segmenter.eval()

    def features_and_labels() -> Iterator[tuple[Tensor, Tensor]]:
        for done, batch in enumerate(load(range(count)), start=1):
            images, labels = batch.all()
            yield segmenter.encode(images).feature, labels
            on_event(Progress("initialising the memory", done, count))

    memory.slots[new] = class_prototypes(features_and_labels(), config.model.num_classes)[new]
