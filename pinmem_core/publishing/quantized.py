"""ONNX files that compute in 8-bit integers.

The ranges of all values are fixed beforehand, by images that show them. Finding them anew for every
image was measured, too: it took more time than the integers saved, and lost more (docs/export.md).
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.errors import ConfigError, DataError
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.files import whole_file
from pinmem_core.publishing.compared import Pixels
from pinmem_core.publishing.onnx_file import OnnxRunner, require_onnx, save_onnx
from pinmem_core.publishing.signature import INPUT, Signature
from pinmem_core.publishing.verified import ExportReport, verify
from pinmem_core.scenes import DOMAINS, draw_scene

if TYPE_CHECKING:
    import onnx

_IN_INTEGERS = ("Conv", "Add", "Relu", "Clip", "Concat", "MaxPool")
"""The rest, among it reading the memory, resizing and preprocessing, costs little in float."""
_FIRST_IN_FLOAT = 6
"""Convolutions, in networks with depthwise ones: there the channels differ so much in size that
they should not share a scale."""
_DRAWN_PER_DOMAIN = 2
_EACH_HELD_OUT = 4
"""Of so many images, one sets no ranges, but shows how well those of the others fit it."""


def quantize(
    onnx_path: Path,
    path: Path,
    images: Iterable[Pixels] | None = None,
    *,
    on_event: Listener = ignore,
) -> ExportReport:
    """Write an ONNX file whose convolutions compute in 8-bit integers.

    It takes and gives what the float file does. Before it takes its place, both are compared on
    every fourth of the images, which set no ranges (on the same ones where there are fewer than
    four), or on drawn streets without images. The result goes into a JSON file next to it.

    Args:
        onnx_path: A float32 file of `export_model`.
        path: The file, replaced if it exists.
        images: RGB (H, W, 3), of any sizes, that show what values occur; None for drawn streets.
        on_event: Hears of the progress.

    Raises:
        ConfigError: The file at `onnx_path` is not of float32.
        DataError: It is missing or no ONNX file of pinmem, or there are no images.
        MachineError: A library is missing, or the folder cannot be written to.
        PinMemError: The file would differ too much; then there is none.
    """
    require_onnx()
    import onnx

    plain = _open(onnx_path)
    held_out: list[Pixels] = []
    if images is not None:
        images = list(images)
        held_out = images[_EACH_HELD_OUT - 1 :: _EACH_HELD_OUT]
    if held_out:
        rest = [i for n, i in enumerate(images or (), start=1) if n % _EACH_HELD_OUT]
    else:
        rest = held_out = list(images or ())
    shown = _drawn() if images is None else rest
    feed = _Feed(shown, plain.signature, path.name, on_event)
    with whole_file(path) as partial:
        model = _in_integers(onnx_path, feed)
        calibration = f"{feed.count} {'drawn streets' if images is None else 'images'}"
        facts = {**plain.facts, "precision": "int8", "calibration": calibration}
        save_onnx(model, facts, partial)
        network = OnnxRunner(_giving_logits(onnx.load(onnx_path)))
        run = OnnxRunner(partial)
        size = plain.signature.size
        return verify(
            partial,
            path,
            run,
            network,
            size=size,
            facts=facts,
            on_event=on_event,
            images=[_of_size(image, plain.signature) for image in held_out],
        )


def _open(path: Path) -> OnnxRunner:
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    runner = OnnxRunner(path)
    precision = runner.facts.get("precision")
    if precision is None:
        raise DataError(f"{path} is no ONNX file of pinmem.", "Export a run with '--to onnx'.")
    if precision != "float32":
        raise ConfigError(
            f"{path} is of {precision}; only float32 becomes integers.",
            "Export it without half precision.",
        )
    return runner


def _drawn() -> Iterable[Pixels]:
    numbers = range(100, 100 + _DRAWN_PER_DOMAIN)  # others than the comparison's
    return (draw_scene(domain, number).image for domain in DOMAINS for number in numbers)


class _Feed:
    """Calibration images one by one, as onnxruntime asks for them.

    Attributes:
        count: How many it was given.
    """

    def __init__(
        self, images: Iterable[Pixels], signature: Signature, name: str, on_event: Listener
    ) -> None:
        self.count = 0
        self._images = iter(images)
        self._signature = signature
        self._tell = lambda: on_event(Progress(f"calibrating {name}", self.count, 0))

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        """Return what the file takes of the next image, or None after the last."""
        image = next(self._images, None)
        if image is None:
            if self.count == 0:
                raise DataError("there are no images to calibrate with.", "Give at least one.")
            return None
        self.count += 1
        self._tell()
        pixels = torch.from_numpy(_of_size(image, self._signature)[None])
        return {INPUT: self._signature.feed(pixels).numpy()}


def _of_size(image: Pixels, signature: Signature) -> Pixels:
    """Return a writable copy of an image, of the size that a file takes."""
    if signature.size:
        return np.array(Image.fromarray(image).resize(signature.size[::-1]))
    return np.array(image)


def _in_integers(onnx_path: Path, feed: _Feed) -> "onnx.ModelProto":
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        plain, integer = Path(folder, "plain.onnx"), Path(folder, "integer.onnx")
        quant_pre_process(onnx_path, plain, skip_symbolic_shape=True)
        quantize_static(
            plain,
            integer,
            feed,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_in_integers_of(onnx.load(plain)),
            nodes_to_exclude=_kept_in_float(onnx.load(plain)),
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with int8 weights what x86 multiplies fastest
            weight_type=QuantType.QInt8,
            reduce_range=True,  # of weights, to 7 bits: sums of 8 overflow where a CPU has no VNNI
        )
        return onnx.load(integer)


def _in_integers_of(model: "onnx.ModelProto") -> list[str]:
    """Return the operators that become integers: no sums where norms compute statistics."""
    means = sum(node.op_type == "ReduceMean" for node in model.graph.node)
    norms_of_image = means > len([node for node in model.graph.node if node.op_type == "Conv"])
    return [kind for kind in _IN_INTEGERS if not (norms_of_image and kind == "Add")]


def _kept_in_float(model: "onnx.ModelProto") -> list[str]:
    """Return the names of the convolutions that lose too much as integers."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    depthwise = any(a.name == "group" and a.i > 1 for c in convolutions for a in c.attribute)
    return [node.name for node in convolutions[:_FIRST_IN_FLOAT]] if depthwise else []


def _giving_logits(model: "onnx.ModelProto") -> bytes:
    """Return a model without the argmax at its end."""
    import onnx

    for node in model.graph.node:
        if node.op_type == "ArgMax":
            logits = onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None)
            del model.graph.output[:]
            model.graph.output.append(logits)
            break
    return model.SerializeToString()
