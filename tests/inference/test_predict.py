"""Predicting files: what is found, how it is read, where it goes, and what a stranger meets."""

import errno
import os
import signal
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path, PurePath
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Result
from odd_images import HEIGHT, WIDTH, huge_png, odd_images, picture
from PIL import Image
from typer.testing import CliRunner

from pinmem_cli.app import app
from pinmem_core.checkpoints.checkpoint import save_checkpoint
from pinmem_core.config import ModelConfig
from pinmem_core.errors import ConfigError, DataError, MachineError
from pinmem_core.files import atomic_file
from pinmem_core.images import decode_image, image_size, read_image, write_png
from pinmem_core.inference import load, video, writers
from pinmem_core.inference.jobs import predict_files
from pinmem_core.inference.outputs import plan
from pinmem_core.inference.sources import Source, find_sources
from pinmem_core.inference.writers import FORMATS, check_formats
from pinmem_core.label_space import CITYSCAPES, LabelSpace, label_space
from pinmem_core.models import Segmenter
from pinmem_core.parallel import parallel_map, prefetch

pytestmark = pytest.mark.filterwarnings(r"ignore::Warning:PIL\.")

ODD = odd_images()
NOBODY = 65534
"""The user without any rights, on Linux."""


@pytest.fixture
def heeding_ctrl_c():
    """Where the tests run in the background, Ctrl-C is ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Fake:
    """Predicts from the red channel alone, so that masks tell which image they are of."""

    label_space = CITYSCAPES

    def __init__(self):
        self.asked = []

    def analyze(self, pixels, *, confidence, entropy, probabilities):
        self.asked.append((confidence, entropy, probabilities))
        red = pixels[..., 0]
        share = (red / 255).astype(np.float32)
        return SimpleNamespace(
            train_ids=red % 19,
            space=CITYSCAPES,
            confidence=share if confidence else None,
            entropy=1 - share if entropy else None,
            probabilities=np.stack([share] * 19).astype(np.float16) if probabilities else None,
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_checkpoint(Segmenter(ModelConfig(backbone="tiny", feature_dim=16)), folder, {})
    return str(folder)


def images(folder, *names):
    """Write PNGs that differ; return their paths."""
    for number, name in enumerate(names):
        write_png(folder / name, np.roll(picture(), number, axis=1))
    return [folder / name for name in names]


def sources(*inputs, out=None):
    return find_sources([str(text) for text in inputs], out=out)


def written(folder):
    """Names of all files below a folder, hidden ones too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def jobs_of(folder, out, *formats, **options):
    return plan(sources(folder, out=out), out, check_formats(formats or ["trainid"]), **options)


# Reading


@pytest.mark.parametrize("name", ODD)
def test_every_odd_image_is_read_rightly_or_refused_in_a_sentence(tmp_path, name):
    odd, path = ODD[name], tmp_path / name
    path.write_bytes(odd.content)
    if odd.pixels is None:
        with pytest.raises(DataError) as error:
            decode_image(path)
        assert odd.reason in error.value.message and name in error.value.message
        return
    pixels, frames = decode_image(path)
    assert frames == odd.frames and pixels.shape == odd.pixels.shape
    assert np.abs(pixels.astype(int) - odd.pixels).max() <= odd.tolerance
    assert image_size(path) == (pixels.shape[1], pixels.shape[0])


def test_a_missing_and_an_unreadable_file_are_named(tmp_path):
    with pytest.raises(DataError, match=r"x\.jpg does not exist"):
        read_image(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=r"d\.jpg cannot be read: Is a directory"):
        (tmp_path / "d.jpg").mkdir()
        read_image(tmp_path / "d.jpg")
    with tempfile.TemporaryDirectory() as folder, not_as_root(folder):
        (locked,) = images(Path(folder), "locked.png")
        locked.chmod(0)
        with pytest.raises(DataError, match=r"locked\.png cannot be read: Permission denied"):
            read_image(locked)
        locked.chmod(0o600)
        assert read_image(locked).any()


@contextmanager
def not_as_root(folder):
    """Root may read everything: have `folder` be another user's, and the test go on as that one."""
    user = os.geteuid()
    if user == 0:
        os.chown(folder, NOBODY, -1)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_whatever_a_damaged_file_holds_it_is_an_error_in_a_sentence():
    rng = np.random.default_rng(0)
    whole = [odd.content for odd in ODD.values() if odd.pixels is not None]
    refused = 0
    for number in range(600):
        damaged = np.frombuffer(whole[number % len(whole)], np.uint8).copy()
        places = rng.integers(0, min(len(damaged), 400), 6)
        damaged[places] = rng.integers(0, 256, 6)
        try:
            decode_image(Path("x"), damaged[: rng.integers(1, 2 * len(damaged))].tobytes())
        except DataError:
            refused += 1
    assert 100 < refused < 600


def test_a_reader_that_stumbles_over_a_file_is_an_error_in_a_sentence(monkeypatch):
    def stumble(picture):
        raise RuntimeError("bad state")  # as Pillow does over some damaged AVIF files

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", stumble)
    with pytest.raises(DataError, match="x cannot be read: bad state"):
        decode_image(Path("x"), ODD["grey.png"].content)


@pytest.mark.slow
def test_a_picture_of_100_megapixels_is_predicted(tmp_path):
    path, out = tmp_path / "huge.png", tmp_path / "mask.png"
    path.write_bytes(huge_png(10_000))
    (done,) = predict_files(Fake(), jobs_of(path, out, "trainid")).outputs
    assert (done.width, done.height) == (10_000, 10_000)
    with Image.open(out) as mask:
        last = np.asarray(mask.crop((0, 9_999, 10_000, 10_000)))[0]
    assert np.array_equal(last, np.tile(np.repeat([0, 255 % 19], 8), 625))


# Finding


def test_folders_are_searched_through_and_keep_their_structure(tmp_path):
    images(tmp_path / "in", "b.png", "a.PNG", "sub/deep/c.png", ".hidden.png", ".dir/d.png")
    images(tmp_path / "in", "masks/old.png")
    (tmp_path / "in" / "notes.txt").write_text("")
    told = []
    found = find_sources(
        [str(tmp_path / "in")], out=tmp_path / "in" / "masks", on_event=told.append
    )
    assert [str(source.name) for source in found] == ["a.PNG", "b.png", "sub/deep/c.png"]
    (notice,) = told
    assert "skipped 1 of 4 files" in notice.message


def test_patterns_are_matched_below_their_fixed_part(tmp_path, monkeypatch):
    images(tmp_path, "x/1/a.png", "x/2/a.png", "x/2/b[1].png", "y/c.png")
    monkeypatch.chdir(tmp_path)
    assert [str(s.name) for s in sources("x/**/*.png")] == ["1/a.png", "2/a.png", "2/b[1].png"]
    assert [str(s.name) for s in sources("x/[12]")] == ["1/a.png", "2/a.png", "2/b[1].png"]
    assert [str(s.path) for s in sources("x/2/b[1].png")] == ["x/2/b[1].png"]
    assert len(sources("x/1/a.png", "x", "x/**", "./x/1/a.png")) == 3
    with pytest.raises(DataError, match=r"nothing matches z/\*"):
        sources("z/*")


def test_a_folder_without_images_and_one_that_is_the_output_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        sources(tmp_path)
    images(tmp_path, "a.png")
    with pytest.raises(ConfigError, match="among the images"):
        sources(tmp_path, out=tmp_path / "." / "")


# Naming


def names(jobs, folder):
    return [str(output.path.relative_to(folder)) for job in jobs for output in job.outputs]


def test_outputs_keep_the_folders_and_several_formats_have_names_of_their_own(tmp_path):
    images(tmp_path / "in", "a.png", "sub/a.png")
    out = tmp_path / "out"
    assert names(jobs_of(tmp_path / "in", out), out) == ["a.png", "sub/a.png"]
    several = jobs_of(tmp_path / "in" / "sub", out, "color", "probabilities", "color")
    assert names(several, out) == ["a_color.png", "a_probabilities.npz"]
    one = jobs_of(tmp_path / "in" / "a.png", tmp_path / "mask.png", "color", "overlay")
    assert names(one, tmp_path) == ["mask_color.png", "mask_overlay.png"]


def test_inputs_that_differ_in_their_suffix_are_told_apart(tmp_path):
    images(tmp_path / "in", "a.png", "a.bmp", "b.png")
    out = tmp_path / "out"
    assert names(jobs_of(tmp_path / "in", out), out) == ["a.bmp.png", "a.png.png", "b.png"]


def test_a_file_keeps_the_case_of_the_suffix_that_was_asked_for(tmp_path):
    source = Source(tmp_path / "a.PNG", PurePath("a.PNG"))
    (job,) = plan([source], tmp_path / "mask.PNG", check_formats(["color"]))
    assert job.outputs[0].path == tmp_path / "mask.PNG"
    with pytest.raises(ConfigError, match="would replace an input"):
        plan([source], source.path, check_formats(["color"]), force=True)


def test_masks_never_replace_an_input_or_each_other(tmp_path):
    a, b = images(tmp_path, "x/a.png", "y/a.png")
    forms = check_formats(["color"])
    with pytest.raises(ConfigError, match="replace an input"):
        plan(sources(a), tmp_path / "x", forms, force=True)
    with pytest.raises(ConfigError, match="replace an input"):
        plan(sources(a), a, forms, force=True)
    with pytest.raises(ConfigError, match="both be written"):
        plan(sources(a, b), tmp_path / "out", forms)
    name = PurePath("a.png")
    web = [Source(Path(name), name, b"", f"http://site/{number}/a.png") for number in (1, 2)]
    with pytest.raises(ConfigError, match=r"site/1/a\.png and http://site/2/a\.png would both"):
        plan(web, tmp_path / "out", forms)
    clip, inside = tmp_path / "in" / "a.mp4", tmp_path / "in" / "a" / "b.png"
    images(tmp_path / "in", "a/b.png")
    clip.write_bytes(b"")
    with pytest.raises(ConfigError, match="would lie in"):
        plan(sources(tmp_path / "in"), tmp_path / "out", forms, frames=True)
    assert inside.exists()


@pytest.mark.parametrize(
    ("formats", "out", "hint"),
    [
        (["color"], "m.jpg", "NAME.png"),
        (["color"], "m.npz", "NAME.png"),
        (["color"], "m.mp4", "NAME.png"),
        (["probabilities"], "m.png", "NAME.npz"),
    ],
)
def test_an_output_of_another_kind_is_refused(tmp_path, formats, out, hint):
    (a,) = images(tmp_path, "a.png")
    with pytest.raises(ConfigError, match="cannot be written to") as error:
        plan(sources(a), tmp_path / out, check_formats(formats))
    assert hint in error.value.hint


def test_an_output_that_lies_in_a_file_is_refused(tmp_path):
    (a, taken) = images(tmp_path, "a.png", "taken")
    for out in (taken, taken / "m.png", taken / "below"):
        with pytest.raises(ConfigError, match="taken is a file, not a folder"):
            plan(sources(a), out, FORMATS, skip_existing=True)


def test_one_file_cannot_take_two_images(tmp_path):
    with pytest.raises(ConfigError, match="one file, but there are 2 inputs"):
        plan(sources(*images(tmp_path, "a.png", "b.png")), tmp_path / "m.png", FORMATS)


def test_what_exists_stays_unless_force_is_given(tmp_path):
    (a,) = images(tmp_path, "a.png")
    out = tmp_path / "out"
    images(out, "a.png")
    with pytest.raises(ConfigError, match=r"a\.png exists") as error:
        jobs_of(a, out)
    assert "--force" in error.value.hint
    predict_files(Fake(), jobs_of(a, out, force=True))
    assert np.array_equal(np.asarray(Image.open(out / "a.png")), picture()[..., 0] % 19)


# Formats


@pytest.mark.parametrize("at_once", [2**22, 100])
def test_every_format_shows_what_it_says(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(writers, "BAND_PIXELS", at_once)
    (a,) = images(tmp_path, "a.png")
    predictor, out = Fake(), tmp_path / "out"
    outcome = predict_files(predictor, jobs_of(a, out, *FORMATS))
    assert [done.format for done in outcome.outputs] == list(FORMATS)
    seen = {p.stem.removeprefix("a_"): np.asarray(Image.open(p)) for p in out.glob("*.png")}
    train_ids = picture()[..., 0] % 19
    assert np.array_equal(seen["trainid"], train_ids)
    assert np.array_equal(seen["labelid"], CITYSCAPES.label_id_table[train_ids])
    assert np.array_equal(seen["color"], CITYSCAPES.color_table[train_ids])
    assert np.array_equal(
        seen["side-by-side"], np.hstack([picture(), CITYSCAPES.color_table[train_ids]])
    )
    assert np.array_equal(seen["confidence"], picture()[..., 0])
    assert np.array_equal(seen["entropy"], 255 - picture()[..., 0])
    mixed = 0.4 * picture() + 0.6 * CITYSCAPES.color_table[train_ids]
    assert np.abs(seen["overlay"] - mixed).max() <= 0.5
    with np.load(out / "a_probabilities.npz") as archive:
        assert archive["probabilities"].shape == (19, HEIGHT, WIDTH)
        assert archive["probabilities"].dtype == np.float16
        assert tuple(archive["classes"]) == CITYSCAPES.names


def own_classes_model(folder, space):
    torch.manual_seed(0)
    config = ModelConfig(backbone="tiny", feature_dim=16, label_space=space)
    save_checkpoint(Segmenter(config), folder, {})
    return load(str(folder), device="cpu")


def test_masks_show_the_classes_of_their_model(tmp_path):
    space = label_space("idd-level1")
    predictor = own_classes_model(tmp_path / "model", space)
    (a,), out = images(tmp_path, "a.png"), tmp_path / "out"
    formats = [name for name in FORMATS if name != "labelid"]
    done = predict_files(predictor, jobs_of(a, out, *formats))
    train_ids = predictor.predict(a)
    assert np.array_equal(np.asarray(Image.open(out / "a_color.png")), space.color_table[train_ids])
    with Image.open(out / "a_palette.png") as palette:
        assert np.array_equal(np.asarray(palette), train_ids)
        assert np.array_equal(np.asarray(palette.convert("RGB")), space.color_table[train_ids])
    with np.load(out / "a_probabilities.npz") as archive:
        assert tuple(archive["classes"]) == space.names
        assert archive["probabilities"].shape[0] == 7
    assert {*done.outputs[0].shares} == {space.names[k] for k in np.unique(train_ids)}


def test_ids_of_a_benchmark_exist_only_for_its_classes(tmp_path):
    space = LabelSpace(name="own", classes=[f"thing {n}" for n in range(60)])
    predictor = own_classes_model(tmp_path / "model", space)
    (a,), out = images(tmp_path, "a.png"), tmp_path / "out"
    with pytest.raises(ConfigError, match="classes 'own' have none") as error:
        predict_files(predictor, jobs_of(a, out, "color", "labelid"))
    assert "trainid" in error.value.hint and not out.exists()
    result = Result(
        "predict", str(a), "-o", "-", "--format", "labelid", "--model", str(tmp_path / "model")
    )
    assert result.code == 2 and "'own' have none" in result.err


@pytest.mark.parametrize(
    ("formats", "asked"),
    [
        (["color", "overlay"], (False, False, False)),
        (["confidence"], (True, False, False)),
        (["entropy", "probabilities"], (False, True, True)),
    ],
)
def test_the_predictor_is_asked_for_no_more_than_is_shown(tmp_path, formats, asked):
    (a,) = images(tmp_path, "a.png")
    predictor = Fake()
    predict_files(predictor, jobs_of(a, tmp_path / "out", *formats))
    assert predictor.asked == [asked]


# Overlapping


def test_work_overlaps_in_order_and_with_little_in_front():
    drawn = []

    def count():
        for number in range(50):
            drawn.append(number)
            yield number

    results = []
    for number in prefetch(count()):
        time.sleep(0.001)
        assert len(drawn) <= number + 5
        results.append(number)
    assert results == list(range(50))

    def slow_at_first(number):
        time.sleep(0.02 if number < 2 else 0)
        return -number

    assert list(parallel_map(slow_at_first, range(20), 3)) == [-n for n in range(20)]


def test_an_error_in_a_thread_comes_out_and_ends_the_work():
    before = {*threading.enumerate()}

    def fail_at_three(number):
        if number == 3:
            raise MachineError("the disk is full")
        return number

    got = []
    with pytest.raises(MachineError, match="disk is full"):
        got += parallel_map(fail_at_three, range(100), 1, waiting=3)
    with pytest.raises(MachineError, match="disk is full"):
        got += prefetch(map(fail_at_three, range(100)))
    assert not {*threading.enumerate()} - before


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_an_interrupt_leaves_whole_files_and_no_thread(tmp_path):
    before = {*threading.enumerate()}
    images(tmp_path / "in", *(f"{n}.png" for n in range(9)))

    class Interrupted(Fake):
        def analyze(self, pixels, **options):
            if len(self.asked) == 5:
                signal.raise_signal(signal.SIGINT)
            return super().analyze(pixels, **options)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_files(Interrupted(), jobs_of(tmp_path / "in", out))
    assert not {*threading.enumerate()} - before
    done = written(out)
    assert 1 <= len(done) <= 5 and set(done) <= {f"{n}.png" for n in range(9)}
    for name in done:
        assert Image.open(out / name).load() is not None


def test_an_output_that_cannot_be_written_ends_the_work_with_a_sentence(tmp_path):
    images(tmp_path / "in", "a.png", "b.png")
    jobs = jobs_of(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(MachineError, match=r"cannot write .*out/a\.png"):
        predict_files(Fake(), jobs)


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path):
    with pytest.raises(MachineError, match="No space left"), atomic_file(tmp_path / "a") as partial:
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert written(tmp_path) == []


def test_results_keep_the_order_of_the_inputs_with_the_failed_among_them(tmp_path):
    order = ["c.png", "a.png", "x.png", "b.png"]
    paths = images(tmp_path, *order)
    paths[2].write_bytes(b"no picture")
    jobs = plan(sources(*paths), tmp_path / "out", check_formats(["trainid"]))
    told = []
    outcome = predict_files(Fake(), jobs, on_event=told.append)
    assert [done.input.name for done in outcome.outputs] == ["c.png", "a.png", "b.png"]
    assert [failed.input.name for failed in outcome.failed] == ["x.png"]
    assert outcome.images == 3 and outcome.images_per_second > 0
    assert [(event.done, event.total) for event in told] == [(n, 4) for n in (1, 2, 3, 4)]
    for number in (0, 1, 3):
        mask = np.asarray(Image.open(tmp_path / "out" / order[number]))
        assert np.array_equal(mask, np.roll(picture(), number, axis=1)[..., 0] % 19)


# The command


def test_a_folder_of_odd_images_is_predicted_or_named_one_by_one(tmp_path, model):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, odd in ODD.items():
        (folder / name).write_bytes(odd.content)
    done = Result(
        "predict",
        str(folder),
        "-o",
        str(out),
        "--model",
        model,
        "--format",
        "side-by-side",
        "--json",
    )
    assert done.code == 1
    refused = {name for name, odd in ODD.items() if odd.pixels is None}
    assert {Path(f["input"]).name for f in done.json["failed"]} == refused
    shown = {Path(d["input"]).name: d["output"] for d in done.json["outputs"]}
    assert shown.keys() | refused == ODD.keys() and len(ODD) >= 50
    for name, path in shown.items():
        odd, both = ODD[name], np.asarray(Image.open(path)).astype(int)
        assert both.shape[0] == odd.pixels.shape[0] and both.shape[1] == 2 * odd.pixels.shape[1]
        difference = both[:, : odd.pixels.shape[1]] - odd.pixels
        assert np.abs(difference).max() <= odd.tolerance
        assert (f"{name} has {odd.frames} frames" in done.err) == (odd.frames > 1)
    assert len(written(out)) == len(shown)
    for name in refused:
        assert f"{name} cannot be read" in done.err


def test_the_command_sums_up_and_keeps_its_keys(tmp_path, model):
    images(tmp_path / "in", "a.png", "b.png")
    arguments = ["predict", str(tmp_path / "in"), "--model", model]
    text = Result(*arguments, "-o", str(tmp_path / "one"))
    assert text.code == 0 and "2 images in " in text.err and "images/s" in text.err
    assert text.out.splitlines() == [
        f"{tmp_path}/one/a.png  {WIDTH}x{HEIGHT}",
        f"{tmp_path}/one/b.png  {WIDTH}x{HEIGHT}",
    ]
    data = Result(*arguments, "-o", str(tmp_path / "two"), "--format", "labelid", "--json").json
    assert data["failed"] == [] and data["images"] == 2 and data["images_per_second"] > 0
    assert (data["model"], data["protocol"]) == (model, "fast")
    shares = data["outputs"][1].pop("shares")
    assert 0.99 < sum(shares.values()) < 1.01 and list(shares)
    assert data["outputs"][1] == {
        "input": f"{tmp_path}/in/b.png",
        "output": f"{tmp_path}/two/b.png",
        "format": "labelid",
        "width": WIDTH,
        "height": HEIGHT,
        "frames": 1,
    }


def test_streams_carry_one_image_and_nothing_else(tmp_path, model):
    content = ODD["turned 6.png"].content
    arguments = ["predict", "-", "--model", model, "--format", "side-by-side"]
    piped = CliRunner().invoke(app, [*arguments, "-o", "-"], input=content)
    assert piped.exit_code == 0, piped.stderr
    CliRunner().invoke(app, [*arguments, "-o", str(tmp_path)], input=content)
    assert piped.stdout_bytes == (tmp_path / "stdin.png").read_bytes()
    both = np.asarray(Image.open(tmp_path / "stdin.png"))
    assert np.array_equal(both[:, :HEIGHT], ODD["turned 6.png"].pixels)

    empty = CliRunner().invoke(app, [*arguments, "-o", "-"], input=b"")
    assert empty.exit_code == 3 and "it is empty" in empty.stderr and not empty.stdout_bytes
    for more in (["--json"], ["--format", "color"], [str(tmp_path / "stdin.png")]):
        refused = CliRunner().invoke(app, [*arguments, "-o", "-", *more], input=content)
        assert refused.exit_code == 2 and not refused.stdout_bytes


def test_a_wrong_name_is_told_before_anything_is_done(tmp_path, model):
    (a,) = images(tmp_path, "a.png")
    arguments = ["predict", str(a), "-o", str(tmp_path / "m.png"), "--model", model]
    wrong = Result(*arguments, "--format", "overlap")
    assert wrong.code == 2 and "overlay" in wrong.err
    wrong = Result(*arguments, "--protocol", "paper-evil")
    assert wrong.code == 2 and "paper-eval" in wrong.err
    for_labels = Result(*arguments, "--protocol", "paper-mapillary")
    assert for_labels.code == 2 and "paper-train" in for_labels.err
    assert Result(*arguments).code == 0
    again = Result(*arguments)
    assert again.code == 2 and "--force" in again.err
    assert Result(*arguments, "--force").code == 0


# Videos


def clip(path, count=12, size=(48, 64), rate=25, rotation=0):
    """Write a video whose frames get brighter."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "0"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p"
        if rotation and not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV writes no rotations")
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(count):
            pixels = np.full((*size, 3), 10 * (number % 20) + 20, np.uint8)
            pixels[: size[0] // 2] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def frames_of(path):
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return frames, stream.average_rate, container.duration / av.time_base


@pytest.mark.parametrize("size", [(48, 64), (33, 45)])
@pytest.mark.parametrize("rate", [25, Fraction(30_000, 1001)])
def test_a_video_becomes_a_video_of_its_size_and_speed(tmp_path, size, rate):
    source = clip(tmp_path / "drive.mp4", size=size, rate=rate)
    told = []
    jobs = jobs_of(source, tmp_path / "out.mp4", "color")
    (done,) = predict_files(Fake(), jobs, on_event=told.append).outputs
    assert (done.width, done.height, done.frames) == (size[1], size[0], 12)
    before, rate_before, seconds_before = frames_of(source)
    after, rate_after, seconds_after = frames_of(tmp_path / "out.mp4")
    assert len(after) == 12 and after[0].shape == (*size, 3)
    assert rate_after == rate_before == rate
    assert seconds_after == pytest.approx(seconds_before, abs=0.01)
    for one, mask in zip(before, after, strict=True):
        expected = CITYSCAPES.color_table[one[-5, 5, 0] % 19].astype(int)
        assert np.abs(mask[-5, 5] - expected).max() < 12
    assert [event.done for event in told if "drive.mp4" in event.task] == list(range(1, 13))


def test_ids_of_a_video_become_a_folder_of_frames_and_grey_forms_a_video(tmp_path):
    images(tmp_path / "in", "a.png")
    clip(tmp_path / "in" / "drive.mkv")
    jobs = jobs_of(tmp_path / "in", tmp_path / "out", "trainid", "confidence")
    outcome = predict_files(Fake(), jobs)
    assert outcome.images == 13 and not outcome.failed
    assert written(tmp_path / "out") == [
        "a_confidence.png", "a_trainid.png", "drive_confidence.mp4",
        *(f"drive_trainid/{number:06}.png" for number in range(12)),
    ]  # fmt: skip
    frames, *_ = frames_of(tmp_path / "in" / "drive.mkv")
    for number, frame in enumerate(frames):
        mask = np.asarray(Image.open(tmp_path / "out" / "drive_trainid" / f"{number:06}.png"))
        assert np.array_equal(mask, frame[..., 0] % 19)
    with pytest.raises(ConfigError, match=r"drive exists and is not empty"):
        (tmp_path / "out" / "drive_trainid").rename(tmp_path / "out" / "drive")
        jobs_of(tmp_path / "in", tmp_path / "out", "color", frames=True, force=True)


def test_a_turned_video_is_predicted_upright(tmp_path):
    source = clip(tmp_path / "phone.mp4", count=1, rotation=90)
    (job,) = jobs_of(source, tmp_path / "out")
    (done,) = predict_files(Fake(), [job]).outputs
    assert (done.width, done.height) == (48, 64)
    mask = np.asarray(Image.open(done.output / "000000.png"))
    assert (mask[:, :20] == 250 % 19).all() and (mask[:, -20:] != 250 % 19).all()


_QUARTERS = ((250, 10, 10), (10, 250, 10), (250, 10, 10), (10, 10, 250))


def _quarters(height=48, width=64) -> np.ndarray:
    """Return a picture whose quarters tell each of the eight orientations from all others."""
    picture = np.array(_QUARTERS, np.uint8).reshape(2, 2, 3)
    return picture.repeat(height // 2, 0).repeat(width // 2, 1)


def _encoded(path, picture, codec="libx264", pix_fmt="yuv444p", format="rgb24", **settings):
    """Write a video of three frames of a picture."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = pix_fmt
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(picture, format=format)
            container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode())
    return path


def _with_matrix(source, a, b, c, d):
    """Give an MP4 file another display matrix."""
    data = bytearray(source.read_bytes())
    at = data.find(b"tkhd") + 44
    for place, value in enumerate((a, b, 0, c, d, 0, 0, 0)):
        data[at + 4 * place : at + 4 * place + 4] = (value << 16).to_bytes(4, "big", signed=True)
    source.write_bytes(data)


_ORIENTATIONS = {
    "as it lies": ((1, 0, 0, 1), lambda p: p),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "half turn": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "counterclockwise": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "transversed": ((0, -1, -1, 0), lambda p: p[::-1, ::-1].swapaxes(0, 1)),
    "no matrix at all": ((0, 0, 0, 0), lambda p: p),
}


@pytest.mark.parametrize("name", _ORIENTATIONS)
def test_a_video_is_seen_as_its_display_matrix_shows_it(tmp_path, name):
    matrix, turned = _ORIENTATIONS[name]
    source = _encoded(tmp_path / "drive.mp4", _quarters())
    _with_matrix(source, *matrix)
    (frame, *_) = _seen_by_the_network(tmp_path, source)
    expected = turned(_quarters())
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 8


def _seen_by_the_network(tmp_path, source, *formats, on_event=lambda event: None):
    frames = []

    class Watching(Fake):
        def analyze(self, pixels, **options):
            frames.append(pixels)
            return super().analyze(pixels, **options)

    jobs = jobs_of(source, tmp_path / "out", *formats or ["trainid"])
    outcome = predict_files(Watching(), jobs, on_event=on_event)
    assert not outcome.failed
    return frames


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mov", "qtrle", "argb"),
        ("a.mov", "png", "rgba"),
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.mkv", "ffv1", "yuva420p"),
        ("a.mkv", "ffv1", "ya8"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_transparent_parts_of_a_video_lie_on_black(tmp_path, name, codec, pix_fmt):
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    picture = np.full((48, 64, 4), 200, np.uint8)
    picture[:, :32, 3], picture[:24, 32:, 3], picture[24:, 32:, 3] = 255, 0, 128
    source = _encoded(tmp_path / name, picture, codec, pix_fmt, "rgba")
    frames = _seen_by_the_network(tmp_path, source)
    assert len(frames) == 3
    for frame in frames:
        seen = [frame[place].tolist() for place in ((24, 10), (8, 54), (40, 54))]
        np.testing.assert_allclose(seen, [[200] * 3, [0] * 3, [100] * 3], atol=4)


@pytest.mark.parametrize("rotated", [False, True])
def test_a_written_video_keeps_the_aspect_ratio_of_its_pixels(tmp_path, rotated):
    import av

    source = _encoded(tmp_path / "wide.mp4", _quarters(), sample_aspect_ratio=Fraction(4, 3))
    if rotated:
        _with_matrix(source, 0, 1, -1, 0)
    predict_files(Fake(), jobs_of(source, tmp_path / "out.mp4", "overlay"))
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == (Fraction(3, 4) if rotated else Fraction(4, 3))
        assert (stream.width, stream.height) == ((48, 64) if rotated else (64, 48))


@pytest.mark.parametrize("form", ["overlay", "trainid"])
def test_frames_that_change_size_are_scaled_to_the_first_and_this_is_said(tmp_path, form):
    small = _encoded(tmp_path / "1.h264", _quarters(), pix_fmt="yuv420p").read_bytes()
    large = _encoded(tmp_path / "2.h264", _quarters(96, 128), pix_fmt="yuv420p").read_bytes()
    source = tmp_path / "change.mpg"
    source.write_bytes(small + large)
    told = []
    frames = _seen_by_the_network(tmp_path, source, form, on_event=told.append)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 6
    assert np.abs(frames[-1].astype(int) - _quarters()).mean() < 12
    (warning,) = (event.message for event in told if getattr(event, "warning", False))
    assert "from 64x48 to 128x96 at frame 3" in warning and "change.mpg" in warning
    if form == "overlay":
        written_frames, *_ = frames_of(tmp_path / "out" / "change.mp4")
        assert {frame.shape for frame in written_frames} == {(48, 64, 3)}


@pytest.mark.parametrize("name", ["12:30:05.mp4", "http:x.mp4", "pipe:0.mp4", "concat:a|b.mp4"])
def test_names_that_ffmpeg_takes_for_addresses_are_files(tmp_path, monkeypatch, name):
    clip(tmp_path / "drive.mp4", count=2).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    outcome = predict_files(Fake(), jobs_of(Path(name), Path("out-" + name), "color"))
    assert outcome.images == 2 and not outcome.failed
    assert len(frames_of(tmp_path / ("out-" + name))[0]) == 2


def test_a_video_that_refers_to_another_file_gets_nothing_of_it(tmp_path):
    clip(tmp_path / "drive.mp4", count=2)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile drive.mp4\n")
    outcome = predict_files(Fake(), jobs_of(tmp_path / "list.mp4", tmp_path / "out"))
    assert not outcome.outputs and "list.mp4 cannot be read" in outcome.failed[0].reason


def test_a_long_video_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    source = clip(tmp_path / "long.mp4", count=60)
    plain, decoded, predictor = video.open_video, [], Fake()

    def counted(frames):
        for frame in frames:
            decoded.append(frame.time)
            assert len(decoded) - len(predictor.asked) <= 5
            yield frame

    @contextmanager
    def opened(path):
        with plain(path) as read:
            yield replace(read, frames=counted(read.frames))

    monkeypatch.setattr(video, "open_video", opened)
    assert predict_files(predictor, jobs_of(source, tmp_path / "out")).images == 60


def test_a_torn_video_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    whole = clip(tmp_path / "whole.mkv", count=40, size=(480, 640)).read_bytes()
    (tmp_path / "in" / "a.mp4").write_bytes(b"")
    (tmp_path / "in" / "b.mp4").write_bytes(b"no video" * 99)
    (tmp_path / "in" / "c.mkv").write_bytes(whole[:600])
    outcome = predict_files(Fake(), jobs_of(tmp_path / "in", tmp_path / "out", "color", "trainid"))
    assert not outcome.outputs and len(outcome.failed) == 3
    for name, failed in zip("abc", outcome.failed, strict=True):
        assert f"{name}.m" in failed.reason and "cannot be read" in failed.reason
    assert not (tmp_path / "out").exists() or written(tmp_path / "out") == []


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_an_interrupted_video_leaves_nothing(tmp_path):
    before = {*threading.enumerate()}

    class Interrupted(Fake):
        def analyze(self, pixels, **options):
            if len(self.asked) == 5:
                signal.raise_signal(signal.SIGINT)
            return super().analyze(pixels, **options)

    source = clip(tmp_path / "drive.mp4")
    with pytest.raises(KeyboardInterrupt):
        predict_files(Interrupted(), jobs_of(source, tmp_path / "out", "color", "trainid"))
    assert written(tmp_path / "out") == [] and list((tmp_path / "out").iterdir()) == []
    assert not {*threading.enumerate()} - before


def test_videos_without_pyav_are_told_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "drive.mp4").write_bytes(b"")
    monkeypatch.setattr("pinmem_core.inference.video.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="PyAV") as error:
        predict_files(Fake(), jobs_of(tmp_path / "drive.mp4", tmp_path / "out"))
    assert "pinmem[video]" in error.value.hint
