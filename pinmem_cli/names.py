"""Names for help texts and shell completion, read without importing torch."""

import ast
from collections.abc import Callable
from pathlib import Path

_CORE = Path(__file__).parents[1] / "pinmem_core"


def _keys(module: Path, table: str) -> list[str]:
    """Return the keys of the dict `table` in a module; importing it would take seconds."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict) and table in [getattr(t, "id", "") for t in targets]:
            return [str(key.value) for key in value.keys if isinstance(key, ast.Constant)]
    return []


def datasets() -> list[str]:
    """Return the names of the shipped datasets."""
    cards = (_CORE / "data" / "cards").iterdir()
    return sorted(
        path.stem for path in cards if path.suffix in (".yaml", ".py") and path.stem != "__init__"
    )


def known_datasets() -> list[str]:
    """Return the names of the shipped datasets and of the user's own prepared ones."""
    from pinmem_core.paths import home

    own = {path.parent.name for path in home().glob("datasets/[!.]*/card.yaml")}
    return sorted({*datasets(), *own})


def recipes() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in (_CORE / "recipes").glob("*.toml"))


def label_spaces() -> list[str]:
    """Return the names of the known label spaces."""
    return sorted(path.stem for path in (_CORE / "label_spaces").glob("*.yaml"))


def methods() -> list[str]:
    """Return the names of the training methods."""
    return _plugins("methods", "METHODS")


def backbones() -> list[str]:
    """Return the names of the backbones, and the prefixes of families, such as "timm:"."""
    return [name.removesuffix("*") for name in _plugins("models/backbones", "BACKBONES")]


def decoders() -> list[str]:
    """Return the names of the decoders."""
    return _plugins("models/decoders", "DECODERS")


def loggers() -> list[str]:
    """Return the names of the loggers."""
    return _plugins("training/loggers", "LOGGERS")


def _plugins(package: str, table: str) -> list[str]:
    modules = (_CORE / package).glob("*.py")
    return sorted(name for module in modules for name in _keys(module, table))


def formats() -> list[str]:
    """Return the names of the output formats."""
    return _keys(_CORE / "inference" / "writers.py", "FORMATS")


def protocols() -> list[str]:
    """Return the names of the inference protocols."""
    return _keys(_CORE / "inference" / "protocols.py", "PROTOCOLS")


def runs() -> list[str]:
    """Return the names of the runs in `PINMEM_HOME`."""
    from pinmem_core.paths import runs_root

    return sorted(path.parent.name for path in runs_root().glob("*/config.json"))


def models() -> list[str]:
    """Return the runs, and the other names that stand for a model."""
    return ["starter", "last", *runs()]


def devices() -> list[str]:
    """Return the names of devices."""
    return ["auto", "cpu", "cuda", "mps"]


def settings() -> list[str]:
    """Return the beginnings of settings, such as "optim.lr=", and the known networks whole."""
    from pinmem_core.setting_list import list_settings

    networks = {"model.backbone": backbones(), "model.decoder": decoders(), "method": methods()}
    values = [f"{key}={name}" for key, known in networks.items() for name in known]
    return [*(f"{setting.key}=" for setting in list_settings()), *values]


KINDS = (datasets, label_spaces, recipes, methods, formats, protocols)
"""Kinds whose names help texts show in place of `{datasets}` etc."""


def complete(names: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    """Return a shell completion with names; it completes the last entry of a list with commas."""

    def completion(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(last)]

    return completion
