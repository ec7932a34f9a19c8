"""Reading the reference folder, with account of what has been compared."""

import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from .bounds import bound
from .figures import Computed, figure, relative_error

_LOG = logging.getLogger(__name__)

FOLDER = Path(
    os.environ.get("PINMEM_REFERENCE") or Path(__file__).parents[2] / "../shared/reference"
)

DEVICE = torch.device(os.environ.get("PINMEM_REFERENCE_DEVICE", "cpu"))
"""Where ours is computed; the figures were made on a CPU."""

KINDS = {
    "read": r"Memory_sup\.read and get_score",
    "gumbel": "read with gumbel_read=True",
    "write": r"Memory_sup\.write",
    "init": "memory_initalize with a stub net",
    "net": "eval forward and train-mode forward",
    "net init": "memory_initalize with the real",
    "iteration": r"iteration\(s\) of the unmodified",
    "evaluation": "inference_pool / inference_sliding",
}
"""By what the manifest says a file is; every file is of one kind."""

ABSENT = pytest.param(
    "", marks=pytest.mark.skip(reason=f"no such file in {FOLDER.resolve()} (PINMEM_REFERENCE)")
)

_NO_FIGURES = {
    "what", "settings", "scalars", "inputs", "tensors", "bytes", "sha256", "columns",
    "param_names", "bn_names",
}  # fmt: skip
"""What a manifest says of a file beside the facts of a run; scalars are tensors too."""


def manifest() -> dict[str, Any]:
    """Return the folder's manifest; one without files where there is no folder."""
    if not (FOLDER / "manifest.json").is_file():
        return {"files": {}}
    content: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    return content


class Fixture:
    """One file of the folder, and which of its figures are not compared yet.

    Attributes:
        name: Without suffix.
        about: Its entry in the manifest.
        bounds: How large errors may be, by key; None for figures that are left out.
        pending: Keys of tensors and facts.
        errors: Relative ones, by key.
    """

    def __init__(self, name: str, folder: dict[str, Any]) -> None:
        self.name = name
        self._files: dict[str, dict[str, Any]] = folder["files"]
        self.about = self._files[f"{name}.safetensors"]
        self.settings: dict[str, Any] = self.about["settings"]
        self.seed: int = self.settings.get("seed", folder["seed"])
        self.dtype = torch.float64 if self.settings.get("dtype") == "f64" else torch.float32
        self.tensors = load_file(FOLDER / f"{name}.safetensors")
        figures = {*self.about["tensors"], *(self.about.keys() - _NO_FIGURES)}
        self.bounds = {key: bound(key, self.dtype) for key in figures}
        self.pending = {key for key in figures if self.bounds[key] is not None}
        self.errors: dict[str, float] = {}
        for key, scalar in self.about["scalars"].items():
            assert self.tensors[key].item() == scalar, key

    def input(self, key: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """Return what the original was given, on `DEVICE`; from a float32 file it is widened."""
        found = (
            tensors[key]
            for tensors in self._sources()
            if key in tensors and shape in (None, tensors[key].shape)
        )
        tensor = next(found, None)
        assert tensor is not None, f"no file holds the input {key} of shape {shape}"
        if tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        self.compare({key: tensor})
        return tensor.to(DEVICE)

    def _sources(self) -> Iterator[dict[str, Tensor]]:
        """Yield this file, then the float32 ones: its twin, then others with similar names."""
        yield self.tensors

        def shared(file: str) -> int:
            alike = (ours == theirs for ours, theirs in zip(self.name, file, strict=False))
            return len(list(itertools.takewhile(bool, alike)))

        for file in sorted(self._files, key=shared, reverse=True):
            if self._files[file]["settings"].get("dtype") == "f32":
                yield load_file(FOLDER / file)

    def compare(self, computed: Computed) -> None:
        """Compare every pending tensor that follows from `computed`."""
        for key in sorted(self.pending & self.tensors.keys()):
            ours = figure(key, computed, self.about)
            if ours is not None:
                self.pending.remove(key)
                self.errors[key] = relative_error(key, ours, self.tensors[key], self.about)

    def compare_fact(self, key: str, ours: object) -> None:
        """Compare what the manifest alone says."""
        self.pending.remove(key)
        self.errors[key] = 0.0 if self.about[key] == ours else float("inf")

    def finish(self) -> None:
        """Log how close the figures are; fail if one differs, or has not been compared."""
        worst = max(self.errors, key=lambda key: self.errors[key])
        _LOG.info(
            "%s: %d figures, worst %s, %.1e", self.name, len(self.errors), worst, self.errors[worst]
        )
        assert not self.pending, f"not compared: {sorted(self.pending)}"
        differing = {k: e for k, e in self.errors.items() if not e <= self.bounds[k]}
        assert not differing, differing


def files_of(kind: str) -> list[str]:
    """Return the names of the folder's files of one kind."""
    files = manifest()["files"].items()
    return [Path(file).stem for file, about in files if re.search(KINDS[kind], about["what"])]


def every_file(kind: str) -> Callable[[Callable[[Fixture], None]], Callable[[str], None]]:
    """Make a test of every file of one kind, which must use all of the file's figures."""

    def decorate(compare: Callable[[Fixture], None]) -> Callable[[str], None]:
        @pytest.mark.parametrize("name", files_of(kind) or [ABSENT])
        def test(name: str) -> None:
            fixture = Fixture(name, manifest())
            compare(fixture)
            fixture.finish()

        return test

    return decorate
