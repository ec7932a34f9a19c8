"""The folder as a whole: its files are intact, every one is compared, and names agree."""

import hashlib
import json
import re

import pytest
import torch

from pinmem_core.models import Segmenter

from .fixtures import ABSENT, FOLDER, KINDS, manifest
from .names import M_ITEMS, model_config, official_parameters, official_tensors

pytestmark = pytest.mark.reference


def checkpoints() -> dict[str, dict]:
    path = FOLDER / "official_state_dict.json"
    return json.loads(path.read_text(encoding="utf-8"))["checkpoints"] if path.is_file() else {}


@pytest.mark.parametrize("file", list(manifest()["files"]) or [ABSENT])
def test_every_file_is_intact_and_of_one_kind(file):
    about = manifest()["files"][file]
    assert hashlib.sha256((FOLDER / file).read_bytes()).hexdigest() == about["sha256"]
    assert sum(bool(re.search(what, about["what"])) for what in KINDS.values()) == 1


@pytest.mark.parametrize("name", list(checkpoints()) or [ABSENT])
def test_names_and_shapes_are_those_of_an_original_checkpoint(name):
    theirs = checkpoints()[name]
    architecture = theirs["arch"].rpartition(".")[2]
    config = model_config(architecture, 8 if "V2D" in architecture else 16, memory=theirs["memory"])
    with torch.device("meta"):
        segmenter = Segmenter(config)
    ours = {k: list(t.shape) for k, t in official_tensors(segmenter).items() if k != M_ITEMS}
    assert ours == {key.removeprefix("module."): shape for key, shape, _ in theirs["state_dict"]}
    parameters = official_parameters(segmenter)
    assert sum(p.numel() for p in parameters.values()) == theirs["n_params"]
    assert parameters.keys() == {key.removeprefix("module.") for key in theirs["param_order"]}
