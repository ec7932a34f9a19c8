import numpy as np
import pytest
import torch

from pinmem_core.config import ModelConfig
from pinmem_core.errors import ConfigError, DataError, MachineError
from pinmem_core.home import find_run, newest_run, register_run
from pinmem_core.images import read_image, write_png
from pinmem_core.inference import PROTOCOLS, Predictor, Protocol
from pinmem_core.inference.files import output_paths, predict_files
from pinmem_core.inference.painters import get_painter
from pinmem_core.inference.protocol import windows
from pinmem_core.loading.augmentation import normalize
from pinmem_core.model import Segmenter


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return Segmenter(ModelConfig(trunk="tiny", feature_dim=16)).eval()


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


def test_one_window_is_the_whole_image(segmenter, image):
    whole = Predictor(segmenter, device="cpu", protocol=Protocol()).predict(image)
    window = Predictor(segmenter, device="cpu", protocol=Protocol(crop=64)).predict(image)
    assert np.array_equal(whole, window)


def test_protocols_describe_themselves():
    assert PROTOCOLS["paper-train"].describe() == ("whole image, scale 1, no flip, mean of logits")
    assert "sliding 768x768 (stride 512)" in PROTOCOLS["paper-eval"].describe()


def test_files_are_written_in_every_form_and_a_bad_one_does_not_stop_the_rest(
    segmenter, image, tmp_path
):
    good, bad = tmp_path / "a.png", tmp_path / "b.jpg"
    write_png(good, image)
    bad.write_bytes(b"no picture")
    predictor = Predictor(segmenter, device="cpu")
    mask = predictor.predict(image)
    for form, channels in (("color", 3), ("trainid", 0), ("labelid", 0), ("overlay", 3)):
        jobs = output_paths([bad, good], tmp_path / form)
        outcome = predict_files(predictor, jobs, get_painter(form))
        (done,), (failed,) = outcome.outputs, outcome.failed
        assert (done.width, done.height) == (56, 40) and failed.input == bad
        written = np.asarray(__import__("PIL.Image").Image.open(done.output))
        assert written.shape == (40, 56, *([channels] if channels else []))
        if form == "trainid":
            assert np.array_equal(written, mask)
    assert [p.name for p in (tmp_path / "color").iterdir()] == ["a.png"]


def test_masks_never_replace_an_input_or_each_other(tmp_path):
    with pytest.raises(ConfigError, match="replace an input"):
        output_paths([tmp_path / "a.png"], tmp_path)
    with pytest.raises(ConfigError, match="replace an input"):
        output_paths([tmp_path / "a.png"], tmp_path / "a.png")
    with pytest.raises(ConfigError, match="both be written"):
        output_paths([tmp_path / "x" / "a.png", tmp_path / "y" / "a.jpg"], tmp_path / "out")
    with pytest.raises(ConfigError, match="masks are PNG"):
        output_paths([tmp_path / "a.jpg"], tmp_path / "m.jpg")
    assert output_paths([tmp_path / "a.jpg"], tmp_path / "m.png")[0][1] == tmp_path / "m.png"


def test_images_are_read_upright_and_as_rgb(tmp_path):
    from PIL import Image

    path = tmp_path / "turned.jpg"
    picture = Image.new("L", (30, 20), 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    assert read_image(path).shape == (30, 20, 3)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_unreadable_images_are_named(tmp_path, content):
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.jpg"):
        read_image(path)


def test_the_newest_run_is_the_last_that_still_exists(tmp_path, home):
    with pytest.raises(DataError, match="no trained model"):
        newest_run()
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        register_run(tmp_path / name)
    (tmp_path / "three").rmdir()
    assert newest_run() == tmp_path / "two"
    (home / "runs" / "named").mkdir()
    assert find_run("named") == home / "runs" / "named"
    with pytest.raises(DataError, match="no run 'nobody'"):
        find_run("nobody")


def test_devices_this_machine_lacks_are_said(segmenter):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(MachineError, match="no device 'cuda'"):
        Predictor(segmenter, device="cuda")
