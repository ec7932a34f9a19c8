"""A picture of a batch, as the network gets it."""

from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pinmem_core.loading import Batch
from pinmem_core.loading.augmentation import IMAGENET_MEAN, IMAGENET_STD
from pinmem_core.painting import GAP, beside, caption, colorize, heading, legend, stacked


def batch_sheet(
    batch: Batch, names: Sequence[str], strong: Set[int], tile_width: int = 192
) -> NDArray[np.uint8]:
    """Return a picture with a row a domain: each image beside its label.

    Above a row stand the domain, its part in the meta step and its augmentation; the legend below
    tells the classes that occur.

    Args:
        batch: On any device.
        names: Of the D domains.
        strong: Domains whose images got the strong colour jitter.
        tile_width: Of each image and label, in pixels.
    """
    pictures, labels = _pictures(batch.images), batch.labels.cpu().numpy().astype(np.uint8)
    width = 2 * batch.images.shape[1] * (tile_width + GAP)
    rows = [caption(["image", "labels"] * batch.images.shape[1], tile_width)]
    for domain, name in enumerate(names):
        part = "meta-train" if domain in batch.meta_train else "meta-test"
        kind = "strong" if domain in strong else "standard"
        rows.append(heading(name, f"{part} · {kind} augmentation", width))
        pairs = zip(pictures[domain], map(colorize, labels[domain]), strict=True)
        rows.append(beside([picture for pair in pairs for picture in pair], tile_width))
    rows.append(legend(set(np.unique(labels).tolist()), width))
    return stacked(rows)


def _pictures(images: Tensor) -> NDArray[np.uint8]:
    """Return normalised images (D, B, 3, H, W) as they look, (D, B, H, W, 3)."""
    values = images.cpu().movedim(2, -1).numpy() * IMAGENET_STD + IMAGENET_MEAN
    return (values * 255).round().clip(0, 255).astype(np.uint8)
