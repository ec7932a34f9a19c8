"""Training batches: domains, sampling and crops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from pinmem_core.config import TrainConfig
from pinmem_core.data.prepared import Selection, select
from pinmem_core.data.rare_classes import CROPS, LEAST, ClassSampler, class_pixels
from pinmem_core.data.samples import Sample, Samples
from pinmem_core.data.transforms import (
    IMAGENET,
    Appearance,
    Normalization,
    augment_photometric,
    draw_geometry,
)
from pinmem_core.errors import ConfigError, DataError, MachineError, PinMemError, shell_join
from pinmem_core.label_space import IGNORE_INDEX, LabelSpace, common_space


@dataclass(frozen=True)
class Batch:
    """B images of each of D domains.

    Attributes:
        images: Normalised images, (D, B, 3, H, W).
        labels: TrainIds, (D, B, H, W); 255 is ignored.
        meta_train: Indices of the domains that the meta step writes to the memory.
        meta_test: Indices of the domains for which the meta step reads the memory.
        redrawn: Number of crops that were redrawn because they had no labelled pixel.
        samples: Names "domain/sample" of the images, by domain; empty if unknown.
        more_views: Further views of the images, each (D, B, 3, H, W): the same crops with another
            photometric augmentation, a strong one. A method asks for them with `Method.views`.
    """

    images: Tensor
    labels: Tensor
    meta_train: tuple[int, ...]
    meta_test: tuple[int, ...]
    redrawn: int = 0
    samples: tuple[tuple[str, ...], ...] = ()
    more_views: tuple[Tensor, ...] = ()

    def view(self, number: int) -> "Batch":
        """Return the batch with another view of the same crops as its images; 0 is the first."""
        images = (self.images, *self.more_views)[number]
        return replace(self, images=images, more_views=())

    def of(self, domains: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, H, W) and labels (N, H, W) of `domains`, concatenated."""
        # Indexing with a list would copy the index to the GPU and synchronize.
        images = torch.cat([self.images[domain] for domain in domains])
        return images, torch.cat([self.labels[domain] for domain in domains])

    def all(self) -> tuple[Tensor, Tensor]:
        """Return all images and labels in image-major order: b0d0, b0d1, ..., b1d0, ..."""
        return self.images.transpose(0, 1).flatten(0, 1), self.labels.transpose(0, 1).flatten(0, 1)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with `change` applied to images, labels and further views."""
        views = tuple(map(change, self.more_views))
        return replace(
            self, images=change(self.images), labels=change(self.labels), more_views=views
        )

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def parts(self, count: int) -> "list[Batch]":
        """Split each domain's images into `count` consecutive parts of equal size.

        Each part keeps `redrawn` of the whole batch.

        Raises:
            ConfigError: B is not a multiple of `count`.
        """
        images = self.images.shape[1]
        if images % count:
            divisors = [str(n) for n in range(1, images + 1) if images % n == 0]
            raise ConfigError(
                f"{images} images of a domain cannot be split into {count} equal parts.",
                f"Set compute.accumulate to one of {', '.join(divisors)}, or change the batch.",
            )
        size = images // count
        return [self._slots(slice(first, first + size)) for first in range(0, images, size)]

    def _slots(self, slots: slice) -> "Batch":
        samples = tuple(names[slots] for names in self.samples)
        return replace(self.map(lambda tensor: tensor[:, slots]), samples=samples)


# Independent random streams of one seed.
_SAMPLING, _META_SPLIT, _PSEUDO_DOMAINS, _GEOMETRY, _STEPS, _APPEARANCE, _VIEWS = range(1, 8)


@dataclass(frozen=True)
class Domain:
    """A named set of samples that the meta step treats as one domain."""

    name: str
    samples: Sequence[Sample]


def load_domains(
    sources: Sequence[str], *, pseudo_domains: int, seed: int, space: LabelSpace | None = None
) -> list[Domain]:
    """Return the training samples of each source as a domain.

    A single source is split at random into pseudo-domains of equal size, as the paper does for
    meta-learning from GTAV alone. All methods get the same pseudo-domains, so that comparisons are
    fair.

    Args:
        sources: Sources as `dataset[:domain][@split]`.
        pseudo_domains: Number of pseudo-domains of a single source.
        seed: Random seed of the split.
        space: Label space of the labels; None for the one that the sources have in common.

    Raises:
        ConfigError: A source does not exist, or its label space cannot be mapped to `space`.
        DataError: A source is not prepared or holds too few training samples.
    """
    selections = [Selection.parse(source) for source in sources]
    chosen = [select(selection, default_split="train") for selection in selections]
    space = space or common_space([samples.label_space for samples in chosen])
    pools = [_mapped(s, samples, space) for s, samples in zip(selections, chosen, strict=True)]
    if len(pools) > 1:
        return [Domain(str(s), pool) for s, pool in zip(selections, pools, strict=True)]
    (name,), (whole,) = map(str, selections), pools
    if len(whole) < pseudo_domains:
        raise DataError(
            f"{name} holds {len(whole)} training samples, too few to be split into "
            f"{pseudo_domains} pseudo-domains.",
            "Name a second source, or a larger one.",
        )
    order = np.random.default_rng([seed, _PSEUDO_DOMAINS]).permutation(len(whole))
    parts = np.array_split(order, pseudo_domains)
    return [
        Domain(f"{name}#{number}", whole.take(part)) for number, part in enumerate(parts, start=1)
    ]


def _mapped(selection: Selection, samples: Samples, space: LabelSpace) -> Samples:
    try:
        return samples.in_space(space)
    except ConfigError as error:
        raise ConfigError(f"{selection}: {error.message}", error.hint) from None


def draw_indices(seed: int, iteration: int, domain: int, population: int, count: int) -> list[int]:
    """Draw `count` sample indices of a domain uniformly with replacement."""
    rng = np.random.default_rng([seed, _SAMPLING, iteration, domain])
    return [int(index) for index in rng.integers(population, size=count)]


def draw_views(seed: int, iteration: int, domain: int, views: int, count: int) -> list[int]:
    """Draw the fixed views of `count` images of a domain uniformly."""
    rng = np.random.default_rng([seed, _VIEWS, iteration, domain])
    return [int(view) for view in rng.integers(views, size=count)]


def draw_by_class(
    seed: int, iteration: int, domain: int, sampler: ClassSampler, count: int
) -> list[tuple[int, int]]:
    """Draw `count` sample indices of a domain by class, each with its class."""
    return sampler.draw(np.random.default_rng([seed, _SAMPLING, iteration, domain]), count)


def draw_meta_split(seed: int, iteration: int, domains: int) -> tuple[list[int], list[int]]:
    """Draw the meta-train and meta-test domains of an iteration.

    The domains are permuted, and i is uniform in {1..domains-1}: the first i domains are
    meta-train, the others meta-test (docs/method.md, section 4).
    """
    rng = np.random.default_rng([seed, _META_SPLIT, iteration])
    order = [int(domain) for domain in rng.permutation(domains)]
    first = int(rng.integers(1, domains)) if domains > 1 else domains
    return order[:first], order[first:]


def geometry_rng(
    seed: int, iteration: int, domain: int, slot: int, attempt: int
) -> np.random.Generator:
    """Return the random generator for scale, position and flip of one crop."""
    return np.random.default_rng([seed, _GEOMETRY, iteration, domain, slot, attempt])


def appearance_seed(
    seed: int, iteration: int, domain: int, slot: int, attempt: int, view: int = 0
) -> int:
    """Return the seed for colour jitter and blur of one view of a crop."""
    further = (view,) if view else ()  # the first view has the seed that it has without others
    return _derive(seed, _APPEARANCE, iteration, domain, slot, attempt, *further)


def step_seed(seed: int, iteration: int, rank: int = 0) -> int:
    """Return the seed of a rank in an iteration, for dropout and the Gumbel read."""
    return _derive(seed, _STEPS, iteration, rank)


def _derive(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


MAX_REDRAWS = 50
"""Maximum number of crops in a row without a labelled pixel before a domain is unusable."""


class Crop(NamedTuple):
    """One training crop before photometric augmentation.

    Attributes:
        image: RGB image, (3, H, W) uint8.
        label: TrainIds, (H, W) uint8.
        appearances: Parameters of the photometric augmentation, one for each view.
        sample: Name "domain/sample" of the source image.
        redrawn: Number of crops before it that had no labelled pixel.
    """

    image: Tensor
    label: Tensor
    appearances: tuple[Appearance, ...]
    sample: str
    redrawn: int


class CropBatch(NamedTuple):
    """The N crops of an iteration, ordered by domain.

    Attributes:
        images: Images, (N, 3, H, W); uint8 before photometric augmentation, normalised float32
            after.
        labels: TrainIds, (N, H, W) uint8.
        appearances: Augmentation parameters of each crop, by view; empty after the augmentation.
        samples: Names "domain/sample" of the crops.
        redrawn: Number of crops that were redrawn because they had no labelled pixel.
        more_views: Further views after the augmentation, each (N, 3, H, W).
    """

    images: Tensor
    labels: Tensor
    appearances: tuple[tuple[Appearance, ...], ...]
    samples: tuple[str, ...]
    redrawn: int
    more_views: tuple[Tensor, ...] = ()

    def augmented(self, normalization: Normalization) -> "CropBatch":
        """Return the crops after photometric augmentation, computed on their device."""
        if not self.appearances:
            return self
        images, *more = (
            augment_photometric(self.images, each, normalization) for each in self.appearances
        )
        return self._replace(images=images, appearances=(), more_views=tuple(more))


class CropDataset(Dataset[CropBatch | PinMemError]):
    """Map-style dataset from iteration to crops, a pure function of (seed, iteration).

    Args:
        domains: Source domains, D of them.
        config: Configuration of the run: seed, augmentation, images per domain.
        slots: Range of each domain's images to load; other processes load the others.
        augment: Whether to apply the photometric augmentation; otherwise the consumer applies it.
        normalization: Mean and standard deviation that the network expects.
        views: Number of views of each crop.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        config: TrainConfig,
        slots: range,
        *,
        augment: bool,
        normalization: Normalization = IMAGENET,
        views: int = 1,
    ) -> None:
        self.domains = domains
        self.config = config
        self.slots = slots
        self.augment = augment
        self.normalization = normalization
        self.views = views
        temperature = config.augmentation.rare_classes
        self.samplers = [
            ClassSampler.of(class_pixels(domain.samples), temperature)
            for domain in domains
            if temperature
        ]

    def __getitem__(self, iteration: int) -> CropBatch | PinMemError:
        """Return the crops of an iteration, or the error that prevents loading them.

        The error is returned, because a DataLoader worker reduces a raised error to traceback text.
        """
        try:
            drawn = self.draw(iteration)
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

    def draw(self, iteration: int) -> CropBatch:
        """Return the crops of an iteration.

        Raises:
            DataError: A file cannot be read, or a domain holds no labelled pixels.
        """
        if self.config.augmentation.views:
            return self.batch([self.fixed_view(*key) for key in self.fixed_views(iteration)])
        strong = self.strong_domains(iteration)
        crops = []
        for number, domain in enumerate(self.domains):
            drawn = self._drawn(iteration, number, len(domain.samples))
            crops += [
                self._crop((iteration, number, slot), *drawn[slot], strong=number in strong)
                for slot in self.slots
            ]
        return self.batch(crops)

    def fixed_views(self, iteration: int) -> list[tuple[int, int, int]]:
        """Return (view, domain, image) of each crop of an iteration with `augmentation.views`."""
        seed, count, views = self.config.seed, self.config.batch, self.config.augmentation.views
        keys = []
        for number, domain in enumerate(self.domains):
            drawn = self._drawn(iteration, number, len(domain.samples))
            chosen = draw_views(seed, iteration, number, views or 1, count)
            keys += [(chosen[slot], number, drawn[slot][0]) for slot in self.slots]
        return keys

    def fixed_view(self, view: int, domain: int, index: int) -> Crop:
        """Return a view of an image, a pure function of the seed and the arguments."""
        strong = domain in self.strong_domains(0)
        return self._crop((view, domain, index), index, None, strong=strong)

    def batch(self, crops: Sequence[Crop]) -> CropBatch:
        """Return crops as a batch."""
        batch = CropBatch(
            torch.stack([crop.image for crop in crops]),
            torch.stack([crop.label for crop in crops]),
            tuple(zip(*(crop.appearances for crop in crops), strict=True)),
            tuple(crop.sample for crop in crops),
            sum(crop.redrawn for crop in crops),
        )
        return batch.augmented(self.normalization) if self.augment else batch

    def _drawn(self, iteration: int, domain: int, population: int) -> list[tuple[int, int | None]]:
        """Draw a sample for each slot of a domain, with the class that its crop should show."""
        seed, count = self.config.seed, self.config.batch
        if self.samplers:
            return [*draw_by_class(seed, iteration, domain, self.samplers[domain], count)]
        indices = draw_indices(seed, iteration, domain, population, count)
        return [(index, None) for index in indices]

    def _crop(
        self, key: tuple[int, int, int], index: int, wanted: int | None, *, strong: bool
    ) -> Crop:
        """Return the crop of (iteration, domain, slot), if possible with the class `wanted`."""
        domain = self.domains[key[1]]
        sample = domain.samples[index]
        unlabelled = 0
        for attempt in range(MAX_REDRAWS):
            random = (self.config.seed, *key, attempt)
            rng = geometry_rng(*random)
            image, label = sample.read()
            place = draw_geometry(rng, (label.shape[0], label.shape[1]), self.config.augmentation)
            cut = place.cut_label(label)
            if (
                wanted is not None
                and attempt < CROPS - 1
                and (cut == wanted).float().mean() < LEAST
            ):
                continue
            if (cut != IGNORE_INDEX).any():
                distort = self.config.augmentation.jitter == "distort"
                appearances = tuple(
                    Appearance(appearance_seed(*random, view), strong or view > 0, distort)
                    for view in range(self.views)
                )
                name = f"{domain.name}/{sample.id}"
                return Crop(place.cut_image(image), cut, appearances, name, unlabelled)
            unlabelled += 1
            sample = domain.samples[int(rng.integers(len(domain.samples)))]
        reading = sample.reading
        what = f"pixel of the classes '{reading.space.name}'" if reading.table else "labelled pixel"
        raise DataError(
            f"{MAX_REDRAWS} crops of {domain.name} in a row hold no {what}; the last image was "
            f"{sample.image}.",
            reading.how_to_assign
            or "Choose a larger augmentation.crop, or look at the images: "
            f"pinmem data preview {shell_join(domain.name.partition('#')[0])}",
        )


def _shared(drawn: CropBatch) -> CropBatch:
    """Move the crops to shared memory; raise if it is full, where torch would hang."""
    try:
        for tensor in (drawn.images, drawn.labels, *drawn.more_views):
            tensor.share_memory_()
        return drawn
    except RuntimeError as error:
        raise MachineError(
            f"the loading processes have no shared memory left ({error}).",
            "Use fewer 'workers', or give the container more of it ('docker run --shm-size=8g').",
        ) from None
