"""Load the models of a server, and name them without the paths of this machine."""

from collections.abc import Sequence
from typing import Any

from pinmem_core.checkpoints.hub import checkpoint_of, model_name, onnx_file
from pinmem_core.errors import ConfigError
from pinmem_core.events import Listener, ignore
from pinmem_core.inference import TiledPredictor, load


def load_models(
    names: Sequence[str], *, on_event: Listener = ignore, **options: Any
) -> dict[str, TiledPredictor]:
    """Return predictors by the names that clients use: that of a run, a file, or `user/name`.

    Args:
        names: Names or paths as for `load`.
        on_event: Callback for notices.
        options: Options of `load`.

    Raises:
        ConfigError: Two models have the same name, or an option does not apply to ONNX files.
        DataError: A model does not exist, or its checkpoint is damaged.
        MachineError: The Hub cannot be reached, or the device is missing.
    """
    paths: dict[str, str] = {}
    for given in names:
        path = onnx_file(given) or checkpoint_of(given, on_event=on_event)
        name = path.name if path.is_file() else model_name(path)
        if name in paths:
            raise ConfigError(
                f"two models are called '{name}', and clients choose by name.",
                "Rename the folder of one, or leave it out.",
            )
        paths[name] = str(path)
    return {name: load(path, on_event=on_event, **options) for name, path in paths.items()}
