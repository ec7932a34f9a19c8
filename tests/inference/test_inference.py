import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.exc import TorchDynamoException

from pinmem_core.config import ModelConfig
from pinmem_core.data.transforms import normalize
from pinmem_core.devices import pick_device
from pinmem_core.errors import ConfigError, DataError, MachineError
from pinmem_core.inference import Predictor, Protocol
from pinmem_core.inference.loading import load
from pinmem_core.inference.predictor import Prediction
from pinmem_core.inference.sliding_window import windows
from pinmem_core.models import Segmenter, save_checkpoint
from pinmem_core.paths import find_run, newest_run, register_run


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return Segmenter(ModelConfig(backbone="tiny", feature_dim=16)).eval()


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(40, 56), (1, 1), (1, 33), (97, 5)])
def test_the_mask_has_the_size_of_the_image_and_is_the_same_every_time(segmenter, size):
    predictor = Predictor(segmenter, device="cpu")
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = predictor.predict(pixels)
    assert mask.shape == size and mask.dtype == np.uint8 and mask.max() < 19
    assert np.array_equal(mask, predictor.predict(pixels))


def test_pixels_that_would_be_normalized_in_another_way_are_refused(segmenter, image):
    predictor = Predictor(segmenter, device="cpu")
    scaled = (image / 255).astype(np.float32)
    for odd in (image.astype(np.float32), scaled, image.astype(int), image > 9, image[..., 0]):
        with pytest.raises(DataError, match=re.escape(f"{odd.shape} of {odd.dtype}")):
            predictor.predict(odd)
    for odd in (np.dstack([image, image[..., 0]]), image.transpose(2, 0, 1), image[:0]):
        with pytest.raises(DataError, match=re.escape(str(odd.shape))):
            predictor.predict(odd)
    for odd in (Image.fromarray(image), torch.from_numpy(image), image.tolist()):
        with pytest.raises(DataError, match=f"this is a {type(odd).__name__}"):
            predictor.analyze(odd, confidence=True)


def test_a_model_is_loaded_with_a_protocol_by_its_name(segmenter, tmp_path):
    save_checkpoint(segmenter, tmp_path / "model", {})
    predictor = load(str(tmp_path / "model"), device="cpu", protocol="paper-train+flip")
    assert predictor.protocol == Protocol(flip=True)
    with pytest.raises(ConfigError, match="unknown protocol 'paper'"):
        load(str(tmp_path / "model"), device="cpu", protocol="paper")


def test_windows_cover_everything_and_stay_inside():
    for height, width, crop in ((128, 192, 96), (100, 97, 33), (5, 200, 40), (64, 64, 64)):
        seen = np.zeros((height, width), bool)
        for rows, columns in windows(height, width, crop, 1 / 3):
            assert rows.stop <= height and columns.stop <= width
            seen[rows, columns] = True
        assert seen.all()


@torch.inference_mode()
@pytest.mark.parametrize("fuse", ["logits", "probabilities"])
def test_sliding_and_flipping_equal_the_plain_loop(segmenter, image, fuse):
    protocol = Protocol(crop=24, flip=True, fuse=fuse)
    scores = Predictor(segmenter, device="cpu", protocol=protocol).scores(image)

    whole = normalize(torch.from_numpy(image).permute(2, 0, 1))[None]
    total, times = torch.zeros(19, 40, 56), torch.zeros(40, 56)
    for top in (0, 16):
        for left in (0, 16, 32):
            crop = whole[..., top : top + 24, left : left + 24]
            out = segmenter(crop)
            total[:, top : top + 24, left : left + 24] += _fuse(out, fuse)
            times[top : top + 24, left : left + 24] += 1
    flipped, mirror = torch.zeros(19, 40, 56), whole.flip(-1)
    for top in (0, 16):
        for left in (0, 16, 32):
            crop = mirror[..., top : top + 24, left : left + 24]
            flipped[:, top : top + 24, left : left + 24] += _fuse(segmenter(crop), fuse)
    expected = (total / times + (flipped / times).flip(-1)) / 2
    torch.testing.assert_close(scores.float(), expected, rtol=1e-5, atol=1e-6)


def _fuse(logits, fuse):
    return (logits.softmax(1) if fuse == "probabilities" else logits)[0]


def test_the_newest_run_is_the_last_that_still_exists(tmp_path, home):
    with pytest.raises(DataError, match="no trained model"):
        newest_run()
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        register_run(tmp_path / name)
    (tmp_path / "three").rmdir()
    assert newest_run() == tmp_path / "two"
    for name, part_of in (("four", "demo"), ("five", "study")):
        (tmp_path / name).mkdir()
        register_run(tmp_path / name, part_of=part_of)
        register_run(tmp_path / name)
    assert newest_run() == tmp_path / "two"
    (home / "runs" / "named").mkdir()
    assert find_run("named") == home / "runs" / "named"
    with pytest.raises(DataError, match="no run 'nobody'"):
        find_run("nobody")


@pytest.mark.parametrize("fuse", ["logits", "probabilities"])
def test_an_analysis_says_how_sure_the_network_is(segmenter, image, fuse):
    predictor = Predictor(segmenter, device="cpu", protocol=Protocol(fuse=fuse))
    scores = predictor.scores(image).double()
    shares = (scores if fuse == "probabilities" else scores.softmax(0)).numpy()
    found = predictor.analyze(image, confidence=True, entropy=True, probabilities=True)
    assert np.array_equal(found.train_ids, predictor.predict(image))
    np.testing.assert_allclose(found.confidence, shares.max(axis=0), rtol=1e-5)
    entropy = -(shares * np.log(shares)).sum(axis=0) / np.log(19)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-5)
    np.testing.assert_allclose(found.probabilities, shares, atol=1e-3)
    types = found.confidence.dtype, found.entropy.dtype, found.probabilities.dtype
    assert types == (np.float32, np.float32, np.float16)
    plain = predictor.analyze(image)
    assert plain.confidence is plain.entropy is plain.probabilities is None


def test_entropy_is_0_for_one_class_and_1_for_all_alike():
    scores = torch.stack([torch.zeros(1, 2), torch.tensor([[0.0, 1e4]]), torch.zeros(1, 2)])
    found = Prediction.empty(3, (1, 2), (False, True, False))
    found.fill(slice(0, 1), scores, are_probabilities=False)
    assert found.entropy.tolist() == [[1.0, 0.0]]


@torch.inference_mode()
@pytest.mark.parametrize(
    "config",
    [
        {"backbone": "mobilenet_v2", "feature_dim": 32},
        {"backbone": "resnet18", "output_stride": 32, "memory": None},
        {"backbone": "tiny", "decoder": "deeplabv2", "output_stride": 8},
    ],
)
def test_batch_norms_are_folded_and_the_network_given_stays_as_it_is(config, image):
    torch.manual_seed(0)
    network = Segmenter(ModelConfig(**config))
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
            torch.nn.init.uniform_(norm.bias, -0.1, 0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    predictor = Predictor(network, device="cpu")
    seen = normalize(torch.from_numpy(image).permute(2, 0, 1))[None]
    norms = [m for m in predictor.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == (2 if network.memory else 1)  # of the training heads
    expected = network(seen)[0]
    close = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(predictor.scores(image), expected, rtol=0, atol=close)
    after = predictor.segmenter.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@torch.inference_mode()
def test_norms_with_an_images_own_statistics_overwrite_what_they_normalise(image):
    torch.manual_seed(0)
    network = Segmenter(ModelConfig(backbone="mobilenet_v2", feature_dim=32, test_time_bn=0.3))
    predictor = Predictor(network, device="cpu")
    overwriting = [m for m in predictor.network.modules() if getattr(m, "inplace", None)]
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len([m for m in overwriting if isinstance(m, torch.nn.BatchNorm2d)]) == len(norms) - 2
    assert not any(norm.inplace for norm in norms)
    seen = normalize(torch.from_numpy(image).permute(2, 0, 1))[None]
    expected = network(seen)[0]
    close = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(predictor.scores(image), expected, rtol=0, atol=close)


def test_what_cannot_be_folded_is_left(image):
    class Reused(Segmenter):
        """Uses a convolution's output beside its batch norm, too."""

        def encode(self, images):
            encoding = super().encode(images)
            return encoding._replace(
                feature=encoding.feature + self.backbone.stem[0](images).mean()
            )

    torch.manual_seed(0)
    network = Reused(ModelConfig(backbone="tiny", feature_dim=16, memory=None)).eval()
    torch.nn.init.constant_(network.backbone.stem[1].running_var, 9)
    scores = Predictor(network, device="cpu").scores(image)
    with torch.no_grad():
        expected = network(normalize(torch.from_numpy(image).permute(2, 0, 1))[None])[0]
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


def test_half_precision_is_the_predictors_alone(segmenter, image):
    half = Predictor(segmenter, device="cpu", precision="bf16")
    full = Predictor(segmenter, device="cpu")
    assert segmenter.autocast is None
    difference = (half.scores(image) - full.scores(image)).abs().max()
    assert 0 < difference < 0.05 * full.scores(image).abs().max()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
def test_a_compiled_network_predicts_the_same(segmenter, image):
    plain = Predictor(segmenter, device="cpu")
    compiled = Predictor(segmenter, device="cpu", compile=True)
    assert compiled.compiled and not plain.compiled
    for pixels in (image, image[:33, :41]):
        expected, found = plain.scores(pixels), compiled.scores(pixels)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert next(segmenter.parameters()).requires_grad


def test_what_torch_cannot_compile_is_said(segmenter, image, monkeypatch):
    monkeypatch.setattr(torch, "compile", fail_to_compile)
    predictor = Predictor(segmenter, device="cpu", compile=True)
    with pytest.raises(MachineError, match=r"compile the network: no compiler\.$") as caught:
        predictor.predict(image)
    assert "g++" in caught.value.hint


def fail_to_compile(function, **options):
    def fail(*inputs):
        raise TorchDynamoException("no compiler\n\nand many more lines")

    return fail


def test_a_lack_of_gpu_memory_is_said(segmenter, image, monkeypatch):
    predictor = Predictor(segmenter, device="cpu")

    def fail(images):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(predictor.network, "forward", fail)
    with pytest.raises(MachineError, match="1 window of 56x40 did not fit"):
        predictor.predict(image)


def test_devices_this_machine_lacks_are_said(segmenter, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(MachineError, match=f"no device '{name}'"):
            Predictor(segmenter, device=name)
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        Predictor(segmenter, device="gpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_best_device_is_chosen(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == chosen
