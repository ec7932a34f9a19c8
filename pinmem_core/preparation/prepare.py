"""One command from a folder of images and labels to a prepared dataset."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinmem_core.datasets import DatasetCard, Layout, get_card
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.files import staged_folder
from pinmem_core.home import dataset_root
from pinmem_core.images import image_size, read_image, read_label, write_png
from pinmem_core.labels import CLASSES, IGNORE_INDEX, LabelMap
from pinmem_core.preparation.layouts import RawSample, find_samples
from pinmem_core.preparation.prepared import (
    MANIFEST,
    SCHEMA_VERSION,
    SUMMARY,
    PreparedDataset,
    Sample,
    Selection,
    digest,
)
from pinmem_core.version import __version__

HELD_OUT = 5
"""Where a layout has no splits, one sample in so many is held out for validation."""


@dataclass(frozen=True)
class _Converted:
    sample: Sample
    label_sha256: str
    pixels: NDArray[np.int64]  # (19,) by trainId


@dataclass(frozen=True)
class Defect:
    """A sample that was left out, and why."""

    file: str
    reason: str


def prepare(
    card: DatasetCard,
    source: Path | None = None,
    *,
    strict: bool = False,
    on_event: Listener = ignore,
) -> PreparedDataset:
    """Verify and remap a dataset, and write its prepared form under `PINMEM_HOME`.

    Samples with a defect (unreadable file, missing label, label of another size, values that the
    label map does not know, nothing labelled) are left out and listed with the reason. The
    prepared dataset replaces an older one only when it is complete.

    Args:
        card: The dataset.
        source: The folder that holds it; None for a dataset that pinmem draws itself.
        strict: Refuse the dataset at the first defect instead of leaving samples out.
        on_event: Hears of the progress.

    Raises:
        ConfigError: The dataset cannot be drawn and no folder is named.
        DataError: The folder does not hold the dataset, or nothing in it is usable.
    """
    if source is None and card.draw is None:
        raise ConfigError(
            f"pinmem does not know where you have {card.name}.",
            f"Name the folder: 'pinmem data prepare {card.name} --from FOLDER' ({card.homepage}).",
        )
    root = dataset_root(card.name)
    with staged_folder(root) as staging:
        if source is None and card.draw:
            source = staging / "raw"
            card.draw(source, lambda done, total: on_event(Progress("drawing", done, total)))
        assert source is not None
        layout, raw = find_samples(card, source.expanduser().absolute())
        converted, defects = _convert_all(raw, layout.label_map, staging, on_event)
        if defects and (strict or not converted):
            first = defects[0]
            raise DataError(
                f"{len(defects)} of {len(raw)} samples of {card.name} cannot be used; the first: "
                f"{first.file}: {first.reason}.",
                "Nothing was written." + (" Without --strict they are left out." if strict else ""),
            )
        _write(staging, card, layout, source, converted, defects)
    return PreparedDataset.open(card.name)


def draw_missing(selections: Iterable[str], on_event: Listener = ignore) -> None:
    """Prepare those datasets of `selections` that pinmem draws itself and that are not there yet.

    Raises:
        ConfigError: A selection is not understood.
    """
    for name in {Selection.parse(text).dataset: None for text in selections}:
        if get_card(name).draw and not (dataset_root(name) / SUMMARY).exists():
            prepare(get_card(name), on_event=on_event)


def _convert_all(
    raw: Sequence[RawSample], label_map: LabelMap, staging: Path, on_event: Listener
) -> tuple[list[_Converted], list[Defect]]:
    splits = _splits(raw)
    converted: list[_Converted] = []
    defects: list[Defect] = []

    def convert(sample: RawSample) -> _Converted | Defect:
        return _convert(sample, splits[sample.id], label_map, staging)

    with ThreadPoolExecutor() as pool:
        for done, result in enumerate(pool.map(convert, raw), start=1):
            if isinstance(result, Defect):
                defects.append(result)
            else:
                converted.append(result)
            on_event(Progress("preparing", done, len(raw)))
    return converted, defects


def _splits(raw: Sequence[RawSample]) -> dict[str, str]:
    """Return each sample's split; without one on disk, each domain's last fifth is "val".

    A contiguous part is held out because neighbouring frames of a drive are nearly the same.
    """
    by_domain: dict[str, list[str]] = defaultdict(list)
    for sample in raw:
        by_domain[sample.domain].append(sample.id)
    held_out = {
        sample_id
        for ids in by_domain.values()
        for sample_id in ids[len(ids) - len(ids) // HELD_OUT :]
    }
    return {s.id: s.split or ("val" if s.id in held_out else "train") for s in raw}


def _convert(raw: RawSample, split: str, label_map: LabelMap, staging: Path) -> _Converted | Defect:
    """Check one pair and write its trainId label, or say why it cannot be used."""
    if not raw.label.exists():
        return Defect(str(raw.image), f"its label {raw.label} is missing")
    try:
        read_image(raw.image)  # to the last byte: a torn file shows only there
        width, height = image_size(raw.image)
    except DataError as error:
        return Defect(str(raw.image), error.message.rstrip("."))
    try:
        train_ids, unknown = label_map.apply(read_label(raw.label))
    except (DataError, ValueError) as error:
        return Defect(str(raw.label), str(error).rstrip("."))
    if train_ids.shape != (height, width):
        size = f"{train_ids.shape[1]}x{train_ids.shape[0]}"
        return Defect(str(raw.label), f"is {size}, but its image is {width}x{height}")
    if unknown:
        values = ", ".join(map(str, unknown[:5]))
        return Defect(str(raw.label), f"holds values that the label map does not know: {values}")
    pixels = np.bincount(train_ids[train_ids != IGNORE_INDEX], minlength=len(CLASSES))
    if not pixels.any():
        return Defect(str(raw.label), "labels no pixel")
    label = Path("labels", f"{raw.id}.png")
    write_png(staging / label, train_ids)
    image = raw.image.relative_to(staging) if raw.image.is_relative_to(staging) else raw.image
    sample = Sample(raw.id, image, label, split, raw.domain, width, height)
    return _Converted(sample, hashlib.sha256(train_ids.tobytes()).hexdigest(), pixels)


def _write(
    staging: Path,
    card: DatasetCard,
    layout: Layout,
    source: Path,
    converted: Sequence[_Converted],
    defects: Sequence[Defect],
) -> None:
    lines = [c.sample.to_json() for c in converted]
    (staging / MANIFEST).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    pixels = sum((c.pixels for c in converted), np.zeros(len(CLASSES), dtype=np.int64))
    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "dataset": card.name,
        "title": card.title,
        "card_version": card.version,
        "layout": layout.name,
        "source": "raw" if source.is_relative_to(staging) else str(source.absolute()),
        "label_map": {"name": layout.label_map.name, "digest": layout.label_map.digest},
        "counts": dict(sorted(Counter(c.sample.split for c in converted).items())),
        "class_pixels": {c.name: int(pixels[c.train_id]) for c in CLASSES},
        "excluded": [{"file": d.file, "reason": d.reason} for d in defects],
        "digest": digest((c.sample, c.label_sha256) for c in converted),
        "pinmem_version": __version__,
    }
    (staging / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
