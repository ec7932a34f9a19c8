from collections import Counter

import numpy as np
import pytest
import torch
from conftest import small_config

from pinmem_core.config import AugmentationConfig
from pinmem_core.errors import DataError
from pinmem_core.images import write_png
from pinmem_core.loading import Batch, DomainLoader, load_domains
from pinmem_core.loading.domains import draw_indices, draw_meta_split
from pinmem_core.preparation import draw_missing


@pytest.fixture
def domains():
    draw_missing(["toy"])
    return load_domains(["toy:red", "toy:blue"], pseudo_domains=2, seed=0)


def _batches(domains, iterations=range(4)) -> list[Batch]:
    config = AugmentationConfig(crop=32)
    return list(DomainLoader(domains, batch=3, iterations=iterations, config=config, seed=1))


def test_a_batch_has_every_domain_in_the_documented_form(domains):
    (batch,) = _batches(domains, range(1))
    assert batch.images.shape == (2, 3, 3, 32, 32) and batch.images.dtype == torch.float32
    assert batch.labels.shape == (2, 3, 32, 32) and batch.labels.dtype == torch.int64
    assert set(batch.labels.unique().tolist()) <= {*range(19), 255}
    assert type(batch.images) is torch.Tensor
    images, labels = batch.all()
    assert torch.equal(images[1], batch.images[1, 0]) and torch.equal(labels[2], batch.labels[0, 1])
    images, _ = batch.of([1])
    assert torch.equal(images, batch.images[1])


def test_a_batch_is_a_function_of_seed_and_iteration_alone(domains):
    straight = _batches(domains)
    torch.manual_seed(99)  # global randomness has no say
    later = _batches(domains, range(2, 4))
    for a, b in zip(straight[2:], later, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert (a.meta_train, a.meta_test) == (b.meta_train, b.meta_test)
    assert not torch.equal(straight[0].images, straight[1].images)


def test_workers_change_nothing(domains):
    config = AugmentationConfig(crop=32)
    settings = {"batch": 2, "iterations": range(3), "config": config, "seed": 1}
    alone = DomainLoader(domains, **settings)
    helped = DomainLoader(domains, **settings, workers=2)
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_told_in_a_sentence(domains, workers):
    for sample in domains[1].samples:
        sample.image.write_bytes(b"torn")
    config = AugmentationConfig(crop=32)
    loader = DomainLoader(
        domains, batch=2, iterations=range(3), config=config, seed=1, workers=workers
    )
    with pytest.raises(DataError) as error:
        list(loader)
    assert "cannot be read" in error.value.message and "\n" not in error.value.message
    assert error.value.hint


def test_image_and_label_move_together(domains):
    """The toy images are a function of their labels, up to noise and the domain's tint."""
    config = AugmentationConfig(crop=64, strong="none", scale=(1.0, 1.0))
    loader = DomainLoader(domains, batch=4, iterations=range(3), config=config, seed=0)
    for batch in loader:
        green = batch.images[:, :, 1].flatten()
        label = batch.labels.flatten()
        known = label != 255
        correlation = np.corrcoef(green[known].numpy(), label[known].numpy())[0, 1]
        assert correlation > 0.5  # the jitter costs some; misplaced labels would give 0


def test_padding_is_ignored(domains):
    config = AugmentationConfig(crop=128, scale=(0.5, 0.5))
    (batch,) = DomainLoader(domains, batch=2, iterations=range(1), config=config, seed=0)
    assert (batch.labels == 255).float().mean() > 0.9
    assert (batch.labels != 255).any(dim=-1).any(dim=-1).all()  # yet every crop has a label


def test_a_domain_without_labels_is_refused_not_trained_on(domains):
    for sample in domains[0].samples:
        write_png(sample.label, np.full((64, 96), 255, np.uint8))
    with pytest.raises(DataError, match="no labelled pixel"):
        _batches(domains)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("none", [0, 0]), ("all", [4, 4]), ("first-source", [4, 0])],
)
def test_strong_augmentation_follows_its_policy(domains, policy, expected):
    loader = DomainLoader(
        domains,
        batch=1,
        iterations=range(4),
        config=AugmentationConfig(crop=32, strong=policy),
        seed=0,
    )
    strong = [loader._strong_domains(i) for i in range(4)]
    assert [sum(d in s for s in strong) for d in range(2)] == expected


def test_meta_test_domains_are_the_strong_ones(domains):
    config = small_config().augmentation
    loader = DomainLoader(domains, batch=1, iterations=range(8), config=config, seed=0)
    for iteration, batch in enumerate(loader):
        assert loader._strong_domains(iteration) == set(batch.meta_test)


def test_meta_splits_are_drawn_as_the_reference_does():
    splits = [draw_meta_split(0, iteration, 3) for iteration in range(3000)]
    assert all(sorted(a + b) == [0, 1, 2] and a and b for a, b in splits)
    sizes = Counter(len(a) for a, _ in splits)
    firsts = Counter(a[0] for a, _ in splits)
    assert all(abs(n / 3000 - 1 / 2) < 0.04 for n in sizes.values())
    assert all(abs(n / 3000 - 1 / 3) < 0.04 for n in firsts.values())


def test_samples_are_drawn_uniformly_and_independently_by_domain():
    drawn = [draw_indices(0, i, 0, 5, 4) for i in range(1000)]
    counts = Counter(index for indices in drawn for index in indices)
    assert all(abs(counts[i] / 4000 - 0.2) < 0.03 for i in range(5))
    assert drawn != [draw_indices(0, i, 1, 5, 4) for i in range(1000)]


def test_a_single_source_is_split_into_pseudo_domains():
    draw_missing(["toy"])
    parts = load_domains(["toy:red"], pseudo_domains=2, seed=0)
    ids = [{s.id for s in part.samples} for part in parts]
    assert [len(part) for part in ids] == [4, 4] and not ids[0] & ids[1]
    assert [part.name for part in parts] == ["toy:red#1", "toy:red#2"]
    with pytest.raises(DataError, match="8 training samples, too few"):
        load_domains(["toy:red"], pseudo_domains=9, seed=0)
    again = load_domains(["toy:red"], pseudo_domains=2, seed=0)
    assert again == parts
