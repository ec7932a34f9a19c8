"""What a run would do and take, found out without training."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pinmem_core.config import TrainConfig
from pinmem_core.devices import pick_device
from pinmem_core.evaluation import TrainedOn, load_target, load_validation
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.learning.batch_sheet import batch_sheet
from pinmem_core.learning.estimate import Estimate, estimate, wait_for
from pinmem_core.learning.initialization import initial_segmenter
from pinmem_core.learning.resolve import resolve
from pinmem_core.loading import Batch, Domain, DomainLoader, load_domains
from pinmem_core.preparation import draw_missing, ids_of


@dataclass(frozen=True)
class Plan:
    """A run that was not started.

    Attributes:
        config: With the method's demands worked in.
        domains: Training samples by domain.
        scored: Samples by domain that is scored afterwards.
        parameters: Of the network.
        batch_shape: (domains, images, channels, height, width) of the batch that was loaded.
        batch_picture: That batch, (H, W, 3) RGB.
        device: That the run would take.
        estimate: What an iteration takes there, loading aside.
        loading_seconds: Of a batch, by one process.
    """

    config: TrainConfig
    domains: dict[str, int]
    scored: dict[str, int]
    parameters: int
    batch_shape: tuple[int, ...]
    batch_picture: NDArray[np.uint8]
    device: torch.device
    estimate: Estimate
    loading_seconds: float

    @property
    def seconds_per_iteration(self) -> float:
        """About what an iteration will take; worker processes load while others compute."""
        if self.config.workers == 0:
            return self.loading_seconds + self.estimate.seconds
        loading_at_once = min(self.config.workers, os.cpu_count() or 1)
        return max(self.loading_seconds / loading_at_once, self.estimate.seconds)

    @property
    def training_seconds(self) -> float:
        """About what all iterations will take, without the first memory and the scoring."""
        return self.config.iterations * self.seconds_per_iteration


def plan(config: TrainConfig, *, on_event: Listener = ignore) -> Plan:
    """Resolve a configuration, build its network, open its data, and try a few small steps.

    Pretrained weights are checked if they are on this machine, and not downloaded if not.

    Raises:
        ConfigError: The configuration contradicts itself, or its weights do not exist.
        DataError: A source, a target or the weights are missing, empty or damaged.
        MachineError: This machine lacks the device or memory for an iteration.
    """
    config = resolve(config)
    device = pick_device(config.device)
    segmenter = initial_segmenter(config, download=False, on_event=on_event)
    draw_missing([*config.sources, *config.targets], on_event)
    domains = load_domains(config.sources, pseudo_domains=config.pseudo_domains, seed=config.seed)
    limit = config.evaluation.max_images
    targets = load_validation(config.sources, limit, on_event)
    trained_on = TrainedOn.of_samples(config.sources, (ids_of(d.samples) for d in domains))
    targets += [load_target(text, trained_on, limit) for text in config.targets]
    parameters = sum(parameter.numel() for parameter in segmenter.parameters())
    batch, picture, loading_seconds = _first_batch(domains, config, device)
    on_event(Notice("estimating memory and time ..."))
    return Plan(
        config,
        {domain.name: len(domain.samples) for domain in domains},
        {target.name: len(target.samples) for target in targets},
        parameters,
        tuple(batch.images.shape),
        picture,
        device,
        estimate(config, segmenter, batch, device),
        loading_seconds,
    )


def _first_batch(
    domains: Sequence[Domain], config: TrainConfig, device: torch.device
) -> tuple[Batch, NDArray[np.uint8], float]:
    """Return a run's first batch, a picture of it, and the seconds that the next one takes."""
    alone = config.model_copy(update={"workers": 0})
    loader = DomainLoader.of(domains, alone, range(2), device)
    batches = iter(loader)
    first = next(batches)
    picture = batch_sheet(
        first, [domain.name for domain in domains], loader.crops.strong_domains(0)
    )
    wait_for(device)
    began = time.perf_counter()
    next(batches)
    wait_for(device)
    return first, picture, time.perf_counter() - began
