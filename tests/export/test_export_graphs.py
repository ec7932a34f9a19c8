"""Exported graphs compute what the network does, at sizes that were not traced, or are refused."""

import json
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_networks import network

import pinmem_core as pm
from pinmem_core.data.transforms import normalize
from pinmem_core.errors import ConfigError, MachineError, PinMemError
from pinmem_core.export import graph
from pinmem_core.export.check import compare, pictures
from pinmem_core.export.files import export_model
from pinmem_core.export.torch_export import write_program
from pinmem_core.inference import Predictor
from pinmem_core.models.decoders import decoders
from pinmem_core.models.norm import set_alpha

pytestmark = pytest.mark.slow
SHAPES = ((1, 97, 131), (3, 70, 96), (2, 33, 50))


@pytest.fixture(scope="module")
def segmenter():
    return network()


@pytest.fixture(scope="module")
def exported(segmenter, tmp_path_factory):
    return export_model(segmenter, tmp_path_factory.mktemp("onnx") / "model.onnx", "onnx")


def eager(segmenter, pixels):
    with torch.no_grad():
        return segmenter(normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))).numpy()


def by_hand(path, pixels):
    """Run an ONNX file by what its metadata says, without pinmem."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    how = json.loads(facts["pinmem.preprocessing"])
    images = (pixels / np.float32(255) - np.float32(how["mean"])) / np.float32(how["std"])
    return session.run(["logits"], {"images": images.transpose(0, 3, 1, 2).copy()})[0]


def by_torch(path, pixels):
    module = torch.export.load(path).module()
    with torch.no_grad():
        return module(normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))).numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_onnx_file_computes_what_the_network_does(segmenter, exported, shape):
    pixels = pictures(shape)
    found, expected = by_hand(exported.path, pixels), eager(segmenter, pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_an_onnx_file_says_what_it_is(exported):
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["pinmem.classes"])[13] == "car"
    assert json.loads(facts["pinmem.palette"])[13] == [0, 0, 142]
    assert facts["pinmem.input"] == "images: float32 (batch, channel, height, width)"
    assert facts["pinmem.output"] == "logits: float32 (batch, class, height, width)"
    assert [o.version for o in model.opset_import if o.domain == ""] == [18]
    axes = [axis.dim_param or axis.dim_value for axis in dims(model.graph.input[0])]
    assert axes == ["batch", 3, "height", "width"]
    axes = [axis.dim_param or axis.dim_value for axis in dims(model.graph.output[0])]
    assert axes == ["batch", 19, "height", "width"]


def dims(value):
    return value.type.tensor_type.shape.dim


def test_an_onnx_file_holds_the_weights_and_no_traces_of_this_machine(segmenter, exported):
    weights = sum(value.nbytes for value in segmenter.parameters())
    assert exported.path.stat().st_size < weights + 2_000_000
    assert str(Path.cwd()).encode() not in exported.path.read_bytes()
    assert b"stack_trace" not in exported.path.read_bytes()


def test_the_comparison_stands_beside_the_file(exported):
    content = json.loads(exported.sidecar.read_text())
    assert exported.sidecar.name == "model.onnx.json"
    assert content["bytes"] == exported.bytes == exported.path.stat().st_size
    assert content["metadata"]["precision"] == "float32"
    assert [case["shape"] for case in content["compared"]] == [
        [1, 128, 256],
        [3, 97, 131],
        [2, 161, 65],
    ]
    for case in content["compared"]:
        assert 0 < case["largest_difference"] < 1e-4 < case["largest_logit"]
        assert case["equal"] > 0.999 and case["sure_equal"] == 1
    assert sorted(path.name for path in exported.path.parent.iterdir()) == [
        "model.onnx",
        "model.onnx.json",
    ]


@pytest.mark.slow
def test_a_program_of_torch_computes_what_the_network_does(tmp_path):
    other = network(decoder="deeplabv2")
    told = []
    report = export_model(other, tmp_path / "model.pt2", "torch-export", on_event=told.append)
    for shape in SHAPES:
        found, expected = by_torch(report.path, pictures(shape)), eager(other, pictures(shape))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    with ZipFile(report.path) as archive:
        assert not any(b"segmenter.py" in archive.read(name) for name in archive.namelist())
    extra = {"pinmem.json": ""}
    weights = torch.export.load(report.path, extra_files=extra).state_dict
    assert "network.memory.slots" in weights
    assert not any("auxiliary" in name or "write_map" in name for name in weights)
    assert json.loads(extra["pinmem.json"])["precision"] == "float32"
    assert [event.done for event in told] == [0, 1, 0, 1, 2, 3]


@pytest.mark.slow
def test_pixels_in_and_train_ids_out_in_half_precision(segmenter, tmp_path):
    """All the options at once, and a segmenter in training mode."""
    told = {"size": (97, 131), "half": True, "preprocess": True, "argmax": True}
    report = export_model(segmenter.train(), tmp_path / "half.onnx", "onnx", **told)
    assert segmenter.training and segmenter.autocast is None
    segmenter.eval()
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 97, 131, 3]
    pixels = pictures((1, 97, 131))
    found = session.run(None, {"images": pixels})[0]
    assert found.dtype == np.uint8 and found.shape == (1, 97, 131)
    assert (found[0] == Predictor(segmenter, device="cpu").predict(pixels[0])).mean() > 0.99
    types = [tensor.data_type for tensor in onnx.load(report.path).graph.initializer]
    assert types.count(onnx.TensorProto.FLOAT16) > types.count(onnx.TensorProto.FLOAT)
    assert [case.largest_difference for case in report.compared] == [None]


@pytest.mark.parametrize("argmax", [False, True])
def test_a_file_that_computes_something_else_is_refused(segmenter, tmp_path, monkeypatch, argmax):
    right = graph.Graph.forward

    def wrong(self, images):
        given = right(self, images)
        return (given + 1) % 19 if argmax else given + 0.02

    monkeypatch.setattr(graph.Graph, "forward", wrong)
    reason = "clear pixels change their class" if argmax else r"a logit differs by 0\.02"
    with pytest.raises(PinMemError, match=rf"model\.pt2 was removed: .*{reason}.*\.$") as caught:
        export_model(
            segmenter, tmp_path / "model.pt2", "torch-export", size=(64, 64), argmax=argmax
        )
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_no_numbers_are_refused():
    pixels = pictures((1, 8, 8))
    right, wrong = np.zeros((1, 19, 8, 8), np.float32), np.full((1, 19, 8, 8), np.nan, np.float32)
    for run, expected in ((wrong, right), (right, wrong)):
        case = compare(lambda _, run=run: run, lambda _, expected=expected: expected, pixels, 0.05)
        assert "differs by nan" in case.problem()


def test_a_network_that_cannot_be_traced_is_told_in_a_sentence(segmenter, tmp_path, monkeypatch):
    right = graph.Graph.forward

    def untraceable(self, images):
        return right(self, images) if images.sum() > 0 else images

    monkeypatch.setattr(graph.Graph, "forward", untraceable)
    with pytest.raises(PinMemError, match="the network cannot be traced: ") as caught:
        export_model(segmenter, tmp_path / "model.pt2", "torch-export")
    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named(segmenter, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MachineError, match=f"need {missing}, which is missing") as caught:
        export_model(segmenter, tmp_path / "model.onnx", "onnx")
    assert caught.value.hint == "pip install 'pinmem[export]'"


@pytest.mark.parametrize("opset", [7, 17, 99])
def test_opsets_that_cannot_be_written_are_refused(segmenter, tmp_path, opset):
    with pytest.raises(ConfigError, match=f"opset {opset} cannot be written"):
        export_model(segmenter, tmp_path / "model.onnx", "onnx", opset=opset)
    with pytest.raises(ConfigError, match="ONNX files only"):
        export_model(segmenter, tmp_path / "model.pt2", "torch-export", opset=opset)


@pytest.fixture(scope="module")
def test_time_bn(tmp_path_factory):
    segmenter = calibrated(network())
    path = tmp_path_factory.mktemp("own") / "model.onnx"
    return segmenter, export_model(segmenter, path, "onnx").path


def calibrated(segmenter):
    set_alpha(segmenter, 0.3)
    return segmenter


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 16), (2, 5, 40), (1, 97, 131)])
def test_a_norm_of_one_position_has_no_statistics_of_its_own(test_time_bn, shape):
    segmenter, path = test_time_bn
    pixels = pictures(shape)
    np.testing.assert_allclose(by_hand(path, pixels), eager(segmenter, pixels), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_file_holds_products_and_means_that_all_runtimes_compute_alike(test_time_bn):
    nodes = onnx.load(test_time_bn[1]).graph.node
    kinds = {node.op_type for node in nodes}
    assert "MatMul" in kinds and "Einsum" not in kinds
    assert "Slice" not in kinds  # onnxscript compares each with all nodes, in most of an export
    weights = {t.name: t for t in onnx.load(test_time_bn[1]).graph.initializer}
    axes = [
        onnx.numpy_helper.to_array(weights[node.input[1]]).size
        for node in nodes
        if node.op_type == "ReduceMean"
    ]
    assert axes.count(1) > 20  # rows first, then columns


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
def test_a_program_on_a_full_disk_is_an_error_and_no_abort():
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))
    with pytest.raises(OSError, match="No space left"):
        write_program(program, {}, Path("/dev/full"))


@pytest.mark.slow
@pytest.mark.parametrize("opset", [19, 21, 23])
def test_other_opsets_compute_the_same(segmenter, tmp_path, opset):
    report = export_model(segmenter, tmp_path / "model.onnx", "onnx", opset=opset, size=(64, 96))
    assert onnx.load(report.path).opset_import[0].version == opset


@pytest.mark.slow
@pytest.mark.parametrize("stride", [8, 32])
def test_other_strides_down_to_the_least_size(tmp_path, stride):
    deep = network(stride=stride)
    least = pictures((1, stride + 1, stride + 1))
    for form, run in (("onnx", by_hand), ("torch-export", by_torch)):
        path = export_model(deep, tmp_path / form, form).path
        if form == "torch-export":
            path = path.rename(tmp_path / "model.pt2")
        np.testing.assert_allclose(run(path, least), eager(deep, least), rtol=0, atol=1e-4)


def how_slow(backbone):
    """A network takes half a minute to a minute; resnet10 stands for the others in CI."""
    marks = pytest.mark.slow if backbone == "resnet10" else pytest.mark.exhaustive
    return pytest.param(backbone, marks=marks)


def in_ci(head):
    """The mask decoder takes minutes, and the tests' own one is as quick to export as "linear"."""
    marks = pytest.mark.exhaustive if head in ("mask", "flat") else ()
    return pytest.param(head, marks=marks)


@pytest.mark.parametrize(
    "memory",
    [
        pytest.param(True, id="memory"),
        pytest.param(False, id="plain", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("head", [in_ci(name) for name in sorted(decoders.all())])
@pytest.mark.parametrize("backbone", [how_slow(name) for name in pm.list_backbones()])
def test_every_network_in_every_form(tmp_path, backbone, head, memory):
    segmenter = network(backbone, head, memory=memory)
    for name, form, run in (("a.onnx", "onnx", by_hand), ("a.pt2", "torch-export", by_torch)):
        path = export_model(segmenter, tmp_path / name, form).path
        for shape in SHAPES:
            found, expected = run(path, pictures(shape)), eager(segmenter, pictures(shape))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "form", ["onnx", pytest.param("torch-export", marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("backbone", [how_slow(name) for name in ("resnet10", "resnet50")])
def test_half_precision_comes_close(tmp_path, backbone, form):
    report = export_model(network(backbone), tmp_path / "model.pt2", form, half=True)
    full = export_model(network(backbone), tmp_path / "full.pt2", form)
    assert report.bytes < 0.6 * full.bytes
    for case in report.compared:
        assert 1e-4 < case.largest_difference / case.largest_logit < 0.05
        assert case.equal > 0.94
