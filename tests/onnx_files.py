"""ONNX files as `pinmem export onnx` writes them, made without torch."""

import json

import numpy as np
import pytest

from pinmem_core.label_space import CITYSCAPES

WEIGHTS = np.random.default_rng(0).normal(size=(19, 3, 1, 1)).astype(np.float32)
"""The network of most tests: a convolution of 1x1 pixels, which needs no torch to be written."""


def write_onnx(path, size=None, **metadata):
    """Write `WEIGHTS` as a file of any size; or of one size, from uint8 to classes."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    height, width = size or ("height", "width")
    count = 1 if size else "batch"
    nodes = [helper.make_node("Conv", ["x" if size else "images", "w"], ["logits"])]
    weights = WEIGHTS
    if size:
        weights = WEIGHTS / 255
        before = helper.make_node("Cast", ["images"], ["c"], to=kind.FLOAT)
        turned = helper.make_node("Transpose", ["c"], ["x"], perm=[0, 3, 1, 2])
        best = helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0)
        nodes = [before, turned, *nodes, best]
        nodes.append(helper.make_node("Cast", ["best"], ["train_ids"], to=kind.UINT8))
        taken = helper.make_tensor_value_info("images", kind.UINT8, [1, height, width, 3])
        given = helper.make_tensor_value_info("train_ids", kind.UINT8, [1, height, width])
    else:
        taken = helper.make_tensor_value_info("images", kind.FLOAT, [count, 3, height, width])
        given = helper.make_tensor_value_info("logits", kind.FLOAT, [count, 19, height, width])
    graph = helper.make_graph(
        nodes, "network", [taken], [given], [onnx.numpy_helper.from_array(weights, "w")]
    )
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    plain = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    about = {"classes": json.dumps(list(CITYSCAPES.names)), "preprocessing": json.dumps(plain)}
    properties = {f"pinmem.{key}": value for key, value in (about | metadata).items()}
    helper.set_model_props(model, properties)
    onnx.save(model, path)
