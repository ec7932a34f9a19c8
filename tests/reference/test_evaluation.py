"""Pooled and sliding inference, windows, and the scores."""

import dataclasses
import re
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from pinmem_core.data.transforms import normalize
from pinmem_core.evaluation.metrics import ConfusionMatrix
from pinmem_core.inference import PROTOCOLS, Predictor, Protocol
from pinmem_core.inference.sliding_window import windows

from .figures import under
from .fixtures import Fixture, every_file
from .names import model_config
from .networks import rule_segmenter

pytestmark = pytest.mark.reference

CASE = re.compile(r"(pool|sliding)/scales([\d.]+(?:_[\d.]+)*)_flip([01])")


def protocol(fixture: Fixture, way: str, scales: str, flip: str) -> Protocol:
    """Return the paper's protocol with the fixture's crop, scales and flip."""
    paper = PROTOCOLS["paper-pool" if way == "pool" else "paper-eval"]
    return dataclasses.replace(
        paper,
        crop=None if way == "pool" else fixture.settings["crop_size"],
        overlap=fixture.settings["sliding_overlap"],
        scales=tuple(map(float, scales.split("_"))),
        flip=flip == "1",
    )


@every_file("evaluation")
def test_evaluation(fixture: Fixture) -> None:
    config = model_config("DeepR50V3PlusD", 16, memory=True)
    segmenter = rule_segmenter(config, fixture.seed, fixture.dtype)
    pixels = fixture.input("image")
    for case in sorted({match[0] for key in fixture.tensors if (match := CASE.match(key))}):
        way, *view = CASE.match(case).groups()
        predictor = Predictor(segmenter, device="cpu", protocol=protocol(fixture, way, *view))
        scores = predictor.scores(pixels.numpy())
        with patch.object(predictor, "scores", return_value=scores):
            prediction = torch.from_numpy(predictor.predict(pixels.numpy()))
        fixture.compare(under(case, computed(way, scores, prediction)))
        fixture.compare({f"{case}/input": normalize(pixels.permute(2, 0, 1))[None]})
    compare_windows(fixture)
    compare_metric(fixture)


def computed(way: str, scores: Tensor, prediction: Tensor) -> dict[str, Tensor]:
    """Return scores and prediction; pooling has a dimension for the one image."""
    if way == "pool":
        return {"prob": scores[None], "pred": prediction[None]}
    return {"logits": scores, "pred": prediction}


def compare_windows(fixture: Fixture) -> None:
    """Compare [x, y, x end, y end] of every window, or how many there are."""
    overlap = fixture.settings["sliding_overlap"]
    for key in sorted(fixture.pending):
        if match := re.fullmatch(r"sliding_coords_(\d+)x(\d+)_crop(\d+)(_count)?", key):
            height, width, crop = map(int, match.groups()[:3])
            places = [
                [columns.start, rows.start, columns.stop, rows.stop]
                for rows, columns in windows(height, width, crop, overlap)
            ]
            if isinstance(fixture.about[key], dict):  # by number of the scale
                fixture.compare_fact(key, {"0": [width, height, places]})
            else:
                fixture.compare_fact(key, len(places) if match[4] else places)


def compare_metric(fixture: Fixture) -> None:
    labels = fixture.input("metric/label")
    prediction = fixture.tensors["pool/scales1.0_flip0/pred"][0]
    matrix = ConfusionMatrix()
    matrix.add(labels.numpy(), prediction.numpy())
    iou = torch.from_numpy(matrix.iou)
    hist = torch.from_numpy(matrix.counts)
    fixture.compare(under("metric", {"hist": hist, "iou": iou, "miou": iou.nanmean()}))
