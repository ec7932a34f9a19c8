"""The checkpoint format: a folder with `model.safetensors`, `config.json` and the card `README.md`.

The folder is written under a temporary name and renamed, so a checkpoint is never incomplete.
Loading is strict: a tensor that is missing, unknown, not finite or of another shape is an error.
This includes the slots of the memory. `config.json` holds the SHA-256 of the weights file and of
its own section `model`, so a flipped bit or an edited setting is also an error. Older checkpoints
have no `sha256` and skip this check. With `checkpoint.adapter_only`, the tensors that equal those
of the base weights are not in the file: the section `base` names them (`base_weights`).
"""

import hashlib
import json
import shutil
import stat
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import safetensors.torch
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from torch import Tensor, nn

from pinmem_core.checkpoints.base_weights import Base, BaseRecord, Kind
from pinmem_core.checkpoints.config_file import (
    CONFIG,
    DIGESTS,
    FETCH_AGAIN,
    absent,
    architecture_of,
    current_config,
    described_fields,
    read_config,
    read_written_config,
    require_described,
    unfit,
)
from pinmem_core.checkpoints.hub import checkpoint_of
from pinmem_core.checkpoints.model_card import (
    BASE,
    CARD,
    STORED,
    ModelMetrics,
    is_ours,
    model_card,
)
from pinmem_core.config import ModelConfig
from pinmem_core.data.transforms import Normalization
from pinmem_core.devices import memory_for, ran_out_of_memory
from pinmem_core.documents import json_bytes
from pinmem_core.errors import CheckpointError, ConfigError
from pinmem_core.files import sha256_of, staged_folder, write_atomic
from pinmem_core.renamed import current_tensors

WEIGHTS = "model.safetensors"


class CheckpointModule(nn.Module, PyTorchModelHubMixin, library_name="pinmem"):
    """A network that a checkpoint holds; its constructor takes the `ModelConfig` alone.

    The mixin of `huggingface_hub` accepts weights that do not fit, supports only dataclasses as
    configuration, and has no format version. Here the functions below read and write the folders.

    Attributes:
        config: Architecture of the network.
        about: Further content of the checkpoint's `config.json`, e.g. the training settings.
    """

    config: ModelConfig
    about: dict[str, Any]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.about = {}

    @property
    @abstractmethod
    def normalization(self) -> Normalization:
        """Mean and standard deviation of the images that the network expects."""

    @classmethod
    @abstractmethod
    def base_tensors(cls, config: ModelConfig, kind: Kind, source: str) -> dict[str, Tensor]:
        """Return the tensors that base weights hold for a network, by their names in it.

        Tensors that are resampled for the network are left out: their last bits depend on the
        machine.

        Args:
            config: Architecture of the network.
            kind: Kind of the base.
            source: Name or path of the base.

        Raises:
            ConfigError: The weights do not exist.
            DataError: The weights are damaged, or the model does not exist or is damaged.
            MachineError: They cannot be downloaded.
        """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a checkpoint strictly; return its network in evaluation mode on the CPU.

        Args:
            pretrained_model_name_or_path: `user/name[@revision]` on the Hub, folder or name of a
                run, or folder of a checkpoint.
            options: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` of
                `huggingface_hub`. A revision in the name takes precedence.

        Raises:
            DataError: The model does not exist or is damaged.
            MachineError: The Hub cannot be reached.
        """
        folder = checkpoint_of(str(pretrained_model_name_or_path), **options)
        return load_checkpoint(folder, cls)[0]

    def _save_pretrained(self, save_directory: Path) -> None:
        write_checkpoint(self, save_directory, self.about)


N = TypeVar("N", bound=CheckpointModule)


def save_checkpoint(
    segmenter: CheckpointModule, folder: Path, about: dict[str, Any], *, base: Base | None = None
) -> None:
    """Write `segmenter` to `folder`, and replace an existing checkpoint.

    Args:
        segmenter: Network to write, including the slots of its memory.
        folder: Folder of the checkpoint.
        about: Further content of `config.json`, e.g. the training settings.
        base: Base weights, whose tensors are named instead of written; None writes all.

    Raises:
        MachineError: The folder cannot be written to.
    """
    with staged_folder(folder) as staging:
        write_checkpoint(segmenter, staging, about, base=base)


def write_checkpoint(
    segmenter: CheckpointModule,
    folder: Path,
    about: dict[str, Any],
    *,
    half: bool = False,
    metrics: ModelMetrics | None = None,
    base: Base | None = None,
    card: bytes | None = None,
) -> None:
    """Write the files of a checkpoint into an existing folder.

    Other files, and a card that the user wrote, stay unchanged.

    Args:
        segmenter: Network to write, including the slots of its memory.
        folder: Folder of the checkpoint.
        about: Further content of `config.json`, e.g. the training settings.
        half: Whether to store the weights of convolutions and linear maps in half precision.
            Loading converts them to float32. The memory, biases and statistics stay in float32.
        metrics: Metrics of the checkpoint for its card; None where they are not known.
        base: Base weights, whose tensors are named instead of written; None writes all.
        card: Content of the card; None for a new one.

    Raises:
        ConfigError: Some weights are too large for half precision.
        MachineError: The folder cannot be written to.
    """
    ours = described_fields(segmenter.config, segmenter.normalization)
    config = ours | {k: v for k, v in about.items() if k not in (DIGESTS, STORED)} | ours
    state = separate_tensors(segmenter.state_dict())
    if base:
        state, record = base.split(state)
        config[BASE] = record.model_dump(mode="json")
    if half:
        config[STORED] = "float16; loaded and scored in float32"
        heavy = {name for name, weight in segmenter.named_parameters() if weight.ndim > 1}
        state = {k: v.half() if k in heavy else v for k, v in state.items()}
        too_large = [name for name in heavy if not state[name].isfinite().all()]
        if too_large:
            raise ConfigError(
                f"the weights '{min(too_large)}' are too large for half precision.",
                "Write them in full precision.",
            )
    partial = folder / f".{WEIGHTS}.part"
    safetensors.torch.save_file(state, partial, {"format": "pt"})
    config[DIGESTS] = _digests(partial, config)
    partial.replace(folder / WEIGHTS)
    write_atomic(folder / CONFIG, json_bytes(config))
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read
    write_card(folder, metrics, card)


def write_card(
    folder: Path, metrics: ModelMetrics | None = None, content: bytes | None = None
) -> None:
    """Write the card of a checkpoint, unless the user wrote one.

    Args:
        folder: Folder of the checkpoint.
        metrics: Metrics of the checkpoint; None where they are not known.
        content: Content of the card; None for a new one.

    Raises:
        CheckpointError: `config.json` is missing or damaged.
        MachineError: The folder cannot be written to.
    """
    if is_ours(folder / CARD):
        written = content or model_card(read_config(folder), metrics).encode()
        write_atomic(folder / CARD, written)


def load_checkpoint(folder: Path, network: type[N]) -> tuple[N, dict[str, Any]]:
    """Return the network in `folder`, in evaluation mode on the CPU, and its `config.json`.

    Args:
        folder: Folder of the checkpoint.
        network: Class of the network.

    Raises:
        CheckpointError: The folder holds no checkpoint; or the checkpoint is damaged, has another
            format version, has tensors that do not fit its architecture, or was changed after it
            was written; or its base weights are missing or others.
        MachineError: Memory ran out, or the base weights cannot be downloaded.
    """
    written = read_written_config(folder)
    config = current_config(written)
    model = architecture_of(config, folder)
    with memory_for(f"loading the checkpoint {folder}"):
        empty = _build_empty(network, model, folder)
        described = described_fields(model, empty.normalization)
        require_described(config, described, folder)
        expected = empty.state_dict()
        state, base = current_tensors(_read_weights(folder)), BaseRecord.of(config, folder)
        in_base = {*base.tensors} if base else set()
        problem = state_dict_mismatch(state, {k: expected[k] for k in expected.keys() - in_base})
        if problem:
            raise unfit(folder, problem)
        _require_unchanged(folder, written)
        if base:
            state |= base.read(folder, partial(network.base_tensors, model))
        segmenter = _build(network, model, folder)
        segmenter.load_state_dict(state)
    ours = {*described, DIGESTS, BASE}
    segmenter.about = {k: v for k, v in config.items() if k not in ours}
    return segmenter.eval(), config


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of the weights file in the folder of a checkpoint.

    Raises:
        OSError: The file cannot be read.
    """
    return sha256_of(folder / WEIGHTS)


def _digests(weights: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of a weights file, and of the section `model` in a canonical form."""
    model = json.dumps(config["model"], sort_keys=True, separators=(",", ":"))
    return {"weights": sha256_of(weights), "model": hashlib.sha256(model.encode()).hexdigest()}


def _require_unchanged(folder: Path, config: Mapping[str, Any]) -> None:
    if DIGESTS not in config:
        return
    try:
        actual = _digests(folder / WEIGHTS, config)
    except OSError as error:
        raise _unreadable(folder / WEIGHTS, error) from None
    stored = config[DIGESTS]
    if not isinstance(stored, dict) or stored.keys() != actual.keys():
        raise unfit(folder, f"in it, '{DIGESTS}' does not hold the digests of a checkpoint")
    parts = {"weights": WEIGHTS, "model": f"the section 'model' of its {CONFIG}"}
    for key, part in parts.items():
        if stored[key] != actual[key]:
            raise CheckpointError(
                f"the checkpoint {folder} was changed after it was written: {part} does not have "
                f"the SHA-256 that {CONFIG} holds.",
                f"{FETCH_AGAIN} If you changed it on purpose, remove '{DIGESTS}' from {CONFIG}.",
            )


def _build_empty(network: type[N], model: ModelConfig, folder: Path) -> N:
    """Return the network on the device "meta": its config may ask for any size."""
    try:
        with torch.device("meta"):
            return _build(network, model, folder)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        if not _needs_values(error):
            raise
        return _build(network, model, folder)


def _needs_values(error: Exception) -> bool:
    """Return whether a constructor failed because it reads values of its tensors."""
    return "meta" in str(error)


def _build(network: type[N], model: ModelConfig, folder: Path) -> N:
    try:
        return network(model)
    except ConfigError as error:
        raise CheckpointError(
            f"the checkpoint {folder} names an unknown network: {error.message}",
            error.hint,
        ) from None
    except RuntimeError as error:  # tensors too large for any machine
        if ran_out_of_memory(error) or _needs_values(error):
            raise
        raise unfit(folder, f"its network is too large ({error})") from None


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe could wait forever
            raise OSError("it is not a regular file")
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise absent(folder, WEIGHTS) from None
    except (OSError, ValueError, SafetensorError) as error:
        if ran_out_of_memory(error):
            raise
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CheckpointError(
        f"the checkpoint {path.parent} cannot be read: {path.name}: {' '.join(reason.split())}.",
        FETCH_AGAIN,
    )


def separate_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU that share no memory, which safetensors refuses."""
    separate: dict[str, Tensor] = {}
    taken = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if address in taken else tensor
        taken.add(address)
    return separate


def state_dict_mismatch(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, finite: bool = True
) -> str | None:
    """Return the first mismatch between `state` and `expected`, or None if they match.

    Floating-point dtypes may differ.

    Args:
        state: Tensors by name, as read from the file.
        expected: Tensors by name with the expected shapes and kinds; values and device do not
            matter.
        finite: Whether values that are not finite are a mismatch.

    Returns:
        A clause such as "it lacks 'memory.slots' (and 2 more)".
    """
    missing, unknown = sorted(expected.keys() - state), sorted(state.keys() - expected)
    if missing or unknown:
        clauses = [("it lacks", missing), ("it holds the unknown", unknown)]
        return " and ".join(f"{verb} {_named(names)}" for verb, names in clauses if names)
    reshaped = [name for name in expected if state[name].shape != expected[name].shape]
    if reshaped:
        first = reshaped[0]
        actual, wanted = (tuple(tensors[first].shape) for tensors in (state, expected))
        return f"{_named(reshaped)} has the shape {actual} instead of {wanted}"
    kinds = [n for n in expected if _is_float(state[n]) != _is_float(expected[n])]
    if kinds:
        return f"{_named(kinds)} has the dtype {state[kinds[0]].dtype}"
    infinite = [name for name in expected if finite and not torch.isfinite(state[name]).all()]
    return f"{_named(infinite)} holds values that are not finite" if infinite else None


def _named(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0][:100]!r}{more}"


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()
