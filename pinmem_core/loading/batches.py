"""The training batch of one iteration."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pinmem_core.errors import ConfigError


@dataclass(frozen=True)
class Batch:
    """B images of each of D domains.

    Attributes:
        images: Normalised images, (D, B, 3, H, W).
        labels: TrainIds in 0..18, (D, B, H, W); 255 is ignored.
        meta_train: Indices of the domains that the meta step writes to the memory.
        meta_test: Indices of the domains for which the meta step reads the memory.
        redrawn: Number of crops that were redrawn because they had no labelled pixel.
        samples: Names "domain/sample" of the images, by domain; empty if unknown.
    """

    images: Tensor
    labels: Tensor
    meta_train: tuple[int, ...]
    meta_test: tuple[int, ...]
    redrawn: int = 0
    samples: tuple[tuple[str, ...], ...] = ()

    def of(self, domains: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, H, W) and labels (N, H, W) of `domains`, concatenated."""
        # Indexing with a list would copy the index to the GPU and synchronize.
        images = torch.cat([self.images[domain] for domain in domains])
        return images, torch.cat([self.labels[domain] for domain in domains])

    def all(self) -> tuple[Tensor, Tensor]:
        """Return all images and labels in image-major order: b0d0, b0d1, ..., b1d0, ..."""
        return self.images.transpose(0, 1).flatten(0, 1), self.labels.transpose(0, 1).flatten(0, 1)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )

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
        return replace(
            self, images=self.images[:, slots], labels=self.labels[:, slots], samples=samples
        )
