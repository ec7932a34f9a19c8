"""Predicting with ONNX files that `pinmem export onnx` has written, and with others."""

import numpy as np
import pytest
import torch
from conftest import Result
from onnx_files import WEIGHTS, write_onnx
from PIL import Image

from pinmem_core.config import ModelConfig
from pinmem_core.errors import ConfigError, DataError
from pinmem_core.export.files import export_model
from pinmem_core.images import write_png
from pinmem_core.inference import PROTOCOLS, Predictor, load
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.models import Segmenter

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def files(tmp_path):
    """A file of any size, and one of 96x64 pixels that takes uint8 and returns classes."""
    folder = tmp_path / "files"
    folder.mkdir()
    write_onnx(folder / "free.onnx", protocol="photo")
    write_onnx(folder / "fixed.onnx", (64, 96))
    return folder


def logits_of(image):
    return np.einsum("kc,hwc->khw", WEIGHTS[:, :, 0, 0], image / 255)


def noise(height, width):
    rng = np.random.default_rng(height)
    small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


def test_a_file_predicts_like_any_model(files):
    image = noise(70, 101)
    predictor = load(str(files / "free.onnx"))
    assert predictor.label_space == CITYSCAPES and predictor.protocol == PROTOCOLS["photo"]
    found, logits = predictor.analyze(image, confidence=True, entropy=True), logits_of(image)
    assert (found.train_ids == logits.argmax(0)).mean() > 0.999
    shares = np.exp(logits) / np.exp(logits).sum(0)
    np.testing.assert_allclose(found.confidence, shares.max(0), atol=1e-5)
    entropy = -(shares * np.log(shares)).sum(0) / np.log(19)
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-5)


def test_a_large_image_is_predicted_in_windows(files):
    image, events = noise(300, 400), []
    predictor = load(
        str(files / "free.onnx"),
        protocol=PROTOCOLS["paper-pool"],
        memory=2**20,
        on_event=events.append,
    )
    assert (predictor.predict(image) == logits_of(image).argmax(0)).mean() > 0.999
    assert predictor.tiled and "overlapping windows of 257x257" in events[0].message


@pytest.mark.parametrize("protocol", ["fast", "paper-pool"])
@pytest.mark.parametrize("size", [(64, 96), (40, 50), (100, 97), (64, 200), (10, 300)])
def test_a_file_of_a_fixed_size_predicts_images_of_any_size(files, size, protocol):
    image = noise(*size)
    mask = load(str(files / "fixed.onnx"), protocol=PROTOCOLS[protocol]).predict(image)
    assert mask.shape == size
    assert (mask == logits_of(image).argmax(0)).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"size": (64, 96), "preprocess": True}])
def test_an_exported_file_predicts_as_its_network(tmp_path, options):
    torch.manual_seed(0)
    segmenter = Segmenter(ModelConfig(backbone="tiny", feature_dim=16)).eval()
    segmenter.about = {"protocol": "paper-pool"}
    export_model(segmenter, tmp_path / "m.onnx", "onnx", **options)
    predictor = load(str(tmp_path / "m.onnx"))
    assert predictor.protocol == PROTOCOLS["paper-pool"]
    expected = Predictor(segmenter, device="cpu", protocol=predictor.protocol)
    image = noise(64, 96)
    torch.testing.assert_close(
        predictor.scores(image), expected.scores(image), atol=1e-4, rtol=1e-3, check_dtype=False
    )
    assert predictor.bytes_per_pixel == pytest.approx(expected.bytes_per_pixel, rel=0.5)


def test_a_file_without_probabilities_says_so(files):
    predictor = load(str(files / "fixed.onnx"))
    with pytest.raises(ConfigError, match="without their probabilities"):
        predictor.analyze(noise(64, 96), confidence=True)


def test_the_command_takes_a_file(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "a.png", noise(64, 96))
    name = str(files / "free.onnx")
    done = Result("predict", "a.png", "--model", name, "--json")
    assert done.code == 0 and done.json["model"] == name and done.json["protocol"] == "photo"
    assert f"model: {name}, an ONNX file" in done.err
    for option in (["--precision", "bf16"], ["--compile"], ["--device", "cuda"]):
        refused = Result("predict", "a.png", "-o", "b.png", "--model", name, *option)
        assert refused.code == 2 and option[0] in refused.err
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    monkeypatch.setattr("pinmem_core.inference.onnx_runner.find_spec", lambda *_: None)
    missing = Result("predict", "a.png", "-o", "b.png", "--model", name)
    assert missing.code == 5 and "pip install 'pinmem[export]'" in missing.err


def test_another_file_is_refused_in_a_sentence(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path / "a.png", noise(64, 96))
    model = onnx.load(files / "free.onnx")
    del model.metadata_props[:]
    onnx.save(model, "foreign.onnx")
    one = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "other",
        [one],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), "identity.onnx")
    (tmp_path / "torn.onnx").write_bytes((files / "free.onnx").read_bytes()[:100])
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, code, words in (
        ("foreign.onnx", 3, "was not written by pinmem"),
        ("identity.onnx", 3, "was not written by pinmem"),
        ("torn.onnx", 1, "cannot run torn.onnx"),
        ("empty.onnx", 1, "cannot run empty.onnx"),
        ("absent.onnx", 3, "absent.onnx does not exist"),
    ):
        done = Result("predict", "a.png", "-o", "b.png", "--model", name)
        assert done.code == code and words in done.err, done.err
        assert len(done.err.splitlines()) <= 3


def test_a_file_predicts_in_its_own_classes(tmp_path):
    space = LabelSpace(name="own", classes=[f"thing {number}" for number in range(19)])
    write_onnx(tmp_path / "own.onnx", label_space=space.model_dump_json())
    predictor = load(str(tmp_path / "own.onnx"))
    assert predictor.label_space == predictor.analyze(noise(32, 32)).space == space
    write_onnx(tmp_path / "odd.onnx", label_space="{")
    with pytest.raises(DataError, match="metadata"):
        load(str(tmp_path / "odd.onnx"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"classes": "{"}, "classes: Invalid JSON"),
        ({"classes": '["road", "sky"]'}, "2 classes, but gives 19 logits"),
        ({"preprocessing": "{"}, "preprocessing: Invalid JSON"),
        ({"preprocessing": '{"mean": [0, 0], "std": [1, 1, 1]}'}, "preprocessing.mean.2"),
        ({"preprocessing": '{"mean": [0, 0, 0], "std": [1, 0, 1]}'}, "preprocessing.std.1"),
        ({"bytes_per_pixel": "0"}, "bytes_per_pixel"),
        ({"bytes_per_pixel": "nan"}, "bytes_per_pixel"),
    ],
)
def test_damaged_metadata_are_named(tmp_path, damage, words):
    write_onnx(tmp_path / "odd.onnx", **damage)
    with pytest.raises(DataError, match="metadata") as refused:
        load(str(tmp_path / "odd.onnx"))
    assert words in refused.value.message


def test_a_file_need_not_state_the_shape_of_its_logits(files, tmp_path):
    """As for int8 files of any size with argmax: they are compared by their logits."""
    model, node = onnx.load(files / "free.onnx"), onnx.helper.make_node
    model.graph.node[-1].output[0] = "found"
    model.graph.node.append(node("Shape", ["found"], ["shape"]))
    model.graph.node.append(node("Reshape", ["found", "shape"], ["logits"]))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "odd.onnx")
    image = noise(20, 30)
    found = load(str(tmp_path / "odd.onnx")).predict(image)
    assert (found == load(str(files / "free.onnx")).predict(image)).all()


def test_an_unknown_protocol_of_a_file_can_be_replaced(tmp_path):
    write_onnx(tmp_path / "odd.onnx", protocol="of-tomorrow")
    with pytest.raises(DataError, match="of-tomorrow"):
        load(str(tmp_path / "odd.onnx"))
    assert load(str(tmp_path / "odd.onnx"), protocol=PROTOCOLS["fast"]).predict(noise(9, 9)).any()
