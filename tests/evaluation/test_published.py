"""Every published dataset, from its archives to trainIds that equal the published tables."""

import os
from pathlib import Path

import numpy as np
import pytest
from published import CASES, TABLES, Case, table

from pinmem_core.data.catalog import get_card, shipped_cards
from pinmem_core.data.locate import locate_raw_files
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.errors import DataError
from pinmem_core.label_files import read_label


def _prepared(case: Case, tmp_path: Path) -> PreparedDataset:
    card = get_card(case.dataset)
    return prepare(
        card, locate_raw_files(card, [case.write(tmp_path / "archives")]), label_map=case.label_map
    )


@pytest.mark.parametrize("name", CASES)
def test_every_pixel_is_what_the_published_table_says(tmp_path, name):
    case = CASES[name]()
    dataset = _prepared(case, tmp_path)
    assert {s.id: (s.split, s.domain) for s in dataset.samples} == {
        key: (split, domain) for key, (split, domain, _) in case.samples.items()
    }
    for sample in dataset.samples:
        image, train_ids = sample.read()
        assert np.array_equal(train_ids, case.samples[sample.id][2])
        assert image.shape[:2] == train_ids.shape == (sample.height, sample.width)
    assert case.layout in dataset.summary["layout"]


@pytest.mark.parametrize("name", CASES)
def test_exactly_the_defective_files_are_left_out(tmp_path, name):
    case = CASES[name]()
    excluded = {d["file"]: d["rule"] for d in _prepared(case, tmp_path).summary["excluded"]}
    assert len(excluded) == len(case.excluded)
    for ending, rule in case.excluded.items():
        assert [found for file, found in excluded.items() if file.endswith(ending)] == [rule]


def test_every_shipped_dataset_is_among_the_cases():
    assert {case().dataset for case in CASES.values()} >= set(shipped_cards()) - {"demo", "toy"}


def test_mapillarys_maps_are_kept_apart(tmp_path):
    """The map of one version on the labels of the other is what goes wrong silently elsewhere."""
    card = get_card("mapillary")
    files = CASES["mapillary 2.0 in bare folders"]().write(tmp_path / "archives")
    with pytest.raises(DataError, match=r"another version of mapillary than .* 'pinmem'"):
        prepare(card, locate_raw_files(card, [files]), label_map="pinmem")


REAL = Path(os.environ.get("PINMEM_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.reference
@pytest.mark.skipif(not REAL.is_dir(), reason="the folder of real labels is not here")
@pytest.mark.parametrize(
    ("file", "dataset", "label_map", "name"),
    [
        ("gtav-palette-512x256.png", "gtav", "ids", "ids"),
        ("gtav-palette-512x256.png", "gtav", "pinmem", "pinmem"),
        ("mapillary-v1.2-100x100.png", "mapillary", "pinmem", "pinmem"),
        ("mapillary-v1.2-100x100.png", "mapillary", "rein", "rein"),
        ("mapillary-v2.0-100x100.png", "mapillary", "v2.0", "v2.0"),
    ],
)
def test_real_label_files_are_translated_by_the_published_tables(file, dataset, label_map, name):
    raw = read_label(REAL / "label-samples" / file)
    train_ids, unknown = get_card(dataset).label_map(label_map).apply(raw)
    lookup = np.full(256, 254, np.uint8)
    for value, train_id in table(dataset, name).items():
        lookup[value] = train_id
    assert unknown == ()
    assert np.array_equal(train_ids, lookup[raw])


@pytest.mark.reference
@pytest.mark.skipif(not REAL.is_dir(), reason="the folder of real labels is not here")
def test_real_camvid_in_segnets_layout():
    folder = REAL / "camvid-segnet"
    dataset = prepare(get_card("camvid"), [folder])
    assert dataset.counts == {"test": 1, "train": 1, "val": 1}
    lookup = np.array([TABLES["camvid"]["segnet"][str(i)] for i in range(12)], np.uint8)
    for sample in dataset.samples:
        raw = read_label(folder / f"{sample.split}annot" / f"{sample.id}.png")
        assert np.array_equal(read_label(sample.label), lookup[raw])
