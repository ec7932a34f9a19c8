"""Checks of the libraries that pinmem uses."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from pinmem_core.doctor.findings import TORCH, Finding, Section, first_line
from pinmem_core.errors import shell_join

LIBRARIES = (
    *("torch", "torchvision", "numpy", "pillow", "safetensors", "huggingface-hub", "pydantic"),
    *("requests", "urllib3", "typer", "rich", "matplotlib", "jinja2", "pyyaml", "platformdirs"),
    *("regex", "isal", "packaging", "rarfile", "libarchive-c"),
)
"""Distributions that pinmem needs."""
EXTRAS: Mapping[str, tuple[str, Sequence[str]]] = {
    "backbones": ("backbones of timm", ("timm", "scipy")),
    "export": ("ONNX files", ("onnx", "onnxruntime", "onnxscript")),
    "mlflow": ("logs for MLflow", ("mlflow-skinny",)),
    "parquet": ("datasets in parquet files", ("pyarrow",)),
    "serve": ("a page to try models on", ("fastapi", "uvicorn")),
    "tensorboard": ("logs for TensorBoard", ("tensorboard",)),
    "video": ("prediction of videos", ("av",)),
    "wandb": ("logs for W&B", ("wandb",)),
}
"""What each extra adds, and its distributions."""
_MODULES = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "libarchive-c": "libarchive",
    "mlflow-skinny": "mlflow",
}
"""Modules whose name differs from that of their distribution."""
_REPAIRS = {
    "torch": f"Install torch again: {TORCH}",
    "torchvision": f"Install torch and torchvision together: {TORCH}",
    "libarchive-c": "Install libarchive ('apt install libarchive13' or 'brew install libarchive'); "
    "RAR archives need it.",
}


def check_libraries() -> Section:
    """Check that each library that pinmem needs can be imported and is new enough."""
    states = {name: _library(name) for name in LIBRARIES}
    findings = []
    for name, state in states.items():
        fix = _REPAIRS.get(name, f"pip install --force-reinstall {name}")
        if state.version is None:
            findings.append(Finding(f"{name} is missing.", f"pip install {name}"))
        elif state.problem:
            findings.append(Finding(f"{name} cannot be imported: {state.problem}.", fix))
    versions = {name: state.version for name, state in states.items()}
    return Section(versions, [*findings, *_too_old(versions)])


def check_extras() -> Section:
    """Check which extras are installed, and that those can be imported."""
    values, findings = {}, []
    for extra, (adds, names) in EXTRAS.items():
        states = {name: _library(name) for name in names}
        broken = {name: state.problem for name, state in states.items() if state.problem}
        missing = any(state.version is None for state in states.values())
        for name, problem in broken.items():
            text = f"{name}, of the extra '{extra}', cannot be imported: {problem}."
            findings.append(Finding(text, f"pip install --force-reinstall {name}"))
        versions = {name: state.version for name, state in states.items()}
        findings += _too_old(versions)
        state = "broken" if broken else "missing" if missing else "installed"
        values[extra] = {"adds": adds, "state": state, "packages": versions}
    return Section(values, findings)


class _Library(NamedTuple):
    """The version of a library, None if missing; and why it cannot be imported, None if it can."""

    version: str | None
    problem: str | None = None


def _library(name: str) -> _Library:
    module = _MODULES.get(name, name.replace("-", "_"))
    if find_spec(module) is None:
        return _Library(None)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # e.g. onnxruntime-gpu in place of onnxruntime
        version = "unknown"
    try:
        import_module(module)
    except Exception as error:
        return _Library(version, first_line(error))
    return _Library(version)


def _too_old(versions: Mapping[str, str | None]) -> list[Finding]:
    """Return a finding for each library whose version pinmem's own metadata does not allow."""
    from packaging.requirements import Requirement

    findings = []
    with suppress(importlib.metadata.PackageNotFoundError):  # run from a folder of the sources
        for text in importlib.metadata.requires("pinmem") or ():
            wanted = Requirement(text)
            version = versions.get(wanted.name)
            if version not in (None, "unknown") and not wanted.specifier.contains(version, True):
                message = f"pinmem needs {wanted.name}{wanted.specifier}, not {version}."
                command = shell_join("pip", "install", f"{wanted.name}{wanted.specifier}")
                findings.append(Finding(message, command))
    return findings
