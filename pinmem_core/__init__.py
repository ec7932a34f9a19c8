"""pinmem: domain-generalized semantic segmentation with a categorical memory.

    import pinmem_core
    mask = pinmem_core.load("path/to/run").predict("street.jpg")   # (H, W) trainIds

The floors, each importing only those before it: `datasets` (what a dataset is), `preparation`
(unified labels on disk), `loading` (batches), `model`, `inference`, `evaluation`, `learning`,
`publishing` (the Hub, files for other runtimes).
"""

from typing import Any

from pinmem_core.version import __version__

__all__ = ["__version__", "load", "prepare", "train"]


def __getattr__(name: str) -> Any:
    """Import the entry points when they are first used, so that importing pinmem is quick."""
    if name == "load":
        from pinmem_core.inference import load

        return load
    if name == "prepare":
        from pinmem_core.preparation import prepare

        return prepare
    if name == "train":
        from pinmem_core.learning import train

        return train
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
