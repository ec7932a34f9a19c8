"""A dataset of flat patches, two domains: one file makes it known."""

from pathlib import Path

import numpy as np

from pinmem_core.data.card import DatasetCard, Layout
from pinmem_core.images import write_png


def _generate(folder: Path, on_progress) -> None:
    for domain, tint in (("red", (35, 0, 0)), ("blue", (0, 0, 35))):
        for number in range(10):
            rng = np.random.default_rng([len(domain), number])
            label = rng.integers(0, 19, (4, 6)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
            noise = rng.integers(0, 20, (*label.shape, 3))
            image = (label[..., None] * 11 + noise + tint).clip(0, 255).astype(np.uint8)
            write_png(folder / "images" / f"{domain}_{number:02}.png", image)
            write_png(folder / "labels" / f"{domain}_{number:02}.png", label)
            on_progress(number + 1, 10)


CARD = DatasetCard(
    name="toy",
    title="Toy patches (96x64)",
    version=1,
    homepage="",
    citation="",
    terms="",
    layouts=(
        Layout(
            name="drawn",
            image="images/{domain}_{number}.png",
            label="labels/{domain}_{number}.png",
            label_maps=("trainids",),
            id="{domain}_{number}",
            domain="{domain}",
        ),
    ),
    domains={"red": "reddish", "blue": "bluish"},
    recipe="demo",
    generate=_generate,
)
