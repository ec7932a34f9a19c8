"""Predicting without -o, from web addresses, from a camera, resumed, and while images appear."""

import io
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Result
from http_server import Mood, serving
from PIL import Image

from pinmem_core.images import write_png
from pinmem_core.inference import PROTOCOLS, remote, watch
from pinmem_core.label_space import CITYSCAPES

PINMEM = [sys.executable, "-m", "pinmem_cli"]


class Network:
    """Predicts class 13 (car) in the upper half of every image, and class 0 (road) below."""

    protocol, label_space = PROTOCOLS["fast"], CITYSCAPES

    def __init__(self, interrupted_at=None):
        self.images, self.interrupted_at = 0, interrupted_at

    def analyze(self, pixels, **_):
        if self.images == self.interrupted_at:
            raise KeyboardInterrupt
        self.images += 1
        ids = np.zeros(pixels.shape[:2], np.uint8)
        ids[: len(ids) // 2] = 13
        return SimpleNamespace(train_ids=ids, space=CITYSCAPES)


@pytest.fixture
def network(monkeypatch):
    """Have every model be `Network`, and let the test interrupt it."""
    fake = Network()
    monkeypatch.setattr("pinmem_core.inference.loading.load", lambda *_, **__: fake)
    return fake


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def photos(folder, *names):
    for number, name in enumerate(names):
        write_png(Path(folder, name), np.full((40, 60, 3), 10 * number % 256, np.uint8))


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


def png(size=(60, 40)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "navy").save(file, "PNG")
    return file.getvalue()


# Where the masks go


@pytest.mark.parametrize(
    ("inputs", "options", "outputs"),
    [
        (["in"], [], ["in-masks/a.png", "in-masks/sub/b.png"]),
        (["in/"], [], ["in-masks/a.png", "in-masks/sub/b.png"]),
        (["in/a.png"], [], ["in/a-mask.png"]),
        (
            ["in/a.png"],
            ["--format", "color,trainid"],
            ["in/a-mask_color.png", "in/a-mask_trainid.png"],
        ),
        (["in/a.png", "in/sub/b.png"], [], ["masks/a.png", "masks/b.png"]),
        (["in/**/*.png"], [], ["masks/a.png", "masks/sub/b.png"]),
    ],
)
def test_without_an_output_masks_lie_next_to_the_input(network, inputs, options, outputs):
    photos("in", "a.png", "sub/b.png")
    before = set(files("."))
    done = Result("predict", *inputs, *options)
    assert done.code == 0, done.err
    assert sorted(set(files(".")) - before) == outputs
    assert [line.split("  ")[0] for line in done.out.splitlines()] == outputs


def test_the_current_folder_gets_its_masks_next_to_it(network, tmp_path, monkeypatch):
    photos("in", "a.png")
    monkeypatch.chdir(tmp_path / "in")
    assert Result("predict", ".").code == 0
    assert files(tmp_path) == ["in-masks/a.png", "in/a.png"]


def test_a_missing_input_is_reported_before_torch_is_loaded():
    code = (
        "import sys; from pinmem_cli.app import app\n"
        "try: app(['predict', 'nowhere.jpg'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["3", "False"]
    assert done.stderr.startswith("error: nowhere.jpg does not exist.")


# What comes out


def test_a_palette_has_the_values_of_trainid_in_the_colours_of_the_classes(network):
    photos("in", "a.png")
    assert Result("predict", "in", "-o", "out", "--format", "palette,trainid").code == 0
    palette, plain = (Image.open(f"out/a_{name}.png") for name in ("palette", "trainid"))
    assert palette.mode == "P" and plain.mode == "L"
    assert np.array_equal(np.asarray(palette), np.asarray(plain))
    assert np.array_equal(
        np.asarray(palette.convert("RGB")), CITYSCAPES.color_table[np.asarray(plain)]
    )


def test_json_holds_the_share_of_each_class_in_each_image(network):
    photos("in", "a.png", "b.png")
    data = Result("predict", "in", "--json").json
    assert [one["shares"] for one in data["outputs"]] == [{"road": 0.5, "car": 0.5}] * 2
    assert data["skipped"] == 0


def test_a_legend_lies_below_coloured_pictures_only(network):
    photos("in", "a.png")
    assert Result("predict", "in", "--format", "color,overlay,trainid", "--legend").code == 0
    sizes = {n: Image.open(f"in-masks/a_{n}.png").size for n in ("color", "overlay", "trainid")}
    assert sizes["color"] == sizes["overlay"] and sizes["trainid"] == (60, 40)
    assert sizes["color"][0] == 60 and sizes["color"][1] > 40
    colored = np.asarray(Image.open("in-masks/a_color.png"))
    assert np.array_equal(colored[0, 0], CITYSCAPES.color_table[13])
    shown = {tuple(color) for color in colored[40:].reshape(-1, 3).tolist()}
    assert {
        tuple(CITYSCAPES.color_table[0].tolist()),
        tuple(CITYSCAPES.color_table[13].tolist()),
    } <= shown
    assert tuple(CITYSCAPES.color_table[10].tolist()) not in shown  # the sky, which is not there
    refused = Result("predict", "in", "-o", "x", "--format", "trainid", "--legend")
    assert refused.code == 2 and "--legend" in refused.err


# Again


def test_existing_outputs_are_left_and_only_missing_ones_made(network):
    photos("in", "a.png", "b.png", "c.png")
    assert Result("predict", "in/a.png", "-o", "out").code == 0
    Path("out/a.png").write_bytes(b"mine")
    again = Result("predict", "in", "-o", "out")
    assert again.code == 2 and "--skip-existing" in again.err
    done = Result("predict", "in", "-o", "out", "--skip-existing", "--json").json
    assert [Path(one["output"]).name for one in done["outputs"]] == ["b.png", "c.png"]
    assert done["skipped"] == 1 and Path("out/a.png").read_bytes() == b"mine"
    network.interrupted_at = 0  # nothing is left to predict
    nothing = Result("predict", "in", "-o", "out", "--skip-existing")
    assert nothing.code == 0 and "0 images, 3 skipped" in nothing.err
    for other in ("--force", "--watch"):
        assert Result("predict", "in", "-o", "out", "--skip-existing", other).code == 2


def test_the_hint_after_ctrl_c_works_when_pasted(network, monkeypatch):
    photos("in dir", *(f"{number:02}.png" for number in range(20)))
    arguments = ["predict", "in dir", "-o", "out", "--format", "trainid"]
    monkeypatch.setattr(sys, "argv", ["pinmem", *arguments])
    network.interrupted_at = 12
    stopped = Result(*arguments)
    assert stopped.code == 130 and "of 20 inputs are done" in stopped.err
    hint = stopped.err.splitlines()[-1].removeprefix("Continue with: ")
    first = files("out")
    network.interrupted_at = None
    rest = Result(*shlex.split(hint)[1:], "--json")
    assert rest.code == 0 and len(first) + len(rest.json["outputs"]) == 20
    assert len(files("out")) == 20


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_with_the_hint():
    photos("in", *(f"{number:03}.png" for number in range(400)))
    process = subprocess.Popen(
        [*PINMEM, "predict", "in", "--protocol", "fast+scales=4"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not Path("in-masks").exists() or len(files("in-masks")) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in text
    assert text.splitlines()[-1].endswith("predict --skip-existing in --protocol fast+scales=4")


# While images appear


def test_images_are_predicted_as_they_appear_and_only_when_they_are_complete(network, monkeypatch):
    monkeypatch.setattr(watch, "SETTLED", 0.2)
    monkeypatch.setattr(watch, "INTERVAL", 0.02)
    photos("in", "a.png")
    network.interrupted_at = 3
    content = png()

    def write():
        with Path("in/slow.png").open("wb") as file:
            for start in range(0, len(content), 20):
                file.write(content[start : start + 20])
                file.flush()
                time.sleep(0.02)
        while not Path("in-masks/slow.png").exists():
            time.sleep(0.02)
        Path("in/.hidden.png").write_bytes(content)
        Path("in/empty.png").touch()
        photos("in", "sub/b.png")
        while not Path("in-masks/sub/b.png").exists():
            time.sleep(0.02)
        photos("in", "end.png")

    writer = threading.Thread(target=write)
    writer.start()
    done = Result("predict", "--watch", "in")
    writer.join()
    assert done.code == 130 and "stopped: 3 images" in done.err and "failed" not in done.err
    names = [Path(line.split("  ")[0]).name for line in done.out.splitlines()]
    assert names == ["a.png", "slow.png", "b.png"]


def test_a_watched_file_that_cannot_be_read_is_tried_again_when_it_changes(network, monkeypatch):
    monkeypatch.setattr(watch, "SETTLED", 0.05)
    monkeypatch.setattr(watch, "INTERVAL", 0.02)
    photos("in", "z.png")
    Path("in/torn.png").write_bytes(png()[:50])
    network.interrupted_at = 2

    def mend():
        while not Path("in-masks/z.png").exists():
            time.sleep(0.02)
        time.sleep(0.1)
        photos("in", "torn.png")
        while not Path("in-masks/torn.png").exists():
            time.sleep(0.02)
        photos("in", "end.png")

    mender = threading.Thread(target=mend)
    mender.start()
    done = Result("predict", "in", "--watch", "--json")
    mender.join()
    assert done.code == 130 and "torn.png cannot be read" in done.err
    assert [Path(one["output"]).name for one in done.json["outputs"]] == ["z.png", "torn.png"]
    assert done.json["failed"] == [] and done.json["images"] == 2


def test_watching_needs_one_folder():
    photos("in", "a.png")
    for inputs in (["in/a.png"], ["in", "in"], ["nowhere"]):
        done = Result("predict", "--watch", *inputs)
        assert done.code == 2 and "one folder" in done.err


# From the web


@pytest.fixture
def site():
    with serving() as served:
        yield served


def test_an_image_at_an_address_is_predicted(network, site):
    site.files["/street 1.png"] = png()
    site.always["/moved"] = Mood(302, {"Location": "/street%201.png"})
    address = site.url("/street%201.png?token=s3cr3ts3cr3t")
    site.files["/street%201.png?token=s3cr3ts3cr3t"] = png()
    site.files["/street%201.png"] = png()
    data = Result("predict", address, "--json").json
    (one,) = data["outputs"]
    assert one["output"] == "street 1-mask.png" and "s3cr3t" not in str(data)
    assert one["input"].startswith(site.url("/street%201.png"))
    moved = Result("predict", site.url("/moved"), "--json").json
    assert moved["outputs"][0]["output"] == "moved-mask.png"


@pytest.mark.parametrize(
    ("mood", "content", "message"),
    [
        (Mood(404), b"", "status 404"),
        (Mood(503), b"", "status 503"),
        (Mood(page=True), b"", "is a web page, not an image"),
        (Mood(302, {"Location": "/x.png"}), b"", "redirects in circles"),
        (Mood(302, {"Location": "file:///etc/passwd"}), b"", "is no address"),
        (Mood(cut=30), png(), "broke off"),
        (Mood(pause=0.2), b"0" * 12000, "takes longer than"),
        (Mood(), b"0" * 200_000, "is larger than 0 MB"),
        (Mood(endless=True, hidden=True), png(), "is larger than 0 MB"),
        (Mood(), b"no image", "cannot be read"),
        (Mood(), b"", "it is empty"),
    ],
)
def test_an_address_without_an_image_is_refused_in_a_sentence(
    network, site, monkeypatch, mood, content, message
):
    monkeypatch.setattr(remote, "LARGEST", 100_000)
    monkeypatch.setattr(remote, "LONGEST", 0.1 if mood.pause else 9)
    site.files["/x.png"] = content
    site.always["/x.png"] = mood
    done = Result("predict", site.url("/x.png"))
    assert done.code in (3, 5) and message in done.err, done.err
    assert files(".") == []


def test_a_site_that_does_not_answer_is_given_up(network, monkeypatch):
    import socket

    monkeypatch.setattr(remote, "TIMEOUT", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = Result("predict", f"http://127.0.0.1:{server.getsockname()[1]}/x.png")
    assert done.code == 5 and "did not answer in time" in done.err


def test_a_video_at_an_address_is_to_be_downloaded_first(network, site):
    done = Result("predict", site.url("/drive.mp4"))
    assert done.code == 3 and "Download it" in done.err and site.log == []


# From a camera


def test_a_camera_is_predicted_until_ctrl_c(network, monkeypatch):
    av = pytest.importorskip("av")
    real = av.open

    def open_pattern(file, mode="r", **options):
        if "format" in options and mode == "r":
            assert "/dev/video7" in file or file == "7"
            return real("testsrc=size=64x48:rate=10", mode, format="lavfi")
        return real(file, mode, **options)

    monkeypatch.setattr(av, "open", open_pattern)
    network.interrupted_at = 9
    done = Result("predict", "camera:7", "--format", "overlay", "--legend", "--json")
    assert done.code == 0, done.err
    (one,) = done.json["outputs"]
    assert one["output"] == "camera-7-mask.mp4" and one["input"] == "camera:7"
    assert 0 < one["frames"] <= 9 and one["shares"] == {"road": 0.5, "car": 0.5}
    with real("camera-7-mask.mp4") as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert frames[0].shape[1] == 64 and frames[0].shape[0] > 48
    network.interrupted_at, network.images = 0, 0
    nothing = Result("predict", "camera:7", "-o", "other.mp4")
    assert nothing.code == 130 and not Path("other.mp4").exists()


def test_a_camera_that_is_not_there_is_named(network, monkeypatch):
    pytest.importorskip("av")
    done = Result("predict", "camera:99")
    assert done.code == 5 and "camera:99 cannot be opened" in done.err
    monkeypatch.setattr(sys, "platform", "plan9")
    done = Result("predict", "camera:0")
    assert done.code == 5 and "no numbered cameras" in done.err


def test_a_file_called_like_a_camera_or_an_address_is_a_file(network):
    photos("http:", "a.png")
    Path("http:/a.png").rename("camera:0")
    done = Result("predict", "camera:0", "-o", "m.png")
    assert done.code == 0 and Image.open("m.png").size == (60, 40)
