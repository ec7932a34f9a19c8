"""Windows, views and bands give what the plain formulas give, in the memory that is allowed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pinmem_core.config import ModelConfig
from pinmem_core.data.transforms import normalize
from pinmem_core.events import Notice
from pinmem_core.inference import PROTOCOLS, Predictor, Protocol
from pinmem_core.inference.sliding_window import (
    SMALLEST,
    STEP,
    MemoryModel,
    largest_crop,
    window_counts,
    windows,
)
from pinmem_core.models import Segmenter
from pinmem_core.models.flop_counter import cost_of

# Rates up to 24 at stride 8, its last 3x3, the backbone's four, and the resizing of the logits.
MARGIN = 24 * 8 + 8 + (1 + 2 + 4 + 8) + 8


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return Segmenter(ModelConfig(backbone="tiny", feature_dim=16)).eval()


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


def as_input(pixels):
    return normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1))[None]


def test_in_windows_the_scores_are_those_of_the_whole_except_near_a_window_border():
    torch.manual_seed(0)
    config = ModelConfig(backbone="tiny", decoder="deeplabv2", output_stride=8, feature_dim=16)
    segmenter = Segmenter(config)
    pixels = picture(641, 1281)
    protocol = Protocol(crop=641, overlap=1 - 480 / 641)  # stride 480: on the grid of the features
    whole = Predictor(segmenter, device="cpu").scores(pixels)
    tiled = Predictor(segmenter, device="cpu", protocol=protocol).scores(pixels)
    inside = np.ones(1281, bool)
    for left, right in ((480, 641), (640, 1121)):  # the borders that are not the image's
        inside[left : left + MARGIN] = inside[right - MARGIN : right] = False
    assert 0.2 < inside.mean() < 0.8
    close = 1e-5 * whole.abs().max().item()
    assert (tiled - whole)[:, :, inside].abs().max() < close
    assert (tiled - whole)[:, :, ~inside].abs().max() > 100 * close


@pytest.mark.parametrize("size", [(40, 56), (96, 33)])
def test_a_window_of_the_image_is_the_image(segmenter, size):
    whole = Predictor(segmenter, device="cpu").scores(picture(*size))
    window = Predictor(segmenter, device="cpu", protocol=Protocol(crop=96)).scores(picture(*size))
    assert torch.equal(whole, window)


@torch.inference_mode()
@pytest.mark.parametrize("fuse", ["logits", "probabilities"])
@pytest.mark.parametrize("crop", [None, 40])
def test_flips_and_scales_equal_the_plain_formula(segmenter, fuse, crop, monkeypatch):
    monkeypatch.setattr(
        "pinmem_core.inference.sliding_window.CHUNK", 19 * 77 * 5
    )  # bands of 5 rows
    pixels, scales = picture(61, 77), (0.5, 1.0, 1.7)
    protocol = Protocol(crop=crop, flip=True, scales=scales, fuse=fuse)
    scores = Predictor(segmenter, device="cpu", protocol=protocol).scores(pixels)

    def fused(logits):
        return logits.softmax(1).double() if fuse == "probabilities" else logits

    def seen(image, scale):
        size = image.shape[-2:]
        if crop is None:
            return fused(F.interpolate(segmenter(image), (61, 77), mode="bilinear"))
        total, times = torch.zeros(1, 19, *size, dtype=torch.float64), torch.zeros(size)
        for rows, columns in windows(*size, int(crop * scale), 1 / 3):
            total[..., rows, columns] += fused(segmenter(image[..., rows, columns]))
            times[rows, columns] += 1
        return F.interpolate(total / times, (61, 77), mode="bilinear")

    views = []
    for scale in scales:
        size = int(77 * scale), int(61 * scale)
        resized = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
        image = as_input(np.asarray(resized))
        views += [seen(image, scale), seen(image.flip(-1), scale).flip(-1)]
    expected = torch.cat(views).mean(dim=0)
    torch.testing.assert_close(scores.double(), expected.double(), rtol=1e-5, atol=1e-5)


LARGE = ((900, 1), (301, 703), (2, 20_000))


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 700), (3, 5), *(pytest.param(s, marks=pytest.mark.slow) for s in LARGE)]
)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_size_gets_a_mask_of_its_size(segmenter, size, name):
    predictor = Predictor(segmenter, device="cpu", protocol=PROTOCOLS[name], memory=2**20)
    mask = predictor.predict(picture(*size))
    assert mask.shape == size and mask.dtype == np.uint8 and mask.max() < 19


@pytest.mark.slow
@pytest.mark.parametrize("flip", [False, True])
def test_how_many_windows_are_seen_at_once_changes_nothing_but_rounding(segmenter, flip):
    pixels, protocol = picture(120, 200), Protocol(crop=48, flip=flip)
    one = Predictor(segmenter, device="cpu", protocol=protocol, memory=1)
    many = Predictor(segmenter, device="cpu", protocol=protocol)
    batches = []
    many.network.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    scores = one.scores(pixels)
    assert (many.scores(pixels) - scores).abs().max() < 1e-5 * scores.abs().max()
    assert np.array_equal(one.predict(pixels), many.predict(pixels))
    assert max(batches) > 1


def test_windows_are_as_large_as_memory_allows():
    model = MemoryModel(pixel=100, kept=10)
    assert largest_crop(500, 700, model, 100 * 500 * 700) == 700
    assert largest_crop(500, 700, MemoryModel(100, 10, views=2), 100 * 500 * 700) < 700
    side = largest_crop(5000, 7000, model, 10**8)
    assert side % STEP == 1
    assert model.of(5000, 7000, side) <= 10**8 / 2 < model.of(5000, 7000, side + STEP)
    assert largest_crop(5000, 7000, model, 0) == SMALLEST
    assert largest_crop(20, 7000, model, 10**6) == SMALLEST
    assert largest_crop(20, 700, model, 1) == SMALLEST
    assert largest_crop(20, 200, model, 1) == 200


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [Protocol(), Protocol(flip=True), PROTOCOLS["fast"]])
def test_the_memory_of_a_large_image_is_that_which_is_allowed(segmenter, protocol):
    allowed = 80 * 2**20
    predictor = Predictor(segmenter, device="cpu", protocol=protocol, memory=allowed)

    def predict() -> None:
        done = 0
        for band in predictor.bands(np.zeros((1200, 2000, 3), np.uint8)):
            assert band.rows.start == done and band.scores.shape[1] == band.rows.stop - done
            done = band.rows.stop
        assert done == 1200

    needed_at_once = 1200 * 2000 * 19 * 4
    assert cost_of(predict).memory_bytes < allowed + 2**26 < needed_at_once


def test_an_image_that_is_too_large_is_told_once(segmenter):
    pixels = picture(300, 400)
    for name, promised in (("paper-train", True), ("fast", False)):
        heard = []
        predictor = Predictor(
            segmenter,
            device="cpu",
            protocol=PROTOCOLS[name],
            memory=2 * 10**6,
            on_event=heard.append,
        )
        predictor.predict(picture(8, 8))
        assert heard == [] and not predictor.tiled
        predictor.predict(pixels)
        predictor.predict(pixels)
        (notice,) = heard
        assert isinstance(notice, Notice) and notice.warning == promised
        assert "400x300" in notice.message and f"{SMALLEST}x{SMALLEST}" in notice.message
        assert predictor.tiled == promised


@pytest.mark.parametrize("count", ["windows", "original"])
def test_windows_are_counted_band_by_band_as_at_once(count):
    places = windows(50, 70, 24, 1 / 3)
    times = torch.zeros(19, 50, 70)
    for rows, columns in places:
        times[(rows, columns) if count == "original" else (slice(None), rows, columns)] += 1
    counted = window_counts(places, (19, 50, 70), count)
    assert torch.equal(counted, times.clamp(min=1))
    band = slice(13, 29)
    assert torch.equal(window_counts(places, (19, 50, 70), count, band), counted[:, band])
