"""A dataset, a backbone, a decoder, a method, an optimizer or a logger is one file to add."""

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
        "cards/toy.py",
        "decoders/flat.py",
        "loggers/lines.py",
        "methods/consistency.py",
        "optimizers/signed.py",
    ]
    assert "toy" in cards() and "consistency" in methods.all()
    assert "tiny" in backbones.all() and "flat" in decoders.all()
    assert "signed" in optimizers.all()
    config = small_config(
        method="consistency",
        model__backbone="tiny",
        model__decoder="flat",
        method_config__weight=0.5,
        optim__name="signed",
        logger=["lines"],
        targets=["toy:blue"],
    )
    result = train(config, tmp_path / "run")
    assert set(result.scores["target"]) == {"toy:blue"}
    assert (result.run / "events.txt").read_text().startswith("start consistency\nmetrics 1 ")
