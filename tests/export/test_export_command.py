"""`pinmem export`: what its options mean, and what they do not go with."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result

from pinmem_core.config import ModelConfig
from pinmem_core.export.check import Comparison, ExportedFile
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    segmenter = Segmenter(ModelConfig(backbone="tiny", feature_dim=16))
    save_checkpoint(segmenter, tmp_path / "run" / "checkpoint", {"training": {"sources": ["toy"]}})
    return tmp_path / "run"


@pytest.fixture
def runtimes(monkeypatch):
    """Replacements of what writes graphs; `calls` holds their arguments."""
    calls = []
    compared = Comparison((1, 8, 8), 3.0, 0.1, 2e-5, 0.9999, 0.5, 1.0)

    def export_model(segmenter, path, form, *, on_event, **options):
        calls.append((form, path.name, options))
        path.write_bytes(b"graph")
        return ExportedFile(path, 5, (compared,))

    def quantize(source, path, images, *, on_event):
        calls.append(("int8", source.name, images if images is None else list(images)))
        path.write_bytes(b"small")
        return ExportedFile(path, 5, (compared,))

    monkeypatch.setattr("pinmem_core.export.files.export_model", export_model)
    monkeypatch.setattr("pinmem_core.export.files.quantize", quantize)
    return calls


PLAIN = {"size": None, "half": False, "preprocess": False, "argmax": False}


def test_a_dry_run_shows_what_would_be_sent_without_the_network(run, monkeypatch):
    monkeypatch.setattr("pinmem_core.export.push.HfApi", None)
    done = Result("export", "push", str(run), "ada/streets", "--private", "--dry-run")
    assert done.code == 0, done.err
    assert "ada/streets, private (nothing was sent)" in done.out
    assert "model.safetensors" in done.out and "library_name: pinmem" in done.out
    assert f"next: pinmem export push {run} ada/streets --private" in done.err
    shown = Result("export", "push", str(run), "ada/streets@v2", "--dry-run", "--json").json
    assert shown["repository"] == "ada/streets" and shown["revision"] == "v2"
    assert shown["commit"] is None and shown["dry_run"] is True
    weights = run / "checkpoint" / "model.safetensors"
    assert shown["files"]["model.safetensors"] == weights.stat().st_size
    branch = Result("export", "push", str(run), "ada/streets", "--revision", "v2", "--dry-run")
    assert branch.err.endswith("ada/streets --revision v2\n")


def test_graphs_are_written_as_asked(run, runtimes, tmp_path):
    done = Result("export", "onnx", str(run))
    assert done.code == 0, done.err
    assert Result("export", "torch", str(run)).code == 0
    onnx = PLAIN | {"opset": None}
    assert runtimes == [("onnx", "model.onnx", onnx), ("torch-export", "model.pt2", PLAIN)]
    assert str(run / "export" / "model.onnx") in done.out
    assert "99.99 % of the pixels agree with the network" in done.err
    assert "at most 2.0e-05" in done.err
    command = done.err.partition("next: pinmem ")[2].split()
    assert Result(*command).code == 0  # as pasted
    options = ("--precision", "fp16", "--size", "96x64", "--preprocess", "--argmax")
    folder = ("--opset", "18", "-o", str(tmp_path / "o"), "--json")
    done = Result("export", "onnx", str(run), *options, *folder)
    assert runtimes[-1][2] == {
        "size": (64, 96),
        "half": True,
        "opset": 18,
        "preprocess": True,
        "argmax": True,
    }
    assert done.json["files"][0]["path"] == str(tmp_path / "o" / "model.onnx")
    (compared,) = done.json["files"][0]["compared"]
    assert (compared["equal"], compared["largest_difference"]) == (0.9999, 2e-5)


def test_an_output_with_the_suffix_of_the_format_is_the_file(run, runtimes, tmp_path):
    for command, name in (("onnx", "street.onnx"), ("torch", "street.pt2")):
        done = Result("export", command, str(run), "-o", str(tmp_path / name), "--json")
        assert done.json["files"][0]["path"] == str(tmp_path / name)
        assert runtimes[-1][1] == name
    again = Result("export", "onnx", str(run), "-o", str(tmp_path / "street.onnx"))
    assert again.code == 2 and "street.onnx exists already" in again.err
    (tmp_path / "a.onnx").mkdir()  # a folder of that name stays a folder
    done = Result("export", "onnx", str(run), "-o", str(tmp_path / "a.onnx"), "--json")
    assert done.json["files"][0]["path"] == str(tmp_path / "a.onnx" / "model.onnx")


def test_nothing_is_replaced_unless_forced(run, runtimes):
    assert Result("export", "onnx", str(run)).code == 0
    again = Result("export", "onnx", str(run))
    assert again.code == 2 and "model.onnx exists already" in again.err
    assert len(runtimes) == 1
    assert Result("export", "onnx", str(run), "--force").code == 0


def test_int8_is_calibrated_by_images_or_by_the_sources(run, runtimes, tmp_path):
    command = ("export", "onnx", str(run), "--precision", "int8")
    done = Result(*command)
    assert done.code == 0 and runtimes[-1] == ("int8", "model.onnx", None)
    assert "calibrating with synthetic scenes" in done.err
    assert Result("data", "prepare", "toy").code == 0
    assert Result(*command, "--force").code == 0
    assert {image.shape for image in runtimes[-1][2]} == {(64, 96, 3)}
    for name in ("p.ppm", "q.ppm"):
        (tmp_path / name).write_bytes(b"P6 4 3 255\n" + bytes(36))
    images = f"{tmp_path / 'p.ppm'},{tmp_path / 'q.ppm'}"
    assert Result(*command, "--calibrate", images, "--force").code == 0
    assert [image.shape for image in runtimes[-1][2]] == [(3, 4, 3)] * 2
    assert (run / "export" / "model-int8.onnx").exists()
    (tmp_path / "a,b").mkdir()
    (tmp_path / "p.ppm").rename(tmp_path / "a,b" / "p.ppm")
    assert Result(*command, "--calibrate", str(tmp_path / "a,b"), "--force").code == 0
    assert len(runtimes[-1][2]) == 1  # a path that exists may hold a comma


def test_a_checkpoint_is_copied_with_its_card(run, tmp_path):
    out = tmp_path / "copy"
    done = Result("export", "weights", str(run), "--precision", "fp16", "-o", str(out))
    assert done.code == 0 and f"next: pinmem export push {out} user/name" in done.err
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    ours, theirs = load_checkpoint(run / "checkpoint")[0], load_checkpoint(out)[0]
    assert torch.equal(ours.memory.slots, theirs.memory.slots)


@pytest.mark.parametrize("text", ["A card by hand.", "## Scores\n\n51.4\n"])
def test_a_copy_keeps_a_card_by_hand_or_with_the_only_scores(run, tmp_path, text):
    card = run / "checkpoint" / "README.md"
    by_pinmem = card.read_text()
    card.write_text(f"{text}{by_pinmem if 'Scores' in text else ''}")
    assert Result("export", "weights", str(run), "-o", str(tmp_path / "copy")).code == 0
    assert (tmp_path / "copy" / "README.md").read_text() == card.read_text() != by_pinmem


def test_a_copy_that_is_replaced_has_no_card_of_a_third_kind_in_between(run, tmp_path, monkeypatch):
    """A death between two writes of the card would leave one without the scores."""
    command = ("export", "weights", str(run), "-o", str(tmp_path / "copy"))
    assert Result(*command).code == 0
    replaced, replace = [], Path.replace

    def note(path: Path, target: Path) -> Path:
        replaced.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", note)
    assert Result(*command, "--force").code == 0
    assert sorted(replaced) == ["README.md", "config.json", "model.safetensors"]


def test_the_originals_file_becomes_a_checkpoint(tmp_path, monkeypatch):
    asked = []

    def convert(path, *, allow_missing_memory):
        asked.append((path, allow_missing_memory))
        model = ModelConfig(backbone="tiny", feature_dim=16, memory=None)
        told = {"file": "o.pth", "method": "aggregate", "assumed": ["output stride 16"]}
        return Segmenter(model), {"converted": told}

    monkeypatch.setattr("pinmem_core.export.official.convert_official", convert)
    out = tmp_path / "out"
    call = ("export", "convert", "o.pth", "-o", str(out), "--allow-missing-memory")
    done = Result(*call)
    assert done.code == 0, done.err
    assert asked == [(Path("o.pth"), True)]
    assert "no memory" in done.out and "assumed: output stride 16" in done.out
    assert f"next: pinmem export onnx {out}" in done.err
    assert load_checkpoint(out)[1]["converted"]["file"] == "o.pth"
    (out / "mine.txt").write_text("mine")
    assert Result(*call).code == 2 and Result(*call, "--force").code == 0
    assert (out / "mine.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("push RUN a/b -o x", "No such option: -o"),
        ("push RUN a/b --precision fp16", "No such option: --precision"),
        ("onnx RUN --private", "No such option: --private"),
        ("onnx RUN --dry-run", "No such option: --dry-run"),
        ("torch RUN --opset 18", "No such option: --opset"),
        ("torch RUN --precision int8", "'float32', 'fp16'"),
        ("weights RUN --argmax", "No such option: --argmax"),
        ("onnx RUN --calibrate x", "--calibrate does nothing without --precision int8"),
        ("onnx RUN --size 640", "not of the form WIDTHxHEIGHT"),
        ("onnx RUN --size 0x64", "not of the form WIDTHxHEIGHT"),
        ("push RUN streets", "'streets' is no valid model name"),
        ("push RUN a/b@v1 --revision v2", "names a branch, and --revision another"),
        ("push RUN a/b --revision ../x", "is no valid branch name"),
        ("convert f.pth", "Missing option '--output'"),
        ("onnyx RUN", "Did you mean 'onnx'?"),
        ("RUN --to onnx --int8", "pinmem export onnx RUN."),
        ("RUN --to=torch-export,onnx", "pinmem export onnx RUN."),
        ("RUN --to torch-export", "pinmem export torch RUN."),
        ("--to safetensors RUN", "pinmem export weights RUN."),
        ("RUN --format onnx", "pinmem export onnx RUN."),
        ("RUN --push a/b --private", "pinmem export push RUN a/b."),
        ("--from-official f.pth -o x", "pinmem export convert f.pth."),
    ],
)
def test_options_of_another_command_or_version_are_refused(arguments, said):
    done = Result("export", *arguments.split())
    assert done.code == 2 and not done.out
    assert said in " ".join(done.err.replace("│", " ").split())


def test_what_is_missing_is_named(tmp_path):
    gone = Result("export", "weights", str(tmp_path / "gone"))
    assert gone.code == 3 and "there is no run" in gone.err


def test_its_help_needs_no_torch():
    script = """
import sys
from pinmem_cli.app import app
try:
    app(["export", "push", "--help"])
finally:
    assert not {"torch", "huggingface_hub"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "user/name@revision" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_graph_gives_what_the_network_gives(run, tmp_path):
    done = Result("export", "torch", str(run), "--argmax", "--preprocess", "--json")
    assert done.code == 0, done.err
    program = torch.export.load(done.json["files"][0]["path"]).module()
    image = np.random.default_rng(0).integers(0, 256, (1, 45, 77, 3), dtype=np.uint8)
    from pinmem_core import load
    from pinmem_core.inference import PROTOCOLS

    mask = load(str(run), device="cpu", protocol=PROTOCOLS["paper-train"]).predict(image[0])
    assert (program(torch.from_numpy(image))[0].numpy() == mask).mean() > 0.999
    assert json.loads(Path(f"{done.json['files'][0]['path']}.json").read_text())
