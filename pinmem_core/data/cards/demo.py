"""The embedded dataset: synthetic street scenes in several domains."""

from collections.abc import Callable
from pathlib import Path

from pinmem_core.data.card import DatasetCard, Layout
from pinmem_core.images import write_png
from pinmem_core.synthetic import DOMAINS, draw_scene

IMAGES_PER_DOMAIN = {"train": 80, "val": 20}


def _draw(folder: Path, on_progress: Callable[[int, int], None]) -> None:
    """Draw every domain's images and labels below `folder`."""
    jobs = [
        (domain, split, index)
        for domain in DOMAINS
        for index, split in enumerate(s for s, n in IMAGES_PER_DOMAIN.items() for _ in range(n))
    ]
    for done, (domain, split, index) in enumerate(jobs, start=1):
        scene = draw_scene(domain, index)
        write_png(folder / "images" / split / f"{domain}_{index:04}.png", scene.image)
        write_png(folder / "labels" / split / f"{domain}_{index:04}.png", scene.label)
        on_progress(done, len(jobs))


CARD = DatasetCard(
    name="demo",
    title="pinmem demo streets (drawn, 256x128)",
    version=1,
    homepage="https://arxiv.org/abs/2204.03609",
    citation="drawn by pinmem; nothing to cite",
    terms="Apache-2.0, as pinmem itself.",
    layouts=(
        Layout(
            name="drawn",
            image="images/{split}/{domain}_{number}.png",
            label="labels/{split}/{domain}_{number}.png",
            label_maps=("trainids",),
            id="{domain}_{number}",
            domain="{domain}",
            split="{split}",
        ),
    ),
    domains={name: style.title for name, style in DOMAINS.items()},
    recipe="demo",
    draw=_draw,
)
