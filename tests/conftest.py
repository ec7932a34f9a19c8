"""What the tests share: a home of their own, plug-ins found by discovery, small configurations."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pinmem_core.data.cards
import pinmem_core.methods
import pinmem_core.models.backbones
import pinmem_core.models.decoders
import pinmem_core.training.loggers
import pinmem_core.training.optimizers
from pinmem_cli.app import app
from pinmem_core.config import TrainConfig
from pinmem_core.images import write_png
from pinmem_core.overrides import nested, validate
from pinmem_core.training.run_folder import RunFolder

PLUGINS = Path(__file__).parent / "plugins"


def pytest_configure() -> None:
    torch.set_num_threads(1)  # networks this small lose more by waiting than they win
    # The first backward pass of a process decides whether it can be forked. It must not come after
    # a test has exported a network, because fake tensors register a device that needs threads.
    torch.zeros((), requires_grad=True).backward()
    for package in (
        pinmem_core.data.cards,
        pinmem_core.methods,
        pinmem_core.models.backbones,
        pinmem_core.models.decoders,
        pinmem_core.training.loggers,
        pinmem_core.training.optimizers,
    ):
        package.__path__.append(str(PLUGINS / package.__name__.rsplit(".", 1)[1]))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("PINMEM_HOME", str(folder))
    monkeypatch.setenv("NO_COLOR", "1")
    return folder


@pytest.fixture(autouse=True)
def _no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save the second that the plots of a run take, except in tests with the marker `plots`."""
    if "plots" not in request.keywords:
        monkeypatch.setattr(RunFolder, "draw", lambda *_: None)
        monkeypatch.setattr(RunFolder, "draw_confusion", lambda *_: None)


@pytest.fixture
def add_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Write a plug-in file, and make it known in a test: `add_plugin(package, text)`."""
    added: list[str] = []

    def add(package: ModuleType, text: str, name: str = "added") -> None:
        folder = tmp_path / "plugins" / package.__name__
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        added.append(f"{package.__name__}.{name}")

    yield add
    for name in added:
        sys.modules.pop(name, None)


def small_config(**values: object) -> TrainConfig:
    """A run of seconds: the tiny backbone on the toy dataset; `a__b=c` sets a.b."""
    settings = {
        "sources": ["toy:red", "toy:blue"],
        "iterations": 3,
        "batch": 2,
        "device": "cpu",
        "log_every": 1,
        "allow_seen_targets": True,
        "augmentation.crop": 64,
        "model.backbone": "tiny",
        "model.feature_dim": 16,
        "model.memory.init_batches": 2,
    }
    return validate(nested({}, settings | {k.replace("__", "."): v for k, v in values.items()}))


def camvid_folder(root: Path, drives: dict[str, int], size: tuple[int, int] = (40, 30)) -> Path:
    """Write a flat CamVid of random labels, `drives` naming how many frames each has."""
    rng = np.random.default_rng(0)
    width, height = size
    for drive, count in drives.items():
        for number in range(count):
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            label = rng.integers(0, 12, (height, width), dtype=np.uint8)
            write_png(root / "images" / f"{drive}_{number:05}.png", image)
            write_png(root / "labels" / f"{drive}_{number:05}.png", label)
    return root


class Result:
    """Exit code and streams of one call; `json` parses stdout."""

    def __init__(self, *arguments: str, stdin: bytes | None = None) -> None:
        result = CliRunner().invoke(app, list(arguments), input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    @property
    def json(self) -> dict:
        return json.loads(self.out)
