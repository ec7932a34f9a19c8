"""A segmenter on disk: a folder with `model.safetensors` and `config.json`.

The folder is written under another name and renamed, so a checkpoint exists whole or not at all.
Loading is strict: a missing, extra or reshaped tensor is an error, and so the memory is always
inside.
"""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError

from pinmem_core.config import ModelConfig
from pinmem_core.errors import CheckpointError
from pinmem_core.files import staged_folder
from pinmem_core.model.segmenter import Segmenter
from pinmem_core.version import __version__

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save_checkpoint(segmenter: Segmenter, folder: Path, about: dict[str, Any]) -> None:
    """Write `segmenter` to `folder`, replacing a checkpoint that is there.

    Args:
        segmenter: Its memory is a buffer and so part of the weights.
        folder: Becomes the checkpoint.
        about: What else to keep in `config.json`, e.g. how it was trained.

    Raises:
        MachineError: The folder cannot be written to.
    """
    config = {
        "format_version": FORMAT_VERSION,
        "pinmem_version": __version__,
        "model": segmenter.config.model_dump(mode="json"),
        **about,
    }
    state = {k: v.detach().cpu().contiguous() for k, v in segmenter.state_dict().items()}
    with staged_folder(folder) as staging:
        safetensors.torch.save_file(state, staging / WEIGHTS, {"format": "pt"})
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_checkpoint(folder: Path) -> tuple[Segmenter, dict[str, Any]]:
    """Return the segmenter in `folder`, in evaluation mode on the CPU, and its `config.json`.

    Raises:
        CheckpointError: The folder holds no checkpoint, or one that is damaged, of another format
            version, or whose tensors are not those of its architecture.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = safetensors.torch.load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is no checkpoint: {Path(error.filename or WEIGHTS).name} is missing."
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {error}.") from error
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the checkpoint {folder} has format version {config.get('format_version')}; this "
            f"pinmem ({__version__}) reads version {FORMAT_VERSION}."
        )
    try:
        segmenter = Segmenter(ModelConfig.model_validate(config["model"]))
        segmenter.load_state_dict(state)
    except (KeyError, ValidationError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"the checkpoint {folder} does not fit its config: {reason}"
        ) from None
    return segmenter.eval(), config
