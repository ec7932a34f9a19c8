"""Base weights: what a checkpoint with `checkpoint.adapter_only` names instead of holding it.

Such a checkpoint lists the tensors of its network that are bit-equal to those of the base, and the
SHA-256 of them all. Loading reads them from the base again.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import ValidationError
from torch import Tensor

from pinmem_core.checkpoints.hub import checkpoint_of
from pinmem_core.checkpoints.model_card import BASE
from pinmem_core.config import Settings
from pinmem_core.errors import CheckpointError, ConfigError, DataError
from pinmem_core.paths import expanded

VARIABLE = "PINMEM_BASE"
"""Environment variable: a file or model that takes the place of the recorded base."""
Kind = Literal["weights", "model"]
"""Weights of a backbone, as for `init_weights`; or a model, as for `init_from`."""
_LOADING: ContextVar[tuple[Path, ...]] = ContextVar("loading", default=())
"""Folders of the checkpoints whose bases are being read; the base of one is the next."""
Reader = Callable[[Kind, str], Mapping[str, Tensor]]
"""Function that reads the tensors of a base by their names in a network; takes kind and source."""


class BaseRecord(Settings):
    """The section `base` of a checkpoint's `config.json`."""

    kind: Kind
    """Kind of the base."""
    source: str
    """Name, or absolute path."""
    sha256: str
    """SHA-256 of the tensors that the base holds for the checkpoint."""
    tensors: tuple[str, ...]
    """Names of these tensors in the network."""

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path) -> Self | None:
        """Return the record in a `config.json`; None if the checkpoint holds all tensors.

        Args:
            config: Content of the `config.json`.
            folder: Folder of the checkpoint.

        Raises:
            CheckpointError: The record is damaged.
        """
        if BASE not in config:
            return None
        try:
            return cls.model_validate(config[BASE])
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise CheckpointError(
                f"the checkpoint {folder} does not fit its config.json: in it, '{BASE}' is wrong "
                f"({reason})."
            ) from None

    @property
    def is_local(self) -> bool:
        """Whether the base is a file or folder of one machine."""
        return Path(self.source).is_absolute()

    def read(self, folder: Path, reader: Reader) -> dict[str, Tensor]:
        """Return the tensors that the base holds for a checkpoint.

        Args:
            folder: Folder of the checkpoint.
            reader: Function that reads the tensors of a base.

        Raises:
            CheckpointError: The base is missing or damaged, or is not that of the checkpoint.
            MachineError: The base cannot be downloaded.
        """
        loading = (*_LOADING.get(), folder.resolve())
        token = _LOADING.set(loading)
        source = self.source
        what = "file with the weights" if self.kind == "weights" else "folder of the model"
        hint = f"Set the environment variable {VARIABLE} to the {what} that it was trained on."
        try:
            source = self._present_source(loading)
            if self.kind == "model" and checkpoint_of(source).resolve() in loading:
                raise ConfigError("it is based on itself.")
            tensors = reader(self.kind, source)
        except (ConfigError, DataError) as error:
            message = f"the checkpoint {folder} needs its base weights: {error.message}"
            raise CheckpointError(message, hint) from None
        finally:
            _LOADING.reset(token)
        needed = {name: tensors[name] for name in self.tensors if name in tensors}
        if _digest_of_all(fingerprints(needed)) != self.sha256:
            raise CheckpointError(
                f"the checkpoint {folder} was trained on other base weights than {source}: their "
                "SHA-256 differs.",
                hint,
            )
        return needed

    def _present_source(self, loading: Sequence[Path]) -> str:
        """Return the source that `VARIABLE` names, or else the recorded one.

        The base may have a base in turn: the variable does not stand for the weights of a backbone
        where it names a folder, for a model where it names a file, or for the base of itself.
        """
        given = os.environ.get(VARIABLE)
        if given is None:
            return self.source
        if self.kind == "weights":
            return self.source if expanded(given).is_dir() else given
        if expanded(given).is_file() or checkpoint_of(given).resolve() in loading:
            return self.source
        return given


@dataclass(frozen=True)
class Base:
    """The base weights of a run.

    Attributes:
        kind: Kind of the base.
        source: Name, or absolute path.
        digests: SHA-256 of each of its tensors, by the tensor's name in the network.
    """

    kind: Kind
    source: str
    digests: Mapping[str, str]

    def split(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], BaseRecord]:
        """Return the tensors of a state that differ from the base, and the record of the others."""
        known = fingerprints({name: t for name, t in state.items() if name in self.digests})
        equal = {name: digest for name, digest in known.items() if digest == self.digests[name]}
        record = BaseRecord(
            kind=self.kind,
            source=self.source,
            sha256=_digest_of_all(equal),
            tensors=tuple(sorted(equal)),
        )
        return {name: tensor for name, tensor in state.items() if name not in equal}, record


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 of the shape and the values of each tensor; floats count as float32."""
    return {name: _fingerprint(tensor) for name, tensor in tensors.items()}


def _fingerprint(tensor: Tensor) -> str:
    tensor = tensor.detach().cpu()
    plain = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
    digest = hashlib.sha256(str((plain.dtype, *plain.shape)).encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest_of_all(by_name: Mapping[str, str]) -> str:
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(by_name.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
