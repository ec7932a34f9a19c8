"""Cached features: a frozen backbone sees every fixed view once, and training reads its outputs.

The views of an image (`augmentation.views`) are functions of (seed, domain, image, view). Their
records lie in one file in the run's folder, in the order (domain, image, view). The file is a
function of the run, so a resumed run reads it again, and computes it again where it is damaged.
"""

import hashlib
import math
import shutil
from collections.abc import Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinmem_core.config import TrainConfig
from pinmem_core.data.batches import CropBatch, CropDataset, Domain
from pinmem_core.data.loader import prefetch_crops
from pinmem_core.data.samples import ids_of
from pinmem_core.documents import json_text, read_json_object
from pinmem_core.errors import ConfigError, DataError, MachineError, PinMemError
from pinmem_core.events import Listener, Notice, Progress
from pinmem_core.files import remove_leftovers, sha256_of, staged_folder
from pinmem_core.models import Segmenter
from pinmem_core.training.run_folder import CACHE

_RECORDS, _ABOUT = "records.bin", "about.json"


class CachedCrops(CropDataset):
    """The crops of a run, with packed features (N, F) in place of images.

    Args:
        domains: Source domains.
        config: Configuration of the run.
        record: Type of a record, as of `record_type`.
        path: File with the records of all views.
    """

    def __init__(
        self, domains: Sequence[Domain], config: TrainConfig, record: np.dtype[Any], path: Path
    ) -> None:
        super().__init__(domains, config, range(config.batch), augment=False)
        self.record = record
        self.path = path

    @cached_property
    def records(self) -> NDArray[Any]:
        """The records of all views, mapped into memory."""
        return np.memmap(self.path, self.record, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        """Leave the records out: each loading process maps the file itself."""
        return {key: value for key, value in vars(self).items() if key != "records"}

    def draw(self, iteration: int) -> CropBatch:
        """Return the views of an iteration."""
        keys = self.fixed_views(iteration)
        views = self.config.augmentation.views or 1
        first = np.cumsum([0, *(len(domain.samples) for domain in self.domains)])
        chosen = self.records[[(first[d] + index) * views + view for view, d, index in keys]]
        domains = [(self.domains[domain], index) for _, domain, index in keys]
        return CropBatch(
            torch.from_numpy(chosen["features"].astype(np.float32)),
            torch.from_numpy(chosen["label"].copy()),
            (),
            tuple(f"{domain.name}/{domain.samples[index].id}" for domain, index in domains),
            redrawn=0,
        )


class _AllViews(CropDataset):
    """Every view of every image, `config.batch` at a time, in the order of the records."""

    @cached_property
    def keys(self) -> list[tuple[int, int, int]]:
        return [
            (view, number, index)
            for number, domain in enumerate(self.domains)
            for index in range(len(domain.samples))
            for view in range(self.config.augmentation.views or 1)
        ]

    def __len__(self) -> int:
        return math.ceil(len(self.keys) / self.config.batch)

    def draw(self, number: int) -> CropBatch:
        size = self.config.batch
        keys = self.keys[number * size : (number + 1) * size]
        return self.batch([self.fixed_view(*key) for key in keys])


def count_views(domains: Sequence[Domain], config: TrainConfig) -> int:
    """Return the number of fixed views of all training images."""
    return (config.augmentation.views or 1) * sum(len(domain.samples) for domain in domains)


def record_type(segmenter: Segmenter, config: TrainConfig) -> np.dtype[Any]:
    """Return the type of a record: packed features (F,) and label (crop, crop)."""
    side, training = config.augmentation.crop, segmenter.training
    image = torch.zeros((1, 3, side, side), device=next(segmenter.parameters()).device)
    count = segmenter.eval().pack(image).shape[1]
    segmenter.train(training)
    features = np.dtype(config.compute.cache_features)
    return np.dtype([("features", features, (count,)), ("label", np.uint8, (side, side))])


def cache_line(segmenter: Segmenter, domains: Sequence[Domain], config: TrainConfig) -> str:
    """Return the line of a plan that says how large the cache will be."""
    count = count_views(domains, config)
    size = count * record_type(segmenter, config).itemsize
    return (
        f"cache: features of {count:,} crops ({config.augmentation.views} of each image), "
        f"{size / 1e9:.1f} GB in the folder of the run until it ends"
    )


def cached_crops(
    run: Path,
    domains: Sequence[Domain],
    config: TrainConfig,
    segmenter: Segmenter,
    on_event: Listener,
) -> CachedCrops:
    """Return the crops of a run with cached features; compute them unless the run has them.

    Args:
        run: Folder of the run.
        domains: Source domains.
        config: Resolved configuration with `compute.cache_features`.
        segmenter: Network on its device, as at the start of the training or later.
        on_event: Callback for progress events.

    Raises:
        ConfigError: A feature exceeds the range of float16.
        DataError: An image cannot be read.
        MachineError: The disk is full.
    """
    folder = run / CACHE
    remove_leftovers(folder)
    crops = CachedCrops(domains, config, record_type(segmenter, config), folder / _RECORDS)
    key, size = _key(crops, segmenter), count_views(domains, config) * crops.record.itemsize
    if not _is_intact(folder, key, size):
        if folder.exists():
            text = "the cached features are damaged or of another run; computing them again"
            on_event(Notice(text, warning=True))
        _require_space(run, size)
        _write(folder, key, crops, segmenter, on_event)
    return crops


def _key(crops: CachedCrops, segmenter: Segmenter) -> str:
    """Return a digest of all that decides the records."""
    digest = hashlib.sha256(crops.config.model_dump_json().encode())
    digest.update(json_text([ids_of(domain.samples) for domain in crops.domains]).encode())
    for name, tensor in segmenter.backbone.pretrained().state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_intact(folder: Path, key: str, size: int) -> bool:
    path = folder / _RECORDS
    try:
        about = read_json_object(folder / _ABOUT)
        if about.get("key") != key or path.stat().st_size != size:
            return False
        return sha256_of(path) == about.get("sha256")
    except (DataError, OSError):
        return False


def _require_space(run: Path, size: int) -> None:
    free = shutil.disk_usage(run).free
    if size > free:
        raise MachineError(
            f"the cached features need {size / 1e9:.1f} GB, and the disk of {run} has "
            f"{free / 1e9:.1f} GB left.",
            "Use fewer 'augmentation.views', a smaller '--crop', or another '--output'.",
        )


def _write(
    folder: Path, key: str, crops: CachedCrops, segmenter: Segmenter, on_event: Listener
) -> None:
    """Compute and write the records of all views."""
    config, device = crops.config, next(segmenter.parameters()).device
    normalization = segmenter.normalization
    views = _AllViews(
        crops.domains,
        config,
        crops.slots,
        augment=device.type != "cuda",
        normalization=normalization,
    )
    loaded = prefetch_crops(
        views, range(len(views)), workers=config.workers, pin_memory=device.type == "cuda"
    )
    segmenter.eval()
    digest = hashlib.sha256()
    with staged_folder(folder) as work, (work / _RECORDS).open("wb") as file, closing(loaded):
        for done, batch in enumerate(loaded, start=1):
            if isinstance(batch, PinMemError):
                raise batch
            moved = batch._replace(images=batch.images.to(device))
            features = segmenter.pack(moved.augmented(normalization).images)
            records = _records(crops.record, features)
            records["label"] = batch.labels.numpy()
            data = records.tobytes()
            digest.update(data)
            file.write(data)
            on_event(Progress("caching features", done, len(views)))
        (work / _ABOUT).write_text(json_text({"key": key, "sha256": digest.hexdigest()}))


def _records(record: np.dtype[Any], features: Tensor) -> NDArray[Any]:
    """Return records with packed features (N, F), and without labels."""
    records = np.empty(len(features), record)
    records["features"] = features.to(torch.from_numpy(records["features"]).dtype).cpu().numpy()
    if not np.isfinite(records["features"]).all():
        raise ConfigError(
            f"the features of the backbone exceed the range of {record['features'].base}.",
            "Use '--set compute.cache_features=float32'.",
        )
    return records
