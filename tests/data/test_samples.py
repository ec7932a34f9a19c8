"""The samples of a prepared dataset as columns: the same samples, at a fraction of the memory."""

import json
import os
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pinmem_core.data.prepared import MANIFEST, SCHEMA_VERSION, SUMMARY, PreparedDataset
from pinmem_core.data.samples import Sample, Samples, ids_of
from pinmem_core.errors import DataError

ODD = ("a", "é", 'quo"te', "back\\slash", "\udcff", "x\x00y", "日本")


def sample(name: str, number: int = 0) -> Sample:
    split = ("train", "val")[number % 2]
    image, label = Path(f"../raw/{name}.png"), Path(f"labels/{name}.png")
    return Sample(name, image, label, split, f"city {number % 3}", 20 + number, 10)


def written(root: Path, samples: list[Sample]) -> list[Sample]:
    """Write a prepared dataset that was last changed long ago; return its absolute samples."""
    root.mkdir(parents=True, exist_ok=True)
    (root / MANIFEST).write_text("".join(f"{s.to_json()}\n" for s in samples))
    summary = {"schema_version": SCHEMA_VERSION, "counts": {"train": len(samples)}}
    (root / SUMMARY).write_text(json.dumps(summary))
    for name in (MANIFEST, SUMMARY):
        os.utime(root / name, (1e9, 1e9))
    return [
        replace(s, image=Path(os.path.normpath(root / s.image)), label=root / s.label)
        for s in samples
    ]


def test_columns_hold_what_the_manifest_says(tmp_path):
    expected = written(tmp_path, [sample(name, n) for n, name in enumerate(ODD)])
    samples = Samples.read(tmp_path / MANIFEST)
    assert list(samples) == expected and samples == expected and samples[-1] == expected[-1]
    assert ids_of(samples) == list(ODD) == ids_of(expected)
    assert samples.splits == {"train": 4, "val": 3}
    assert samples.domains == {"city 0": 3, "city 1": 2, "city 2": 2}
    assert pickle.loads(pickle.dumps(samples)) == expected


def test_selections_are_those_of_the_list(tmp_path):
    expected = written(tmp_path, [sample(f"s{n}", n) for n in range(20)])
    samples = Samples.read(tmp_path / MANIFEST)
    assert samples[3:17:2] == expected[3:17:2]
    order = np.random.default_rng(0).permutation(20)[:7]
    assert samples.take(order) == [expected[i] for i in order]
    chosen = [s for s in expected if s.domain == "city 1" and s.split == "val"]
    assert samples.of(domain="city 1", split="val") == chosen != []
    assert samples[5:].of(split="val").take(np.array([1, 0]))[0] == expected[7]
    assert not samples.of(domain="nowhere") and samples.of() == expected
    assert samples != expected[:-1] and samples != "text"


def test_a_thousand_samples_take_less_than_200_kb(tmp_path):
    written(tmp_path, [sample(f"part_01/frame_{n:07}", n) for n in range(1000)])
    tracemalloc.start()
    samples = Samples.read(tmp_path / MANIFEST)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(samples) == 1000 and kept < 200_000


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line[:20],
        lambda line: "[]",
        lambda line: line.replace('"width": 20', '"width": "20"'),
        lambda line: line.replace('"width": 20', '"width": 0'),
        lambda line: line.replace('"width": 20', '"width": 9999999999'),
        lambda line: line.replace('"split": "train"', '"split": null'),
        lambda line: line.replace('"split": "train", ', ""),
        lambda line: line.replace('"width": 20', '"width": 20, "more": 1'),
        lambda line: line.replace('"id": "a"', '"id": "a", "id": "b"'),
    ],
)
def test_a_damaged_line_is_named(tmp_path, spoil):
    good = sample("a").to_json()
    (tmp_path / MANIFEST).write_text(f"{good}\n{spoil(good)}\n")
    with pytest.raises(DataError, match="line 2 of the manifest"):
        Samples.read(tmp_path / MANIFEST)


def test_a_dataset_is_parsed_once_until_it_changes(home):
    root = home / "datasets" / "gtav"
    written(root, [sample("a")])
    opened = PreparedDataset.open("gtav")
    assert PreparedDataset.open("gtav") is opened
    written(root, [sample("b"), sample("c")])
    assert ids_of(PreparedDataset.open("gtav").samples) == ["b", "c"]
    (root / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="damaged"):
        PreparedDataset.open("gtav")
