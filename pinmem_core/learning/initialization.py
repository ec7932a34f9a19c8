"""Everything random or pretrained that a run begins with."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pinmem_core.config import TrainConfig
from pinmem_core.events import Listener, Notice, Progress, ignore
from pinmem_core.loading import Domain, DomainLoader
from pinmem_core.model import Segmenter
from pinmem_core.model.memory import class_prototypes
from pinmem_core.model.weights import load_trunk_weights
from pinmem_core.ranks import copy_from_first_rank, on_first_rank, rank, world_size


def initial_segmenter(
    config: TrainConfig, *, download: bool = True, on_event: Listener = ignore
) -> Segmenter:
    """Return the untrained segmenter that (config, seed) determines, its trunk pretrained.

    The first of several processes reads the weights and sends them to the others.

    Args:
        config: Of the run.
        download: Whether to download weights that are not on this machine; otherwise the trunk
            keeps its random weights.
        on_event: Callback for a notice that weights were not downloaded.

    Raises:
        ConfigError: The trunk or its weights do not exist.
        DataError: The weights file is damaged or of another network.
        MachineError: The weights cannot be downloaded.
    """
    torch.manual_seed(config.seed)
    segmenter = Segmenter(config.model)
    name, source = config.model.trunk, config.init_weights
    if source:
        loaded = on_first_rank(
            lambda: load_trunk_weights(segmenter.trunk, name, source, download=download)
        )
        copy_from_first_rank([*segmenter.trunk.state_dict().values()])
        if not loaded:
            told = (
                f"the weights {source} of {name} are not on this machine: training downloads them"
            )
            on_event(Notice(told))
    return segmenter


@torch.no_grad()
def initialize_memory(
    segmenter: Segmenter,
    domains: Sequence[Domain],
    config: TrainConfig,
    device: torch.device,
    on_event: Listener,
) -> None:
    """Set the memory to the class means of the untrained network's features.

    Source: docs/method.md, section 3, "First memory". It looks at `memory.init_batches` augmented
    batches of all domains; with 0 the slots stay random.
    """
    memory, settings = segmenter.memory, config.model.memory
    if memory is None or settings is None or settings.init_batches == 0:
        return
    count = settings.init_batches
    segmenter.eval()
    loader = DomainLoader.of(
        domains, config, range(count), device=device, shard=(rank(), world_size())
    )

    def features_and_labels() -> Iterator[tuple[Tensor, Tensor]]:
        for done, batch in enumerate(loader, start=1):
            images, labels = batch.all()
            yield segmenter.encode(images).feature, labels
            on_event(Progress("initialising the memory", done, count))

    memory.slots.copy_(class_prototypes(features_and_labels(), config.model.num_classes))
