"""pinmem: domain-generalized semantic segmentation with a categorical memory.

    import pinmem_core as pm

    pm.prepare("camvid", source="CamVid")
    run = pm.train("demo", seed=1)
    report = pm.evaluate(run.run, targets=["demo:dusk"])
    mask = pm.load("starter").predict("street.jpg")  # (H, W) trainIds

The layers, each of which imports only those before it: `data` (cards, prepared datasets, batches),
`models`, `inference`, `evaluation`, `methods`, `training`, `study`, `export` (the Hub, files for
other runtimes).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pinmem_core.version import __version__

if TYPE_CHECKING:
    from pinmem_core.api import (
        evaluate,
        list_backbones,
        list_datasets,
        list_decoders,
        list_methods,
        list_models,
        list_recipes,
        prepare,
        resume,
        train,
    )
    from pinmem_core.config import TrainConfig
    from pinmem_core.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        MachineError,
        PinMemError,
        StoppedRunError,
    )
    from pinmem_core.inference import Predictor, load
    from pinmem_core.models import Segmenter

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "MachineError",
    "PinMemError",
    "Predictor",
    "Segmenter",
    "StoppedRunError",
    "TrainConfig",
    "__version__",
    "evaluate",
    "list_backbones",
    "list_datasets",
    "list_decoders",
    "list_methods",
    "list_models",
    "list_recipes",
    "load",
    "prepare",
    "resume",
    "train",
]

_ELSEWHERE = {
    "Predictor": "inference",
    "Segmenter": "models",
    "TrainConfig": "config",
    "load": "inference",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package takes no torch."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = _ELSEWHERE.get(name, "errors" if name.endswith("Error") else "api")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
