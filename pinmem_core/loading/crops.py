"""Dataset of the training crops of each iteration."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from pinmem_core.config import TrainConfig
from pinmem_core.errors import DataError, MachineError, PinMemError
from pinmem_core.label_space import IGNORE_INDEX
from pinmem_core.loading.augmentation import Appearance, appear
from pinmem_core.loading.domains import (
    Domain,
    appearance_seed,
    draw_indices,
    draw_meta_split,
    geometry_rng,
)
from pinmem_core.loading.geometry import draw_geometry

MAX_REDRAWS = 50
"""Maximum number of crops in a row without a labelled pixel before a domain is unusable."""


class Crop(NamedTuple):
    """One training crop before photometric augmentation.

    Attributes:
        image: RGB image, (3, H, W) uint8.
        label: TrainIds, (H, W) uint8.
        appearance: Parameters of the photometric augmentation.
        sample: Name "domain/sample" of the source image.
        redrawn: Number of rejected crops before it.
    """

    image: Tensor
    label: Tensor
    appearance: Appearance
    sample: str
    redrawn: int


class Drawn(NamedTuple):
    """The N crops of an iteration, domain by domain.

    Attributes:
        images: Images, (N, 3, H, W); uint8 before photometric augmentation, normalised float32
            after.
        labels: TrainIds, (N, H, W) uint8.
        appearances: Augmentation parameters of each crop; empty after the augmentation.
        samples: Names "domain/sample" of the crops.
        redrawn: Number of crops that were redrawn because they had no labelled pixel.
    """

    images: Tensor
    labels: Tensor
    appearances: tuple[Appearance, ...]
    samples: tuple[str, ...]
    redrawn: int

    def finished(self) -> "Drawn":
        """Return the crops after photometric augmentation, computed on their device."""
        if not self.appearances:
            return self
        return self._replace(images=appear(self.images, self.appearances), appearances=())


class _Key(NamedTuple):
    iteration: int
    domain: int
    slot: int
    sample: int
    strong: bool


class Crops(Dataset[Drawn | PinMemError]):
    """Map-style dataset from iteration to crops, a pure function of (seed, iteration).

    Args:
        domains: Source domains, D of them.
        config: Configuration of the run: seed, augmentation, images per domain.
        slots: Range of each domain's images to load; other processes load the others.
        finish: Whether to apply photometric augmentation; otherwise the consumer applies it.
    """

    def __init__(
        self, domains: Sequence[Domain], config: TrainConfig, slots: range, *, finish: bool
    ) -> None:
        self.domains = domains
        self.config = config
        self.slots = slots
        self.finish = finish

    def __getitem__(self, iteration: int) -> Drawn | PinMemError:
        """Return the crops of an iteration, or the error that prevents loading them.

        The error is returned, because a DataLoader worker reduces a raised error to traceback text.
        """
        try:
            drawn = self._draw(iteration)
            return _shared(drawn) if get_worker_info() else drawn
        except PinMemError as error:
            return error

    def meta_split(self, iteration: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the indices of the meta-train and meta-test domains of an iteration."""
        split = draw_meta_split(self.config.seed, iteration, len(self.domains))
        return tuple(split[0]), tuple(split[1])

    def strong_domains(self, iteration: int) -> set[int]:
        """Return the indices of the domains with strong colour jitter in an iteration."""
        every = range(len(self.domains))
        _, meta_test = self.meta_split(iteration)
        chosen = {"meta-test": meta_test, "first-source": [0], "all": every, "none": []}
        return set(chosen[self.config.augmentation.strong])

    def _draw(self, iteration: int) -> Drawn:
        crops = [self._crop(key) for key in self._keys(iteration)]
        drawn = Drawn(
            torch.stack([crop.image for crop in crops]),
            torch.stack([crop.label for crop in crops]),
            tuple(crop.appearance for crop in crops),
            tuple(crop.sample for crop in crops),
            sum(crop.redrawn for crop in crops),
        )
        return drawn.finished() if self.finish else drawn

    def _keys(self, iteration: int) -> list[_Key]:
        strong, seed, batch = self.strong_domains(iteration), self.config.seed, self.config.batch
        keys = []
        for domain, pool in enumerate(self.domains):
            indices = draw_indices(seed, iteration, domain, len(pool.samples), batch)
            keys += [_Key(iteration, domain, s, indices[s], domain in strong) for s in self.slots]
        return keys

    def _crop(self, key: _Key) -> Crop:
        domain = self.domains[key.domain]
        sample = domain.samples[key.sample]
        for attempt in range(MAX_REDRAWS):
            random = (self.config.seed, *key[:3], attempt)
            rng = geometry_rng(*random)
            image, label = sample.read()
            place = draw_geometry(rng, (label.shape[0], label.shape[1]), self.config.augmentation)
            cut = place.cut_label(label)
            if (cut != IGNORE_INDEX).any():
                appearance = Appearance(appearance_seed(*random), key.strong)
                name = f"{domain.name}/{sample.id}"
                return Crop(place.cut_image(image), cut, appearance, name, attempt)
            sample = domain.samples[int(rng.integers(len(domain.samples)))]
        raise DataError(
            f"{MAX_REDRAWS} crops of {domain.name} in a row hold no labelled pixel; the last image "
            f"was {sample.image}.",
            "Choose a larger augmentation.crop, or look at 'pinmem data preview {sample.dataset}'.",
        )


def _shared(drawn: Drawn) -> Drawn:
    """Move the crops to shared memory and raise if it is full; torch would hang instead."""
    try:
        return drawn._replace(
            images=drawn.images.share_memory_(), labels=drawn.labels.share_memory_()
        )
    except RuntimeError as error:
        raise MachineError(
            f"the loading processes have no shared memory left ({error}).",
            "Use fewer 'workers', or give the container more of it ('docker run --shm-size=8g').",
        ) from None
