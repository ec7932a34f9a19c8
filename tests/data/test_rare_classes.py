"""Rare-class sampling."""

import math

import numpy as np
import pytest
from conftest import small_config

from pinmem_core.data.batches import CropDataset, load_domains
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.data.prepared import RECORDS
from pinmem_core.data.rare_classes import ClassSampler, class_pixels
from pinmem_core.errors import DataError
from pinmem_core.label_space import label_space
from pinmem_core.paths import dataset_root

PIXELS = np.array([[90, 0, 10, 0], [80, 20, 0, 0], [100, 0, 0, 0]])


def test_probabilities_follow_the_equation():
    sampler = ClassSampler.of(PIXELS, temperature=0.5)
    weights = [math.exp((1 - total / 300) / 0.5) for total in (270, 20, 10)]
    expected = [*(weight / sum(weights) for weight in weights), 0]
    assert sampler.probabilities == pytest.approx(expected, abs=1e-12)


def test_a_drawn_image_contains_its_class():
    drawn = ClassSampler.of(PIXELS, temperature=0.01).draw(np.random.default_rng(0), 200)
    assert all(PIXELS[index, label] > 0 for index, label in drawn)
    assert {label for _, label in drawn} == {1, 2}  # at this temperature, never the frequent one
    sharp = ClassSampler.of(PIXELS, temperature=1e-6)  # no overflow
    assert sharp.probabilities.tolist() == [0, 0, 1, 0]


def test_pixels_are_those_of_the_labels_in_any_space():
    prepare_synthetic(["toy"])
    (domain, _) = load_domains(["toy:red", "toy:blue"], pseudo_domains=2, seed=0)
    for space in (domain.samples.label_space, label_space("idd-level1")):
        samples = domain.samples.in_space(space)
        counts = [np.bincount(s.read()[1].ravel(), minlength=256)[: len(space)] for s in samples]
        assert class_pixels(samples).tolist() == np.array(counts).tolist()


@pytest.mark.slow
def test_crops_show_rare_classes_more_often():
    prepare_synthetic(["toy"])
    domains = load_domains(["toy:red", "toy:blue"], pseudo_domains=2, seed=0)
    totals = class_pixels(domains[0].samples).sum(axis=0)
    rarest = int(np.where(totals > 0, totals, totals.max() + 1).argmin())

    def share(temperature: float | None) -> float:
        config = small_config(
            augmentation__crop=32, augmentation__rare_classes=temperature, batch=4, seed=1
        )
        crops = CropDataset(domains, config, range(4), augment=False)
        assert crops[0].samples == crops[0].samples  # a pure function of seed and iteration
        return float(np.mean([(crops[i].labels[:4] == rarest).any().item() for i in range(12)]))

    assert share(0.001) >= share(None)
    assert share(0.001) == 1


def test_a_dataset_without_records_is_refused():
    prepare_synthetic(["toy"])
    (dataset_root("toy") / RECORDS).write_text("")
    domains = load_domains(["toy:red", "toy:blue"], pseudo_domains=2, seed=0)
    with pytest.raises(DataError, match="says nothing of the sample") as error:
        CropDataset(domains, small_config(augmentation__rare_classes=0.01), range(2), augment=True)
    assert "pinmem data prepare toy" in error.value.hint
