"""Adding a dataset, a backbone, a decoder, a method or an optimizer is adding one file."""

from conftest import PLUGINS, small_config

from pinmem_core.data.catalog import cards
from pinmem_core.methods import methods
from pinmem_core.models.backbones import backbones
from pinmem_core.models.decoders import decoders
from pinmem_core.training import train
from pinmem_core.training.optimizers import optimizers


def test_one_file_each_is_enough(tmp_path):
    assert sorted(str(p.relative_to(PLUGINS)) for p in PLUGINS.rglob("*.py")) == [
        "backbones/tiny.py",
        "datasets/toy.py",
        "decoders/flat.py",
        "methods/warmup.py",
        "optimizers/nesterov.py",
    ]
    assert "toy" in cards() and "first-domain" in methods.all()
    assert "tiny" in backbones.all() and "flat" in decoders.all()
    assert "nesterov" in optimizers.all()
    config = small_config(
        method="first-domain",
        model__backbone="tiny",
        model__decoder="flat",
        optim__name="nesterov",
        targets=["toy:blue"],
    )
    result = train(config, tmp_path / "run")
    assert set(result.scores["target"]) == {"toy:blue"}
