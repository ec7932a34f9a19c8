"""What pinmem reads back: prepared datasets, records, run folders, reports."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzz.cases import INTACT_SHARE, RIGHT, Case, Target, require
from fuzz.mutators import mutated_bytes, mutated_json
from fuzz.readers import json_of_accepted, strict_json
from pinmem_core.config import TrainConfig
from pinmem_core.data.catalog import get_card
from pinmem_core.data.convert import read_records
from pinmem_core.data.prepare import prepare
from pinmem_core.data.prepared import PreparedDataset
from pinmem_core.data.state import state_of
from pinmem_core.evaluation.compare import SavedReport, compare
from pinmem_core.evaluation.metrics import ConfusionMatrix
from pinmem_core.images import write_png
from pinmem_core.label_space import CITYSCAPES, MOST_CLASSES
from pinmem_core.training.run_folder import RunFolder

PLACE = "home/datasets/camvid"


@contextmanager
def home_in(folder: Path) -> Iterator[None]:
    """Let pinmem keep its data in `folder` during the block."""
    before = os.environ.get("PINMEM_HOME")
    os.environ["PINMEM_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("PINMEM_HOME")
        if before is not None:
            os.environ["PINMEM_HOME"] = before


@cache
def prepared_files() -> Mapping[str, bytes]:
    """Return the files of a prepared dataset of six samples, by path below its folder.

    Its images are gone, as after a disk was moved; only packing needs them.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = prepare_in(Path(folder)).root
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def prepare_in(folder: Path) -> PreparedDataset:
    """Prepare a dataset of six samples below `folder`."""
    rng = np.random.default_rng(0)
    for number in range(6):
        name = f"{('0001TP', 'Seq05VD')[number % 2]}_{number:05}.png"
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        write_png(folder / "raw" / "images" / name, pixels)
        write_png(folder / "raw" / "labels" / name, pixels[..., 0] % 12)
    with home_in(folder / "home"):
        return prepare(get_card("camvid"), [folder / "raw"])


def _mutated_jsonl(rng: Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            return mutated_bytes(rng, data)
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[place])
        case 2:
            del lines[place]
        case 3:
            lines[-1] = lines[-1][: rng.randrange(len(lines[-1]))]
        case _:
            lines[place] = mutated_json(rng, json.loads(lines[place])) + b"\n"
    return b"".join(lines)


def _make_prepared(name: str, *, is_lines: bool) -> Any:
    def make(rng: Random) -> Case:
        files = dict(prepared_files())
        intact = rng.random() < INTACT_SHARE
        if not intact and is_lines:
            files[name] = _mutated_jsonl(rng, files[name])
        elif not intact:
            files[name] = mutated_json(rng, json.loads(files[name]))
        return Case({f"{PLACE}/{path}": content for path, content in files.items()}, intact)

    return make


def _read_prepared(case: Case, folder: Path) -> str:
    dataset = PreparedDataset.open("camvid")
    require(dataset.summary == json_of_accepted(case.files[f"{PLACE}/dataset.json"]), "other facts")
    lines = case.files[f"{PLACE}/manifest.jsonl"].decode().splitlines()
    entries = [json_of_accepted(line) for line in lines if line.strip()]
    require(len(entries) == len(dataset.samples), f"{len(dataset.samples)} of {len(entries)} lines")
    for entry, sample in zip(entries, dataset.samples, strict=True):
        said = (entry["id"], entry["split"], entry["domain"], entry["width"], entry["height"])
        found = (sample.id, sample.split, sample.domain, sample.width, sample.height)
        require(found == said, f"{found} instead of {said}")
        texts = all(isinstance(value, str) for value in said[:3])
        numbers = all(type(value) is int and value > 0 for value in said[3:])
        require(texts and numbers, f"fields of odd kinds: {said}")
        require(sample.image.is_absolute() and sample.label.is_absolute(), "a path is relative")
    state_of(get_card("camvid"))
    return RIGHT


def _read_records(case: Case, folder: Path) -> str:
    data = case.files[f"{PLACE}/conversions.jsonl"]
    found = [strict_json(record.to_json()) for record in read_records(folder / PLACE)]
    valid = []
    for line in data.split(b"\n"):
        try:
            valid.append(strict_json(line.decode()))
        except ValueError:
            continue
    for record in found:
        require(record in valid, f"a record that no line holds: {record}")
        pixels = record["pixels"]
        require(all(type(n) is int and n >= 0 for n in pixels), f"odd counts: {pixels}")
        require(2 <= len(pixels) <= MOST_CLASSES, f"{len(pixels)} counts")
        texts = (record["key"], record["label_sha256"], record["sample"]["id"])
        require(all(isinstance(text, str) for text in texts), f"odd texts: {texts}")
    known = prepared_files()["conversions.jsonl"].split(b"\n")
    whole = [strict_json(line) for line in known if line and line in data.split(b"\n")]
    require(all(record in found for record in whole), "a line that is whole was lost")
    return RIGHT


_SAMPLES = {"train": {"camvid:0001TP": ["a", "b"], "camvid:Seq05VD": ["c"]}, "digests": {"x": "y"}}


def _make_samples(rng: Random) -> Case:
    if rng.random() < INTACT_SHARE:
        return Case({"run/samples.json": json.dumps(_SAMPLES).encode()}, intact=True)
    return Case({"run/samples.json": mutated_json(rng, _SAMPLES)})


def _read_samples(case: Case, folder: Path) -> str:
    warnings: list[object] = []
    RunFolder(folder / "run").require_same(_SAMPLES, warnings.append)
    given = (folder / "run" / "samples.json").read_bytes()  # written anew where it was damaged
    taken = json_of_accepted(given)
    taken = {"digests": _SAMPLES["digests"], **taken}  # earlier versions recorded none
    require(taken == _SAMPLES, "others were taken for them")
    require(bool(warnings) == (given != case.files["run/samples.json"]), "a warning is missing")
    return RIGHT


_METRICS = "".join(
    json.dumps({"iteration": n, "loss": 1 / n, "lr": 0.01, "loss/aux": 0.5}) + "\n"
    for n in range(1, 8)
)


def _make_metrics(rng: Random) -> Case:
    data = _METRICS.encode()
    if rng.random() < INTACT_SHARE:
        return Case({"run/metrics.jsonl": data}, intact=True)
    return Case({"run/metrics.jsonl": _mutated_jsonl(rng, data)})


def _read_metrics(case: Case, folder: Path) -> str:
    lines = RunFolder(folder / "run").metrics()
    valid = []
    for line in case.files["run/metrics.jsonl"].split(b"\n"):
        try:
            valid.append(strict_json(line.decode()))
        except ValueError:
            continue
    require(all(line in valid for line in lines), "a line that the file does not hold")
    for line in lines:
        numbers = all(isinstance(value, int | float) for value in line.values())
        require(numbers, f"a value is no number: {line}")
    return RIGHT


def _make_config(rng: Random) -> Case:
    config = _run_config()
    if rng.random() < INTACT_SHARE:
        return Case({"run/config.json": json.dumps(config).encode()}, intact=True)
    return Case({"run/config.json": mutated_json(rng, config)})


@cache
def _run_config() -> dict[str, Any]:
    settings = {"sources": ["camvid:0001TP"], "iterations": 3}
    return TrainConfig.model_validate(settings).model_dump(mode="json")


def _read_config(case: Case, folder: Path) -> str:
    config = RunFolder(folder / "run").read_config().model_dump(mode="json")
    given = json_of_accepted(case.files["run/config.json"])
    require(_contains(config, given), "a value is not the file's")
    return RIGHT


def _contains(found: Any, given: Any) -> bool:
    """Return whether all values of `given` are those of `found`."""
    if isinstance(given, dict) and isinstance(found, dict):
        return all(key in found and _contains(found[key], value) for key, value in given.items())
    if isinstance(given, list) and isinstance(found, list):
        return len(given) == len(found) and all(map(_contains, found, given))
    if isinstance(found, str) or isinstance(given, str):  # pydantic reads "5" as 5
        return (
            str(found).strip().lower() == str(given).strip().lower() or _as_number(given) == found
        )
    return bool(found == given)


def _as_number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


@cache
def _report() -> dict[str, Any]:
    table = np.zeros((19, 20), np.int64)
    table[0, 0], table[1, 0], table[2, 2], table[3, 19] = 50, 5, 30, 2
    matrix = ConfusionMatrix(table[:, :-1].copy(), table[:, -1].copy())
    cells = np.flatnonzero(table)
    images = [
        {
            "id": f"i{n}",
            "miou": 0.5,
            "cells": cells.tolist(),
            "pixels": table.ravel()[cells].tolist(),
        }
        for n in range(3)
    ]
    target = {
        "split": "val",
        "dataset_digest": "0" * 64,
        "miou": float(matrix.miou()),
        "iou": dict.fromkeys(CITYSCAPES.names, 0.5),
        "per_image": images,
        "seen": False,
    }
    return {
        "schema_version": 2,
        "model": "a",
        "protocol": {"name": "fast", "description": "whole image"},
        "precision": "fp32",
        "classes": list(CITYSCAPES.names),
        "targets": {"camvid:0001TP": target},
    }


def _make_report(rng: Random) -> Case:
    intact = json.dumps(_report()).encode()
    if rng.random() < INTACT_SHARE:
        return Case({"a.json": intact, "b.json": intact}, intact=True)
    return Case({"a.json": intact, "b.json": mutated_json(rng, _report())})


def _read_report(case: Case, folder: Path) -> str:
    report = SavedReport.read(folder / "b.json")
    given = json_of_accepted(case.files["b.json"])
    for name, target in report.targets.items():
        said = given["targets"][name]
        require(isinstance(target.miou, float | int) and 0 <= target.miou <= 1, "an odd mIoU")
        for image, entry in zip(target.images, said["per_image"], strict=True):
            table = np.column_stack([image.counts, image.missed]).ravel()
            cells, pixels = entry["cells"], entry["pixels"]
            good = all(type(cell) is int and 0 <= cell < 380 for cell in cells)
            good &= len(set(map(str, cells))) == len(cells)
            good &= all(type(count) is int and count >= 0 for count in pixels)
            require(good and len(cells) == len(pixels), "odd counts were accepted")
            require(table[cells].tolist() == pixels, "other counts")
    compare([SavedReport.read(folder / "a.json"), report])
    return RIGHT


TARGETS = (
    Target("manifest.jsonl", _make_prepared("manifest.jsonl", is_lines=True), _read_prepared),
    Target("dataset.json", _make_prepared("dataset.json", is_lines=False), _read_prepared),
    Target("conversions.jsonl", _make_prepared("conversions.jsonl", is_lines=True), _read_records),
    Target("samples.json", _make_samples, _read_samples, 2),
    Target("metrics.jsonl", _make_metrics, _read_metrics, 2),
    Target("config.json of a run", _make_config, _read_config),
    Target("report.json", _make_report, _read_report, 6),
)
