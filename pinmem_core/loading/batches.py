"""Batches of several domains, drawn by iteration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from pinmem_core.config import AugmentationConfig, TrainConfig
from pinmem_core.errors import DataError
from pinmem_core.labels import IGNORE_INDEX
from pinmem_core.loading.augmentation import training_transform
from pinmem_core.loading.domains import Domain, crop_seed, draw_indices, draw_meta_split
from pinmem_core.preparation import Sample

MAX_REDRAWS = 50
"""Crops without a labelled pixel that are drawn again before a domain is called unusable."""


@dataclass(frozen=True)
class Batch:
    """What one iteration learns from: B images of each of D domains.

    Attributes:
        images: (D, B, 3, H, W), normalised.
        labels: (D, B, H, W) trainIds in 0..18, 255 = ignore.
        meta_train: Domains that the meta step writes the memory from.
        meta_test: Domains that it reads the memory in.
        redrawn: Crops that held no labelled pixel and were drawn again.
    """

    images: Tensor
    labels: Tensor
    meta_train: tuple[int, ...]
    meta_test: tuple[int, ...]
    redrawn: int = 0

    def of(self, domains: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, H, W) and labels (N, H, W) of `domains`, one after the other."""
        chosen = list(domains)
        return self.images[chosen].flatten(0, 1), self.labels[chosen].flatten(0, 1)

    def all(self) -> tuple[Tensor, Tensor]:
        """Return all images and labels, image-major: b0d0, b0d1, ..., b1d0, ..."""
        return self.images.transpose(0, 1).flatten(0, 1), self.labels.transpose(0, 1).flatten(0, 1)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.meta_train,
            self.meta_test,
            self.redrawn,
        )


class _Key(NamedTuple):
    iteration: int
    domain: int
    slot: int
    sample: int
    strong: bool


class _Crop(NamedTuple):
    image: Tensor
    label: Tensor
    redrawn: int


class _Crops(Dataset[_Crop | DataError]):
    """Augmented crops by key; the key alone determines the result."""

    def __init__(self, domains: Sequence[Domain], config: AugmentationConfig, seed: int) -> None:
        self.domains = domains
        self.seed = seed
        self.transforms = {s: training_transform(config, strong=s) for s in (False, True)}

    def __getitem__(self, key: _Key) -> _Crop | DataError:
        try:
            return self._draw(key)
        except DataError as error:
            return error  # raised in a worker, it would arrive as the text of a traceback

    def _draw(self, key: _Key) -> _Crop:
        samples = self.domains[key.domain].samples
        sample = samples[key.sample]
        for attempt in range(MAX_REDRAWS):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(crop_seed(self.seed, *key[:3], attempt))
                image, label = self.transforms[key.strong](*_read(sample))
                if (label != IGNORE_INDEX).any():
                    return _Crop(image, label.long(), attempt)
                sample = samples[int(torch.randint(len(samples), ()))]
        raise DataError(
            f"{MAX_REDRAWS} crops of {self.domains[key.domain].name} in a row hold no labelled "
            f"pixel; the last image was {sample.image}.",
            "Choose a larger augmentation.crop, or look at 'pinmem data preview'.",
        )


def _raise_if_error(crop: _Crop | DataError) -> _Crop:
    if isinstance(crop, DataError):
        raise crop
    return crop


def _read(sample: Sample) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    image, label = (torch.from_numpy(pixels.copy()) for pixels in sample.read())
    return tv_tensors.Image(image.permute(2, 0, 1)), tv_tensors.Mask(label)


class DomainLoader:
    """Iterates over the batches of a run.

    Args:
        domains: D source domains.
        batch: B images of each domain.
        iterations: Which iterations to draw, counted from 0.
        config: Augmentation; `strong` decides which domains get the strong variant.
        seed: With the iteration, determines every batch.
        workers: Processes that load ahead; 0 loads in this one.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        batch: int,
        iterations: range,
        config: AugmentationConfig,
        seed: int,
        workers: int = 0,
    ) -> None:
        self.domains = domains
        self.batch = batch
        self.iterations = iterations
        self.config = config
        self.seed = seed
        self.workers = workers

    @classmethod
    def of(cls, domains: Sequence[Domain], config: TrainConfig, iterations: range) -> Self:
        """Return the loader of a run's `iterations`."""
        return cls(
            domains,
            batch=config.batch,
            iterations=iterations,
            config=config.augmentation,
            seed=config.seed,
            workers=config.workers,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield one batch an iteration."""
        loader = DataLoader(
            _Crops(self.domains, self.config, self.seed),
            batch_sampler=(self._keys(iteration) for iteration in self.iterations),
            num_workers=self.workers,
            collate_fn=list,
            pin_memory=torch.cuda.is_available(),
        )
        shape = (len(self.domains), self.batch)
        for iteration, drawn in zip(self.iterations, loader, strict=True):
            crops = [_raise_if_error(crop) for crop in drawn]
            meta_train, meta_test = draw_meta_split(self.seed, iteration, len(self.domains))
            yield Batch(
                torch.stack([crop.image for crop in crops]).unflatten(0, shape),
                torch.stack([crop.label for crop in crops]).unflatten(0, shape),
                tuple(meta_train),
                tuple(meta_test),
                sum(crop.redrawn for crop in crops),
            )

    def _keys(self, iteration: int) -> list[_Key]:
        strong = self._strong_domains(iteration)
        return [
            _Key(iteration, domain, slot, sample, domain in strong)
            for domain, pool in enumerate(self.domains)
            for slot, sample in enumerate(
                draw_indices(self.seed, iteration, domain, len(pool.samples), self.batch)
            )
        ]

    def _strong_domains(self, iteration: int) -> set[int]:
        every = range(len(self.domains))
        _, meta_test = draw_meta_split(self.seed, iteration, len(every))
        chosen = {"meta-test": meta_test, "first-source": [0], "all": every, "none": []}
        return set(chosen[self.config.strong])
