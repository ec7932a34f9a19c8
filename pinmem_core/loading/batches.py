"""What one iteration learns from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pinmem_core.errors import ConfigError


@dataclass(frozen=True)
class Batch:
    """B images of each of D domains.

    Attributes:
        images: (D, B, 3, H, W), normalised.
        labels: (D, B, H, W) trainIds in 0..18, 255 = ignore.
        meta_train: Domains that the meta step writes the memory from.
        meta_test: Domains that it reads the memory in.
        redrawn: Crops that held no labelled pixel and were drawn again.
        samples: "domain/sample" of every image, by domain; empty where nobody knows.
    """

    images: Tensor
    labels: Tensor
    meta_train: tuple[int, ...]
    meta_test: tuple[int, ...]
    redrawn: int = 0
    samples: tuple[tuple[str, ...], ...] = ()

    def of(self, domains: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, H, W) and labels (N, H, W) of `domains`, one after the other."""
        # Concatenated: an index would be copied to the GPU, for which the host waits.
        images = torch.cat([self.images[domain] for domain in domains])
        return images, torch.cat([self.labels[domain] for domain in domains])

    def all(self) -> tuple[Tensor, Tensor]:
        """Return all images and labels, image-major: b0d0, b0d1, ..., b1d0, ..."""
        return self.images.transpose(0, 1).flatten(0, 1), self.labels.transpose(0, 1).flatten(0, 1)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )

    def parts(self, count: int) -> "list[Batch]":
        """Split each domain's images into `count` consecutive parts of the same size.

        `redrawn` stays that of the whole batch.

        Raises:
            ConfigError: B is no multiple of `count`.
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
