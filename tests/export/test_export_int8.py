"""Quantised ONNX files stay near the float file that they are made of."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from export_networks import network

from pinmem_core.config import ModelConfig
from pinmem_core.errors import ConfigError, DataError, PinMemError
from pinmem_core.events import Progress
from pinmem_core.export.check import pictures
from pinmem_core.export.files import export_graph, export_model
from pinmem_core.export.int8 import kept_in_float, quantize
from pinmem_core.inference import load
from pinmem_core.label_space import LabelSpace
from pinmem_core.models import Segmenter, save_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "model.onnx"
    export_model(network(), path, "onnx", size=(64, 96), preprocess=True, argmax=True)
    return path


def run(path, pixels):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels})[0]


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_integers_stay_near_the_float_file(plain, tmp_path, capfd):
    images = list(pictures((3, 100, 70)))
    images[0].flags.writeable = False
    events = []
    report = quantize(plain, tmp_path / "int8.onnx", iter(images), on_event=events.append)
    model = onnx.load(report.path)
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["pinmem.precision"] == "int8" and facts["pinmem.calibration"] == "3 images"
    assert json.loads(facts["pinmem.classes"])[0] == "road"
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("DequantizeLinear") > 2 * kinds.count("Conv")
    scales = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if "scale" in t.name]
    assert any(scale.size > 1 for scale in scales), "each channel of a convolution has its own"
    assert report.bytes < 0.7 * plain.stat().st_size
    found, expected = (run(path, pictures((1, 64, 96))) for path in (report.path, plain))
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert 0.85 < (found == expected).mean() < 1
    content = json.loads(report.sidecar.read_text())
    assert content["compared"][0]["sure_equal"] == 1
    assert 0 < content["compared"][0]["sure"] < 1
    assert events[0] == Progress("calibrating int8.onnx", 1, 3)
    assert capfd.readouterr() == ("", "")


def test_synthetic_scenes_serve_where_there_are_no_images(plain, tmp_path):
    report = quantize(plain, tmp_path / "int8.onnx")
    facts = json.loads(report.sidecar.read_text())["metadata"]
    assert facts["calibration"] == "10 synthetic scenes"
    with pytest.raises(DataError, match="no images to calibrate"):
        quantize(plain, tmp_path / "other.onnx", [])


def test_integers_that_lose_too_much_are_refused(plain, tmp_path, monkeypatch):
    """Calibrated with black: what the image held out contains is beyond all ranges."""
    black = [*np.zeros((3, 64, 96, 3), np.uint8), pictures((1, 64, 96))[0]]
    with pytest.raises(PinMemError, match="clear pixels change their class") as caught:
        quantize(plain, tmp_path / "int8.onnx", black)
    assert "Calibrate" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_integers_keep_the_classes_of_a_model_with_its_own(tmp_path):
    own = LabelSpace(
        name="orchard", classes={"grass": (9, 99, 9), "trunk": (99, 9, 9), "sky": (9, 9, 99)}
    )
    plain = tmp_path / "plain.onnx"
    export_model(network(space=own), plain, "onnx", size=(64, 96), preprocess=True)
    report = quantize(plain, tmp_path / "int8.onnx", pictures((3, 64, 96)))
    predictor = load(str(report.path))
    assert predictor.label_space == own
    assert set(np.unique(predictor.predict(pictures((1, 64, 96))[0]))) <= {0, 1, 2}
    assert min(case.equal for case in report.compared) > 0.85


def test_a_network_of_matrix_products_is_refused_before_it_is_written(tmp_path):
    options = {"depth": 3, "embed_dim": 64, "num_heads": 2}
    model = {"backbone": "timm:vit_tiny_patch16_224", "backbone_options": options}
    config = ModelConfig(**model, decoder="linear", output_stride=16, feature_dim=16)
    save_checkpoint(Segmenter(config), tmp_path / "vit", {})
    with pytest.raises(ConfigError, match=r"int8 does not pay .*: \d+% of its weights are in conv"):
        export_graph(str(tmp_path / "vit"), "onnx", tmp_path / "out", precision="int8")
    assert not (tmp_path / "out").exists()


def test_every_fourth_image_is_held_out_to_compare_on(plain, tmp_path):
    images = pictures((9, 64, 96))
    report = quantize(plain, tmp_path / "int8.onnx", images)
    assert [case.shape for case in report.compared] == [(1, 64, 96)] * 2
    facts = json.loads(report.sidecar.read_text())["metadata"]
    assert facts["calibration"] == "7 images"


def test_large_photos_are_reduced_to_a_megapixel(tmp_path):
    """Calibrating with a photo of 12 megapixels took more than 9 GB."""
    tiny = Segmenter(ModelConfig(backbone="tiny", feature_dim=16, memory=None)).eval()
    export_model(tiny, tmp_path / "model.onnx", "onnx", preprocess=True)
    report = quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx", pictures((1, 1100, 1500)))
    assert report.compared[0].shape == (1, 856, 1167)


def test_only_float32_files_of_pinmem_become_integers(plain, tmp_path):
    def changed(precision: str | None):
        model = onnx.load(plain)
        props = {prop.key: prop.value for prop in model.metadata_props}
        kept = props | {"pinmem.precision": precision} if precision else {}
        onnx.helper.set_model_props(model, kept)
        onnx.save(model, tmp_path / "changed.onnx")
        return tmp_path / "changed.onnx"

    out = tmp_path / "int8.onnx"
    with pytest.raises(DataError, match="does not exist"):
        quantize(tmp_path / "absent.onnx", out)
    with pytest.raises(DataError, match="was not written by pinmem"):
        quantize(changed(None), out)
    with pytest.raises(ConfigError, match="is float16; only float32 files can be quantized"):
        quantize(changed("float16"), out)
    (tmp_path / "torn.onnx").write_bytes(plain.read_bytes()[:1000])
    with pytest.raises(PinMemError, match=r"cannot run .*torn\.onnx"):
        quantize(tmp_path / "torn.onnx", out)
    assert not out.exists()


def test_the_first_convolutions_stay_in_float_where_there_are_depthwise_ones():
    def convolution(number: int, group: int):
        return onnx.helper.make_node("Conv", ["x", "w"], ["y"], name=f"conv{number}", group=group)

    def kept(groups):
        nodes = [convolution(number, group) for number, group in enumerate(groups)]
        return kept_in_float(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [])))

    assert kept([1] * 9) == []
    assert kept([1, 32] + [1] * 7) == [f"conv{number}" for number in range(6)]
