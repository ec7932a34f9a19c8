import multiprocessing
import os
import resource
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small_config
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchvision import tv_tensors
from torchvision.transforms import v2

from pinmem_core.config import AugmentationConfig
from pinmem_core.data.batches import (
    Batch,
    CropDataset,
    Domain,
    draw_indices,
    draw_meta_split,
    geometry_rng,
    load_domains,
)
from pinmem_core.data.loader import DomainLoader
from pinmem_core.data.prepare import prepare_synthetic
from pinmem_core.data.samples import Sample
from pinmem_core.data.transforms import (
    Appearance,
    Axis,
    Geometry,
    augment_photometric,
    draw_geometry,
)
from pinmem_core.errors import ConfigError, DataError, MachineError
from pinmem_core.images import write_png


@pytest.fixture
def domains() -> list[Domain]:
    prepare_synthetic(["toy"])
    return load_domains(["toy:red", "toy:blue"], pseudo_domains=2, seed=0)


def _loader(domains, iterations=range(4), shard=(0, 1), **settings) -> DomainLoader:
    config = small_config(**{"batch": 3, "seed": 1, "augmentation__crop": 32, **settings})
    return DomainLoader.of(domains, config, iterations, shard=shard)


def _of_class(kind: type[Sample], domains: list[Domain]) -> list[Domain]:
    """The domains with samples of another class, which loading processes get, too."""
    return [replace(d, samples=tuple(kind(**vars(s)) for s in d.samples)) for d in domains]


def _same(a: Batch, b: Batch) -> bool:
    plain = ("meta_train", "meta_test", "redrawn", "samples")
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and all(getattr(a, name) == getattr(b, name) for name in plain)
    )


# Batches


def test_a_batch_has_every_domain_in_the_documented_form(domains):
    (batch,) = _loader(domains, range(1))
    assert batch.images.shape == (2, 3, 3, 32, 32) and batch.images.dtype == torch.float32
    assert batch.labels.shape == (2, 3, 32, 32) and batch.labels.dtype == torch.int64
    assert set(batch.labels.unique().tolist()) <= {*range(19), 255}
    assert type(batch.images) is torch.Tensor
    images, labels = batch.all()
    assert torch.equal(images[1], batch.images[1, 0]) and torch.equal(labels[2], batch.labels[0, 1])
    images, _ = batch.of([1])
    assert torch.equal(images, batch.images[1])


def test_a_batch_is_a_function_of_seed_and_iteration_alone(domains):
    straight = list(_loader(domains))
    torch.manual_seed(99)  # global randomness has no say
    later = list(_loader(domains, range(2, 4)))
    assert all(_same(a, b) for a, b in zip(straight[2:], later, strict=True))
    assert not torch.equal(straight[0].images, straight[1].images)


def test_loading_leaves_global_randomness_alone(domains):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(_loader(domains, range(1)))
    assert torch.equal(torch.rand(3), expected)


def test_workers_change_nothing(domains):
    alone, helped = _loader(domains), _loader(domains, workers=2)
    assert all(_same(a, b) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_crops_that_are_finished_where_the_network_is_are_the_same(domains, workers):
    config = small_config(augmentation__crop=32, augmentation__strong="first-source")
    raw = CropDataset(domains, config, range(config.batch), augment=False)
    assert raw[0].images.dtype == raw[0].labels.dtype == torch.uint8
    late = DomainLoader(raw, range(3), workers=workers)
    early = DomainLoader.of(domains, config, range(3))
    assert early.crops[0].images.dtype == torch.float32
    assert all(_same(a, b) for a, b in zip(early, late, strict=True))


def test_workers_finish_crops_unless_the_network_is_on_a_gpu(domains):
    def finish(device: str) -> bool:
        device = torch.device(device)
        return DomainLoader.of(domains, small_config(), range(1), device=device).crops.augment

    assert finish("cpu") and not finish("cuda:0")


def test_a_batch_names_its_samples(domains):
    (batch,) = _loader(domains, range(1))
    expected = tuple(
        tuple(f"{domain.name}/{domain.samples[i].id}" for i in draw_indices(1, 0, d, 8, 3))
        for d, domain in enumerate(domains)
    )
    assert batch.samples == expected and expected[1][0].startswith("toy:blue/blue_")


def test_a_batch_names_the_sample_that_replaced_an_empty_one(domains):
    first, *others = domains[0].samples
    write_png(first.label, np.full((64, 96), 255, np.uint8))
    batches = list(_loader(domains, range(8)))
    indices = [draw_indices(1, i, 0, 8, 3) for i in range(8)]
    named = [batch.samples[0] for batch in batches]
    assert sum(batch.redrawn for batch in batches) >= sum(i.count(0) for i in indices) > 0
    assert {name for names in named for name in names} <= {f"toy:red/{s.id}" for s in others}
    for batch in batches:
        assert (batch.labels != 255).flatten(2).any(dim=-1).all()


def test_the_parts_of_a_batch_are_the_batch(domains):
    (batch,) = _loader(domains, range(1), batch=4)
    parts = batch.parts(2)
    assert [part.images.shape for part in parts] == [(2, 2, 3, 32, 32)] * 2
    assert torch.equal(torch.cat([part.images for part in parts], dim=1), batch.images)
    assert torch.equal(torch.cat([part.labels for part in parts], dim=1), batch.labels)
    assert parts[1].samples == tuple(names[2:] for names in batch.samples)
    assert (parts[1].meta_train, parts[1].meta_test) == (batch.meta_train, batch.meta_test)
    with pytest.raises(ConfigError, match="4 images of a domain cannot be split into 3") as error:
        batch.parts(3)
    assert "1, 2, 4" in error.value.hint


def test_shards_are_the_batch(domains):
    whole = list(_loader(domains, batch=4))
    shards = [list(_loader(domains, batch=4, shard=(rank, 2))) for rank in range(2)]
    for batch, *ranks in zip(whole, *shards, strict=True):
        assert torch.equal(torch.cat([b.images for b in ranks], dim=1), batch.images)
        assert torch.equal(torch.cat([b.labels for b in ranks], dim=1), batch.labels)
        joined = tuple(a + b for a, b in zip(*(b.samples for b in ranks), strict=True))
        assert joined == batch.samples
        assert {b.meta_train for b in ranks} == {batch.meta_train}


def test_no_two_crops_share_their_randomness(domains):
    only = replace(domains[0], samples=domains[0].samples[:1])
    crops = CropDataset([only, only], small_config(seed=1), range(2), augment=False)
    drawn = [crops[iteration] for iteration in range(3)]
    assert len({image.numpy().tobytes() for d in drawn for image in d.images}) == 12
    assert len({appearance.seed for d in drawn for appearance in d.appearances[0]}) == 12


def test_a_batch_that_cannot_be_shared_is_refused(domains):
    with pytest.raises(ConfigError, match=r"3 images of each domain .* by 2 processes") as error:
        _loader(domains, shard=(0, 2))
    assert "multiple of 2" in error.value.hint


# Geometry


def _by_torchvision(image, label, place: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
    """The same crop of the whole resized image, as torchvision resizes, pads and crops it."""
    rows, columns, flip = place
    pair = (
        tv_tensors.Image(torch.from_numpy(image.copy()).permute(2, 0, 1)),
        tv_tensors.Mask(torch.from_numpy(label.copy())),
    )
    results = []
    for pixels, fill in zip(pair, (0, 255), strict=True):
        size = [rows.scaled, columns.scaled]
        pixels = v2.functional.resize(pixels, size, v2.InterpolationMode.BICUBIC)
        left, top = max(0, -columns.start), max(0, -rows.start)
        right = max(0, columns.start + columns.crop - columns.scaled)
        bottom = max(0, rows.start + rows.crop - rows.scaled)
        pixels = v2.functional.pad(pixels, [left, top, right, bottom], fill=fill)
        at = (rows.start + top, columns.start + left)
        pixels = v2.functional.crop(pixels, *at, rows.crop, columns.crop)
        results.append(v2.functional.horizontal_flip(pixels) if flip else pixels)
    return torch.Tensor(results[0].byte()), torch.Tensor(results[1].byte())


@pytest.mark.parametrize("size", [(64, 96), (131, 257), (7, 300), (40, 3)])
@pytest.mark.parametrize("crop", [32, 100])
def test_a_crop_is_that_of_the_whole_resized_image(size, crop):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    label = rng.integers(0, 19, size, dtype=np.uint8)
    config = AugmentationConfig(crop=crop, scale=(0.3, 3.0))
    for _ in range(25):
        place = draw_geometry(rng, size, config)
        expected_image, expected_label = _by_torchvision(image, label, place)
        assert torch.equal(place.cut_image(image).float(), expected_image)
        assert torch.equal(place.cut_label(label).float(), expected_label)


def test_labels_are_resized_as_torch_resizes_them():
    """Even where floor(i * source / scaled) differs in 32 bits and in exact arithmetic."""
    inexact = 0
    for source in (31, 480, 1052, 1914):
        for scaled in range(source // 2, 2 * source, 7):
            positions = torch.arange(source, dtype=torch.float32)[None, None]
            expected = F.interpolate(positions, size=scaled, mode="nearest")[0, 0].numpy()
            assert np.array_equal(Axis(source, scaled, 0, 2 * scaled).nearest, expected)
            inexact += not np.array_equal(np.arange(scaled) * source // scaled, expected)
    assert inexact


@pytest.mark.parametrize(("size", "crop"), [((36, 38), 33), ((30, 29), 33), ((40, 28), 33)])
def test_crops_lie_where_torchvision_puts_them(size, crop):
    """Its RandomCrop pads both sides by what is missing and then crops at random."""
    image = tv_tensors.Image(torch.zeros(3, *size))
    theirs = v2.RandomCrop(crop, pad_if_needed=True)
    torch.manual_seed(0)
    expected, drawn = [], []
    for number in range(2000):
        params = theirs.make_params([image])
        left, top, _, _ = params["padding"]
        expected.append((params["top"] - top, params["left"] - left))
        config = AugmentationConfig(crop=crop, scale=(1.0, 1.0))
        place = draw_geometry(np.random.default_rng(number), size, config)
        drawn.append((place.rows.start, place.columns.start))
    for axis in range(2):
        counts = Counter(starts[axis] for starts in drawn)
        assert counts.keys() == {starts[axis] for starts in expected}
        share = 2000 / len(counts)
        assert all(abs(count - share) < 5 * share**0.5 for count in counts.values())
    assert abs(np.corrcoef(np.transpose(drawn))[0, 1]) < 0.1


def test_scales_and_flips_are_drawn_evenly():
    """In the order of the seeds that a run uses."""
    places = [
        draw_geometry(geometry_rng(0, number, 0, 0, 0), (1000, 2000), AugmentationConfig())
        for number in range(2000)
    ]
    factors = np.array([place.rows.scaled / 1000 for place in places])
    assert factors.min() >= 0.5 and factors.max() <= 2.0
    counts, _ = np.histogram(factors, bins=10, range=(0.5, 2.0))
    assert all(abs(count - 200) < 70 for count in counts)
    assert all(abs(p.columns.scaled - 2 * p.rows.scaled) <= 1 for p in places)
    flips = np.array([place.flip for place in places])
    assert abs(flips.mean() - 0.5) < 0.05 and abs(np.corrcoef(flips, factors)[0, 1]) < 0.1


def test_image_and_label_move_together(domains):
    """The toy images are a function of their labels, up to noise and the domain's tint."""
    settings = {"crop": 64, "strong": "none", "scale": (1.0, 1.0)}
    loader = _loader(domains, range(3), **{f"augmentation__{k}": v for k, v in settings.items()})
    for batch in loader:
        green = batch.images[:, :, 1].flatten()
        label = batch.labels.flatten()
        known = label != 255
        correlation = np.corrcoef(green[known].numpy(), label[known].numpy())[0, 1]
        assert correlation > 0.5  # the jitter costs some; misplaced labels would give 0


def test_padding_is_ignored(domains):
    (batch,) = _loader(domains, range(1), augmentation__crop=128, augmentation__scale=(0.5, 0.5))
    assert (batch.labels == 255).float().mean() > 0.9
    assert (batch.labels != 255).any(dim=-1).any(dim=-1).all()  # yet every crop has a label


# Appearance


def test_a_crop_looks_as_its_own_seed_says():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    looks = [Appearance(seed, strong) for seed, strong in ((1, True), (2, True), (1, False))]
    together = augment_photometric(images, looks)
    alone = [
        augment_photometric(image[None], [look])[0]
        for image, look in zip(images, looks, strict=True)
    ]
    assert torch.equal(together, torch.stack(alone))
    same = augment_photometric(images[:1].expand(3, -1, -1, -1), looks)
    assert not torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])


def test_jitter_is_applied_to_half_of_the_images_and_strong_jitter_to_all():
    image = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)  # a blur leaves it as it is

    def changed(strong: bool, distort: bool = False) -> float:
        looks = ([Appearance(seed, strong, distort)] for seed in range(200))
        values = [augment_photometric(image, look) for look in looks]
        unchanged = (100 / 255 - 0.485) / 0.229
        return float(np.mean([abs(v[0, 0, 0, 0] - unchanged) > 1e-3 for v in values]))

    assert abs(changed(strong=False) - 0.5) < 0.12
    assert changed(strong=True) > 0.95
    assert changed(strong=False, distort=True) > 0.4  # of grey, only the brightness changes


def test_photometric_distortion_changes_contrast_saturation_and_hue():
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, 0], image[:, 1, :16] = 200, 120
    looks = [[Appearance(seed, False, distort=True)] for seed in range(60)]
    values = torch.cat([augment_photometric(image, look) for look in looks])
    std = values.std(dim=0).mean(dim=(1, 2))
    assert (std > 0.02).all()  # the channels without light, too


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("none", [0, 0]), ("all", [4, 4]), ("first-source", [4, 0])],
)
def test_strong_augmentation_follows_its_policy(domains, policy, expected):
    crops = _loader(domains, augmentation__strong=policy).crops
    strong = [crops.strong_domains(i) for i in range(4)]
    assert [sum(d in s for s in strong) for d in range(2)] == expected


def test_meta_test_domains_are_the_strong_ones(domains):
    config = small_config()
    loader = DomainLoader(CropDataset(domains, config, range(1), augment=False), range(8))
    for iteration, batch in enumerate(loader):
        assert loader.crops.strong_domains(iteration) == set(batch.meta_test)
        (appearances,) = loader.crops[iteration].appearances
        assert {d for d in range(2) if appearances[d].strong} == set(batch.meta_test)


# Failures


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_told_in_a_sentence(domains, workers):
    for sample in domains[1].samples:
        sample.image.write_bytes(b"torn")
    with pytest.raises(DataError) as error:
        list(_loader(domains, workers=workers))
    assert "cannot be read" in error.value.message and "\n" not in error.value.message
    assert error.value.hint
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_deleted_in_mid_run_is_named(domains, workers):
    batches = iter(_loader(domains, range(40), workers=workers))
    next(batches)
    for sample in domains[0].samples:
        sample.image.unlink()
    with pytest.raises(DataError, match=r"red_\d\d\.png does not exist"):
        list(batches)
    assert multiprocessing.active_children() == []


def test_a_domain_without_labels_is_refused_not_trained_on(domains):
    for sample in domains[0].samples:
        write_png(sample.label, np.full((64, 96), 255, np.uint8))
    with pytest.raises(DataError, match="no labelled pixel") as error:
        list(_loader(domains))
    assert "{" not in (error.value.hint or "{")


@pytest.fixture
def impatient(monkeypatch):
    """Have torch look for dead workers after a tenth of a second, not after five."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


def test_a_killed_worker_is_told_by_the_next_batches(domains, impatient, monkeypatch):
    """And not by an exception in whatever the consumer does when it dies."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # as in a new process
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    batches = iter(_loader(domains, range(100), workers=2))
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    time.sleep(0.2)  # what the consumer does
    with pytest.raises(MachineError, match="was killed") as error:
        list(batches)
    assert "fewer 'workers'" in error.value.hint
    assert multiprocessing.active_children() == []


class _Fatal(Sample):
    """A picture so large that the system ends the process that reads it."""

    def read(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_of_its_work_is_told(domains, impatient):
    with pytest.raises(MachineError, match="was killed"):
        list(_loader(_of_class(_Fatal, domains), workers=1))
    assert multiprocessing.active_children() == []


class _Starved(Sample):
    """A sample that is read where little shared memory is left."""

    def read(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        return super().read()


def test_a_lack_of_shared_memory_is_told(domains):
    with pytest.raises(MachineError, match="no shared memory left") as error:
        list(_loader(_of_class(_Starved, domains), workers=1))
    assert "--shm-size" in error.value.hint


class _Counting(Sample):
    """A sample that tells how many threads compute."""

    def read(self):
        raise DataError(f"{torch.get_num_threads()} thread(s)")


def test_a_worker_computes_in_one_thread(domains):
    torch.set_num_threads(2)
    try:
        with pytest.raises(DataError, match=r"^1 thread\(s\)"):
            list(_loader(_of_class(_Counting, domains), workers=1))
    finally:
        torch.set_num_threads(1)


def test_workers_end_with_whoever_stops_early(domains):
    for _ in _loader(domains, range(100), workers=2):
        assert len(multiprocessing.active_children()) == 2
        break
    assert multiprocessing.active_children() == []
    with pytest.raises(ZeroDivisionError):
        for _ in _loader(domains, range(100), workers=2):
            1 / 0  # noqa: B018
    assert multiprocessing.active_children() == []


def test_workers_serve_a_loop_in_another_thread(domains):
    """Only the main thread may handle signals."""
    batches: list[Batch] = []
    thread = threading.Thread(target=lambda: batches.extend(_loader(domains, workers=1)))
    thread.start()
    thread.join(timeout=60)
    assert len(batches) == 4


# Domains


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
    prepare_synthetic(["toy"])
    parts = load_domains(["toy:red"], pseudo_domains=2, seed=0)
    ids = [{s.id for s in part.samples} for part in parts]
    assert [len(part) for part in ids] == [4, 4] and not ids[0] & ids[1]
    assert [part.name for part in parts] == ["toy:red#1", "toy:red#2"]
    with pytest.raises(DataError, match="8 training samples, too few"):
        load_domains(["toy:red"], pseudo_domains=9, seed=0)
    again = load_domains(["toy:red"], pseudo_domains=2, seed=0)
    assert again == parts
