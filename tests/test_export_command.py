"""`pinmem export`: what its options mean, and what they do not go with."""

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result

from pinmem_core.config import ModelConfig
from pinmem_core.models import Segmenter, load_checkpoint, save_checkpoint


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    segmenter = Segmenter(ModelConfig(backbone="tiny", feature_dim=16))
    save_checkpoint(segmenter, tmp_path / "run" / "checkpoint", {"training": {"sources": ["toy"]}})
    return tmp_path / "run"


@pytest.fixture
def runtimes(monkeypatch):
    """Stand-ins for what writes graphs; `calls` holds what they were asked for."""
    calls = []
    compared = types.SimpleNamespace(equal=0.9999, largest_difference=2e-5)

    def export_model(segmenter, path, form, *, on_event, **how):
        calls.append((form, path.name, how))
        path.write_bytes(b"graph")
        return types.SimpleNamespace(compared=(compared,))

    def quantize(source, path, images, *, on_event):
        calls.append(("int8", source.name, images if images is None else list(images)))
        path.write_bytes(b"small")
        return types.SimpleNamespace(compared=(compared,))

    monkeypatch.setattr("pinmem_core.export.files.export_model", export_model)
    monkeypatch.setattr("pinmem_core.export.files.quantize", quantize)
    return calls


PLAIN = {"size": None, "half": False, "opset": None, "preprocess": False, "argmax": False}


def test_a_rehearsal_shows_what_would_be_sent_and_asks_nobody(run, monkeypatch):
    monkeypatch.setattr("pinmem_core.export.push.HfApi", None)
    done = Result("export", str(run), "--push", "ada/streets", "--private", "--dry-run")
    assert done.code == 0, done.err
    assert "ada/streets, private (nothing was sent)" in done.out
    assert "model.safetensors" in done.out and "library_name: pinmem" in done.out
    assert "--push ada/streets --private" in done.err
    told = Result("export", str(run), "--push", "ada/streets@v2", "--dry-run", "--json").json
    assert told["repository"] == "ada/streets" and told["revision"] == "v2"
    assert told["commit"] is None and told["dry_run"] is True
    weights = run / "checkpoint" / "model.safetensors"
    assert told["files"]["model.safetensors"] == weights.stat().st_size


def test_graphs_are_written_as_asked(run, runtimes, tmp_path):
    done = Result("export", str(run), "--to", "onnx", "--to", "torch-export")
    assert done.code == 0, done.err
    assert runtimes == [("onnx", "model.onnx", PLAIN), ("torch-export", "model.pt2", PLAIN)]
    assert str(run / "export" / "model.onnx") in done.out
    assert "99.99 % of the pixels agree with the network" in done.err
    assert "at most 2.0e-05" in done.err and "next: pinmem predict" in done.err
    options = ("--fp16", "--size", "96x64", "--preprocess", "--argmax", "--opset", "18")
    done = Result("export", str(run), "--to", "onnx", *options, "-o", str(tmp_path / "o"), "--json")
    assert runtimes[-1][2] == {
        "size": (64, 96),
        "half": True,
        "opset": 18,
        "preprocess": True,
        "argmax": True,
    }
    assert done.json["files"][0]["path"] == str(tmp_path / "o" / "model.onnx")
    assert done.json["files"][0]["compared"] == [{"equal": 0.9999, "largest_difference": 2e-5}]


def test_nothing_is_replaced_unless_forced(run, runtimes):
    assert Result("export", str(run), "--to", "onnx").code == 0
    again = Result("export", str(run), "--to", "safetensors", "--to", "onnx")
    assert again.code == 2 and "model.onnx exists already" in again.err
    assert len(runtimes) == 1 and not (run / "export" / "config.json").exists()
    assert Result("export", str(run), "--to", "onnx", "--force").code == 0


def test_integers_are_calibrated_by_images_or_by_the_sources(run, runtimes, tmp_path):
    done = Result("export", str(run), "--to", "onnx", "--int8")
    assert done.code == 0 and runtimes[-1] == ("int8", "model.onnx", None)
    assert "calibrating with synthetic scenes" in done.err
    assert Result("data", "prepare", "toy").code == 0
    assert Result("export", str(run), "--to", "onnx", "--int8", "--force").code == 0
    assert {image.shape for image in runtimes[-1][2]} == {(64, 96, 3)}
    (tmp_path / "p.ppm").write_bytes(b"P6 4 3 255\n" + bytes(36))
    images = ("--calibrate", str(tmp_path / "p.ppm"), "--force")
    assert Result("export", str(run), "--to", "onnx", "--int8", *images).code == 0
    assert [image.shape for image in runtimes[-1][2]] == [(3, 4, 3)]
    assert (run / "export" / "model-int8.onnx").exists()


def test_a_checkpoint_is_copied_with_its_card(run, tmp_path):
    out = tmp_path / "copy"
    done = Result("export", str(run), "--to", "safetensors", "--fp16", "-o", str(out))
    assert done.code == 0 and f"--model {out}" in done.err
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    ours, theirs = load_checkpoint(run / "checkpoint")[0], load_checkpoint(out)[0]
    assert torch.equal(ours.memory.slots, theirs.memory.slots)


def test_a_copy_that_is_replaced_has_no_card_of_a_third_kind_in_between(run, tmp_path, monkeypatch):
    """A death between two writes of the card would leave one without the scores."""
    command = ("export", str(run), "--to", "safetensors", "-o", str(tmp_path / "copy"))
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
    call = ("export", "--from-official", "o.pth", "-o", str(out), "--allow-missing-memory")
    done = Result(*call)
    assert done.code == 0, done.err
    assert asked == [(Path("o.pth"), True)]
    assert "no memory" in done.out and "assumed: output stride 16" in done.out
    assert f"next: pinmem predict IMAGE -o mask.png --model {out}" in done.err
    assert load_checkpoint(out)[1]["converted"]["file"] == "o.pth"
    (out / "mine.txt").write_text("mine")
    assert Result(*call).code == 2 and Result(*call, "--force").code == 0
    assert (out / "mine.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing is to be done"),
        (("--push", "a/b", "--to", "onnx"), "--push and --to contradict each other"),
        (("--to", "onnyx"), "unknown form 'onnyx'"),
        (("--push", "a/b", "--fp16"), "--fp16 does nothing with --push"),
        (("--push", "a/b", "-o", "x"), "--output does nothing with --push"),
        (("--to", "onnx", "--private"), "--private does nothing with --to onnx"),
        (("--to", "onnx", "--dry-run"), "--dry-run does nothing"),
        (("--to", "torch-export", "--opset", "18"), "--opset does nothing with --to torch-export"),
        (("--to", "safetensors", "--argmax"), "--argmax does nothing"),
        (("--to", "onnx", "--calibrate", "x"), "--calibrate does nothing"),
        (("--to", "onnx", "--int8", "--fp16"), "exclude each other"),
        (("--to", "onnx", "--size", "640"), "not of the form WIDTHxHEIGHT"),
        (("--to", "onnx", "--size", "0x64"), "not of the form WIDTHxHEIGHT"),
        (("--to", "onnx", "--allow-missing-memory"), "--allow-missing-memory does nothing"),
        (("--push", "streets"), "'streets' is no valid model name"),
        (("--push", "a/b@v1", "--revision", "v2"), "names a branch, and --revision another"),
        (("--push", "a/b", "--revision", "../x"), "is no valid branch name"),
        (("--from-official", "f.pth", "-o", "x"), "makes a new model"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, arguments, said):
    done = Result("export", str(run), *arguments)
    assert done.code == 2 and said in done.err and not done.out
    assert len(done.err.splitlines()) == 2


def test_what_is_missing_is_named(tmp_path):
    assert "no model is named" in Result("export", "--push", "a/b").err
    assert "needs a folder" in Result("export", "--from-official", "f.pth").err
    gone = Result("export", str(tmp_path / "gone"), "--to", "safetensors")
    assert gone.code == 3 and "there is no run" in gone.err


def test_its_help_needs_no_torch():
    script = """
import sys
from pinmem_cli.app import app
try:
    app(["export", "--help"])
finally:
    assert not {"torch", "huggingface_hub"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "user/name@revision" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_graph_gives_what_the_network_gives(run, tmp_path):
    done = Result("export", str(run), "--to", "torch-export", "--argmax", "--preprocess", "--json")
    assert done.code == 0, done.err
    program = torch.export.load(done.json["files"][0]["path"]).module()
    image = np.random.default_rng(0).integers(0, 256, (1, 45, 77, 3), dtype=np.uint8)
    from pinmem_core import load
    from pinmem_core.inference import PROTOCOLS

    mask = load(str(run), device="cpu", protocol=PROTOCOLS["paper-train"]).predict(image[0])
    assert (program(torch.from_numpy(image))[0].numpy() == mask).mean() > 0.999
    assert json.loads(Path(f"{done.json['files'][0]['path']}.json").read_text())
