"""Adding a dataset, a trunk or a method is adding one file: `tests/plugins/` adds one of each."""

from conftest import PLUGINS, small_config

from pinmem_core.datasets import cards
from pinmem_core.learning import train
from pinmem_core.learning.methods import methods
from pinmem_core.model.trunks import trunks


def test_one_file_each_is_enough(tmp_path):
    assert sorted(str(p.relative_to(PLUGINS)) for p in PLUGINS.rglob("*.py")) == [
        "datasets/toy.py",
        "methods/warmup.py",
        "trunks/tiny.py",
    ]
    assert "toy" in cards() and "tiny" in trunks.all() and "first-domain" in methods.all()
    config = small_config(method="first-domain", model__trunk="tiny", targets=["toy:blue"])
    result = train(config, tmp_path / "run")
    assert set(result.scores["target"]) == {"toy:blue"}
