"""The crops of an iteration, as a loading process draws them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from pinmem_core.config import TrainConfig
from pinmem_core.errors import DataError, MachineError, PinMemError
from pinmem_core.labels import IGNORE_INDEX
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
"""Crops without a labelled pixel that are drawn again before a domain is called unusable."""


class Crop(NamedTuple):
    """One training crop, before its colours change.

    Attributes:
        image: (3, H, W) uint8.
        label: (H, W) uint8.
        appearance: How it is to look.
        sample: "domain/sample" that it was cut from.
        redrawn: Crops before it that held no labelled pixel.
    """

    image: Tensor
    label: Tensor
    appearance: Appearance
    sample: str
    redrawn: int


class Drawn(NamedTuple):
    """The N crops of an iteration, domain by domain.

    Attributes:
        images: (N, 3, H, W), uint8 until they are finished, then normalised float32.
        labels: (N, H, W) uint8.
        appearances: How each is to look; empty once they are finished.
        samples: "domain/sample" of each.
        redrawn: Crops that held no labelled pixel and were drawn again.
    """

    images: Tensor
    labels: Tensor
    appearances: tuple[Appearance, ...]
    samples: tuple[str, ...]
    redrawn: int

    def finished(self) -> "Drawn":
        """Return the crops as the network gets them, on the device where they are."""
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
    """The crops of every iteration; (seed, iteration) alone determine them.

    Args:
        domains: D source domains.
        config: Of the run: seed, augmentation, images of each domain.
        slots: Which of each domain's images to draw; the others are another process's.
        finish: Finish the crops, too; otherwise that is left to whoever gets them.
    """

    def __init__(
        self, domains: Sequence[Domain], config: TrainConfig, slots: range, *, finish: bool
    ) -> None:
        self.domains = domains
        self.config = config
        self.slots = slots
        self.finish = finish

    def __getitem__(self, iteration: int) -> Drawn | PinMemError:
        """Return an iteration's crops, or why there are none.

        An error is returned, since raised in a worker it would arrive as the text of a traceback.
        """
        try:
            drawn = self._draw(iteration)
            return _shared(drawn) if get_worker_info() else drawn
        except PinMemError as error:
            return error

    def meta_split(self, iteration: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the meta-train and meta-test domains of an iteration."""
        split = draw_meta_split(self.config.seed, iteration, len(self.domains))
        return tuple(split[0]), tuple(split[1])

    def strong_domains(self, iteration: int) -> set[int]:
        """Return the domains whose images get the strong colour jitter in an iteration."""
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
    """Return the crops in shared memory; left to torch, a lack of it ends in an endless wait."""
    try:
        return drawn._replace(
            images=drawn.images.share_memory_(), labels=drawn.labels.share_memory_()
        )
    except RuntimeError as error:
        raise MachineError(
            f"the loading processes have no shared memory left ({error}).",
            "Use fewer 'workers', or give the container more of it ('docker run --shm-size=8g').",
        ) from None
