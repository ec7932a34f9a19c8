"""What a run would do, found out without training."""

from dataclasses import dataclass

from pinmem_core.config import TrainConfig
from pinmem_core.evaluation import load_target, load_validation
from pinmem_core.events import Listener, ignore
from pinmem_core.learning.initialization import initial_segmenter
from pinmem_core.learning.resolve import resolve
from pinmem_core.loading import DomainLoader, load_domains
from pinmem_core.preparation import draw_missing


@dataclass(frozen=True)
class Plan:
    """A run that was not started.

    Attributes:
        config: With the method's demands worked in.
        domains: Training samples by domain.
        scored: Samples by domain that is scored afterwards.
        parameters: Of the network.
        batch_shape: (domains, images, channels, height, width) of a batch that was loaded.
    """

    config: TrainConfig
    domains: dict[str, int]
    scored: dict[str, int]
    parameters: int
    batch_shape: tuple[int, ...]


def plan(config: TrainConfig, *, on_event: Listener = ignore) -> Plan:
    """Resolve a configuration, open its data, build its network and load one batch.

    Raises:
        ConfigError: The configuration contradicts itself.
        DataError: A source or target is missing, empty or damaged.
        MachineError: Pretrained weights cannot be downloaded.
    """
    config = resolve(config)
    draw_missing([*config.sources, *config.targets], on_event)
    domains = load_domains(config.sources, pseudo_domains=config.pseudo_domains, seed=config.seed)
    limit = config.evaluation.max_images
    targets = load_validation(config.sources, limit, on_event)
    targets += [load_target(text, config.sources, limit) for text in config.targets]
    segmenter = initial_segmenter(config)
    batch = next(iter(DomainLoader.of(domains, config, range(1))))
    return Plan(
        config,
        {domain.name: len(domain.samples) for domain in domains},
        {target.name: len(target.samples) for target in targets},
        sum(parameter.numel() for parameter in segmenter.parameters()),
        tuple(batch.images.shape),
    )
