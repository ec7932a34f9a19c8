"""The initial network and memory of a run."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import Domain
from pinmem_core.data.loader import DomainLoader
from pinmem_core.distributed import copy_from_first_rank, on_first_rank, rank, world_size
from pinmem_core.events import Listener, Notice, Progress, ignore
from pinmem_core.models import Segmenter
from pinmem_core.models.memory import class_prototypes
from pinmem_core.models.weights import load_backbone_weights


def initial_segmenter(
    config: TrainConfig, *, download: bool = True, on_event: Listener = ignore
) -> Segmenter:
    """Return the initial segmenter with a pretrained backbone; it depends on config and seed only.

    The first of several processes reads the weights and sends them to the others.

    Args:
        config: Configuration of the run.
        download: Whether to download weights that are not on this machine. Without a download, the
            backbone keeps its random weights.
        on_event: Callback for the notice that weights were not downloaded.

    Raises:
        ConfigError: The backbone or its weights do not exist.
        DataError: The weights file is damaged or belongs to another network.
        MachineError: The weights cannot be downloaded.
    """
    torch.manual_seed(config.seed)
    segmenter = Segmenter(config.model)
    name, source = config.model.backbone, config.init_weights
    if source:
        loaded = on_first_rank(
            lambda: load_backbone_weights(segmenter.backbone, name, source, download=download)
        )
        copy_from_first_rank([*segmenter.backbone.state_dict().values()])
        if not loaded:
            message = (
                f"the weights {source} of {name} are not on this machine: training downloads them"
            )
            on_event(Notice(message))
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

    Source: docs/method.md, section 3, "First memory". The means are those of
    `memory.init_batches` augmented batches of all domains; with 0 the slots stay random.
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
