"""The plan of a study: the images and the estimated time of its runs, without training."""

from dataclasses import dataclass

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Domain
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.devices import pick_device
from pinmem_core.errors import ConfigError
from pinmem_core.evaluation import Target, load_target
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.study.sweep import Sweep
from pinmem_core.training.setup import initial_segmenter, load_data, resolve, with_classes
from pinmem_core.training.time_limit import Timing
from pinmem_core.training.timing import is_long, measure


@dataclass(frozen=True)
class StudyPlan:
    """Images and time of the runs of a study, or of one of its folds.

    Attributes:
        images: Number of training images.
        scored: Number of images that each run is scored on.
        seconds: Estimated seconds of one run, by variant; empty if nothing was measured.
    """

    images: int
    scored: int
    seconds: dict[str, float]


def plan_study(
    sweep: Sweep, *, only_long: bool = False, on_event: Listener = ignore
) -> dict[str, StudyPlan]:
    """Return the plan of each fold. Variants of equal cost are measured once, each in seconds.

    Args:
        sweep: The study.
        only_long: Whether to measure only if a run is long enough to be measured when it starts.
        on_event: Callback for progress events.

    Raises:
        ConfigError: A configuration contradicts itself, or variants would be scored in different
            classes.
        DataError: A source, a target or weights are missing or damaged.
        MachineError: The device is missing.
    """
    timings: dict[str, Timing] = {}
    plans = {}
    for fold, part in sweep.parts().items():
        prepare_synthetic([*part.sources, *part.targets], on_event)
        configs = configs_of(part)
        space = configs[part.baseline].model.label_space
        scored = [load_target(text, network=space) for text in part.scored()]
        domains = load_data(configs[part.baseline], ignore).domains
        seconds = {}
        if not only_long or any(is_long(config, len(domains)) for config in configs.values()):
            for name, config in configs.items():
                cost = f"{_cost(config)} {len(scored)}"
                if cost not in timings:
                    on_event(Notice(f"measuring the speed of {name} ..."))
                    timings[cost] = _measured(config, scored)
                seconds[name] = _seconds(
                    timings[cost], config, scored, bool(part.variants[name].of)
                )
        images = sum(len(domain.samples) for domain in domains)
        plans[fold] = StudyPlan(images, sum(len(target.samples) for target in scored), seconds)
    return plans


def configs_of(sweep: Sweep) -> dict[str, TrainConfig]:
    """Return the resolved configuration of each variant with the first seed.

    Args:
        sweep: A study without folds; its sources and targets are prepared.

    Raises:
        ConfigError: A configuration contradicts itself, or variants would be scored in different
            classes, so that they have no common table.
        DataError: A source or a target is missing or damaged.
    """
    configs = {
        name: with_classes(resolve(sweep.config(name, sweep.seeds[0]))) for name in sweep.variants
    }
    first = configs[sweep.baseline].model.label_space
    for name, config in configs.items():
        space = config.model.label_space
        for text in sweep.scored() if space != first else ():
            one, other = (load_target(text, network=of).classes.space for of in (first, space))
            if not one.same_as(other):
                raise ConfigError(
                    f"{text} would be scored by the classes of {one.name} for {sweep.baseline}, "
                    f"and by those of {other.name} for {name}, and a table never mixes them.",
                    "Give all variants the same 'classes'. To compare networks of different "
                    "classes, train them in two studies, and score their runs in common classes: "
                    "'pinmem eval RUN --classes NAME'.",
                )
    return configs


def _measured(config: TrainConfig, scored: list[Target]) -> Timing:
    domains: list[Domain] = load_data(config, ignore).domains
    segmenter = initial_segmenter(config, download=False)
    return measure(config, segmenter, domains, scored, pick_device(config.device))


def _seconds(timing: Timing, config: TrainConfig, scored: list[Target], trained: bool) -> float:
    """Return the seconds of a run, whose fold may score other images than the measured one."""
    each = [seconds for seconds, _ in timing.scoring]
    counts = [len(target.samples) for target in scored]
    timing = Timing(timing.iteration, tuple(zip(each, counts, strict=True)), timing.memory_bytes)
    # A run validates on its sources, and its report scores them again with the targets.
    once = timing.scores()
    return once if trained else timing.total(config) + once


def _cost(config: TrainConfig) -> str:
    """Return the settings that decide the time of an iteration."""
    whole = "method", "method_config", "batch", "pseudo_domains", "workers", "device", "model"
    keys = dict.fromkeys((*whole, "compute", "augmentation", "meta"), True)
    optim = {"name", "clip", "ema", "freeze"}
    return f"{len(config.sources)} {config.model_dump_json(include={**keys, 'optim': optim})}"
