"""The plan of a study: the images and the estimated time of its runs, without training."""

from dataclasses import dataclass

from pinmem_core.config import TrainConfig
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.devices import pick_device
from pinmem_core.evaluation import load_target
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.study.sweep import Sweep
from pinmem_core.training.setup import initial_segmenter, load_data, resolve
from pinmem_core.training.timing import Timing, measure


@dataclass(frozen=True)
class StudyPlan:
    """Images and time of the runs of a study.

    Attributes:
        images: Number of training images.
        scored: Number of images that each run is scored on.
        seconds: Estimated seconds of one run, by variant.
    """

    images: int
    scored: int
    seconds: dict[str, float]


def plan_study(sweep: Sweep, *, on_event: Listener = ignore) -> StudyPlan:
    """Return the plan of a study. Variants of equal cost are measured once, each in seconds.

    Raises:
        ConfigError: A configuration contradicts itself.
        DataError: A source, a target or weights are missing or damaged.
        MachineError: The device is missing.
    """
    seed = sweep.seeds[0]
    configs = {name: resolve(sweep.config(name, seed)) for name in sweep.variants}
    prepare_synthetic([*sweep.sources, *sweep.targets], on_event)
    scored = [load_target(text) for text in sweep.scored()]
    domains = load_data(configs[sweep.baseline], ignore).domains
    timings: dict[str, Timing] = {}
    seconds = {}
    for name, config in configs.items():
        cost = _cost(config)
        if cost not in timings:
            on_event(Notice(f"measuring the speed of {name} ..."))
            data = load_data(config, ignore)
            segmenter = initial_segmenter(config, download=False)
            device = pick_device(config.device)
            timings[cost] = measure(config, segmenter, data.domains, scored, device)
        timing = timings[cost]
        # A run validates on its sources, and its report scores them again with the targets.
        once = timing.scores()
        seconds[name] = once if sweep.variants[name].of else timing.total(config) + once
    images = sum(len(domain.samples) for domain in domains)
    return StudyPlan(images, sum(len(target.samples) for target in scored), seconds)


def _cost(config: TrainConfig) -> str:
    """Return the settings that decide the time of an iteration."""
    whole = "method", "method_config", "batch", "pseudo_domains", "workers", "device", "model"
    keys = dict.fromkeys((*whole, "compute", "augmentation", "meta"), True)
    return config.model_dump_json(include={**keys, "optim": {"name", "clip", "ema", "freeze"}})
