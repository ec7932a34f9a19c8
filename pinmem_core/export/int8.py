"""Quantize ONNX files to int8.

Quantization is static: calibration images set the ranges of all activations. Dynamic quantization
is slower than float32 and less accurate (docs/export.md).
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from pinmem_core.errors import ConfigError, DataError, PinMemError
from pinmem_core.evaluation import load_validation
from pinmem_core.events import Listener, Notice, Progress, ignore
from pinmem_core.export.check import ExportedFile, Pixels, verify
from pinmem_core.export.onnx import require_onnx, save_onnx
from pinmem_core.files import atomic_file
from pinmem_core.images import read_image
from pinmem_core.inference.onnx_runner import INPUT, OnnxRunner, Signature
from pinmem_core.inference.sources import find_sources
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.synthetic import DOMAINS, draw_scene

if TYPE_CHECKING:
    import onnx

T = TypeVar("T")

_MOST = 32
"""Maximum number of calibration images."""
_MOST_PIXELS = 1_000_000
"""Maximum size of a calibration image: calibration takes kilobytes per pixel."""
_OPERATORS = ("Conv", "Add", "Relu", "Clip", "Concat", "MaxPool")
"""Quantized operators. The others (memory read, resizing, preprocessing) are cheap in float."""
_FIRST_IN_FLOAT = 6
"""Number of leading convolutions kept in float in networks with depthwise convolutions. There,
channels differ so much in magnitude that they should not share a scale."""
_SCENES = range(100, 102)
"""Synthetic scenes of each domain for calibration; the comparison uses others."""
_EACH_HELD_OUT = 4
"""Every fourth image is held out of calibration and used for the comparison."""


def calibration_images(
    inputs: Sequence[str],
    sources: Sequence[str],
    on_event: Listener,
    network: LabelSpace = CITYSCAPES,
) -> Iterator[Pixels] | None:
    """Return calibration images (H, W, 3) in RGB, or None to calibrate with synthetic scenes.

    Args:
        inputs: Images, folders or glob patterns; empty for the validation images of `sources`.
        sources: Sources that the network was trained on.
        on_event: Callback for the notice that the validation images cannot be loaded.
        network: Label space of the network.

    Raises:
        DataError: `inputs` match no image.
    """
    if inputs:
        paths = [s.path for s in find_sources(inputs, on_event=on_event) if not s.is_video]
        if not paths:
            named = ", ".join(inputs)
            raise DataError(f"{named} matches no image.", "Name images, a folder or a pattern.")
        return (read_image(path) for path in _evenly_spaced(paths))
    try:
        targets = load_validation(sources, _MOST, ignore, network=network)
    except PinMemError as error:
        on_event(Notice(f"calibrating with synthetic scenes: {error.message}", warning=True))
        return None
    samples = [sample for target in targets for sample in target.samples]
    return (sample.read()[0] for sample in _evenly_spaced(samples)) if samples else None


def require_convolutions(network: nn.Module) -> None:
    """Raise ConfigError if most weights of a network are outside of convolutions.

    Matrix products stay in float, so that the int8 file of a ViT is as large and as slow.

    Raises:
        ConfigError: Fewer than half of the weights are in convolutions.
    """
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    convolved = sum(module.weight.numel() for module in convolutions)
    total = sum(parameter.numel() for parameter in network.parameters())
    if convolved < total / 2:
        raise ConfigError(
            f"int8 does not pay for this network: {convolved / total:.0%} of its weights are in "
            "convolutions, and the others stay in float.",
            "Leave out '--precision int8'.",
        )


def _evenly_spaced(items: Sequence[T]) -> Sequence[T]:
    return items[:: max(1, -(-len(items) // _MOST))]


def quantize(
    onnx_path: Path,
    path: Path,
    images: Iterable[Pixels] | None = None,
    *,
    on_event: Listener = ignore,
) -> ExportedFile:
    """Write an int8 version of an ONNX file, with the same inputs and outputs.

    The file is written only after it agrees with the float file. They are compared on every fourth
    image, which is held out of calibration (on all images if there are fewer than four), or on
    synthetic scenes if `images` is None. The comparison is written to a JSON file next to it.

    Args:
        onnx_path: Float32 file written by `export_model`.
        path: Output file; an existing file is replaced.
        images: RGB calibration images, (H, W, 3), of any sizes; None for synthetic scenes.
        on_event: Callback for progress events.

    Raises:
        ConfigError: The file at `onnx_path` is not float32.
        DataError: The file at `onnx_path` is missing or no ONNX file of pinmem, or `images` is
            empty.
        MachineError: A library is missing, or the folder is not writable.
        PinMemError: The int8 file differs too much; no file is written.
    """
    require_onnx()
    import onnx

    plain = _open(onnx_path)
    given = [_fitted(image, plain.signature) for image in (() if images is None else images)]
    held_out = given[_EACH_HELD_OUT - 1 :: _EACH_HELD_OUT] or given
    rest = [image for n, image in enumerate(given, 1) if n % _EACH_HELD_OUT or held_out is given]
    if images is None:
        scenes = (draw_scene(domain, n).image for domain in DOMAINS for n in _SCENES)
        rest = [_fitted(scene, plain.signature) for scene in scenes]
    if not rest:
        raise DataError("there are no images to calibrate with.", "Give at least one.")
    reader = _Reader(rest, plain.signature, path.name, on_event)
    with atomic_file(path) as partial:
        model = _quantized(onnx_path, reader)
        calibration = f"{len(reader)} {'synthetic scenes' if images is None else 'images'}"
        metadata = {**plain.metadata, "precision": "int8", "calibration": calibration}
        save_onnx(model, metadata, partial)
        return verify(
            partial,
            path,
            OnnxRunner(partial),
            OnnxRunner(_giving_logits(onnx.load(onnx_path))),
            size=plain.signature.size,
            metadata=metadata,
            on_event=on_event,
            images=held_out,
        )


def _open(path: Path) -> OnnxRunner:
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    runner = OnnxRunner(path)
    precision = runner.metadata.get("precision", "of unknown precision")
    if precision != "float32":
        raise ConfigError(
            f"{path} is {precision}; only float32 files can be quantized.",
            "Export it without half precision.",
        )
    return runner


class _Reader:
    """Calibration data reader for onnxruntime."""

    def __init__(
        self, images: Sequence[Pixels], signature: Signature, name: str, on_event: Listener
    ) -> None:
        self._images = images
        self._signature = signature
        self._next = 0
        task = f"calibrating {name}"
        self._report = lambda: on_event(Progress(task, self._next, len(images)))

    def __len__(self) -> int:
        return len(self._images)

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        """Return the input for the next image, or None after the last."""
        if self._next == len(self._images):
            return None
        pixels = torch.from_numpy(self._images[self._next][None])
        self._next += 1
        self._report()
        return {INPUT: self._signature.feed(pixels).numpy()}


def _fitted(image: Pixels, signature: Signature) -> Pixels:
    """Return a writable copy of an image in the size of a file, or at most `_MOST_PIXELS` large."""
    height, width = image.shape[:2]
    scale = min(1, (_MOST_PIXELS / (height * width)) ** 0.5)
    size = signature.size or (max(1, int(height * scale)), max(1, int(width * scale)))
    if size == (height, width):
        return np.array(image)
    return np.array(Image.fromarray(image).resize(size[::-1]))


def _quantized(onnx_path: Path, reader: _Reader) -> "onnx.ModelProto":
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        plain, integer = Path(folder, "plain.onnx"), Path(folder, "integer.onnx")
        quant_pre_process(onnx_path, plain, skip_symbolic_shape=True)
        model = onnx.load(plain)
        quantize_static(
            plain,
            integer,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_operators(model),
            nodes_to_exclude=kept_in_float(model),
            per_channel=True,
            activation_type=QuantType.QUInt8,  # fastest on x86 with int8 weights
            weight_type=QuantType.QInt8,
            reduce_range=True,  # 7-bit weights: 8-bit sums overflow on CPUs without VNNI
        )
        return onnx.load(integer)


def _operators(model: "onnx.ModelProto") -> list[str]:
    """Return the operators to quantize; Add stays in float if norms compute image statistics."""
    types = [node.op_type for node in model.graph.node]
    norms_of_image = types.count("ReduceMean") > types.count("Conv")
    return [kind for kind in _OPERATORS if not (norms_of_image and kind == "Add")]


def kept_in_float(model: "onnx.ModelProto") -> list[str]:
    """Return the names of the convolutions that lose too much accuracy in int8."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    depthwise = any(a.name == "group" and a.i > 1 for c in convolutions for a in c.attribute)
    return [node.name for node in convolutions[:_FIRST_IN_FLOAT]] if depthwise else []


def _giving_logits(model: "onnx.ModelProto") -> bytes:
    """Return a serialized model without its final argmax."""
    import onnx

    for node in model.graph.node:
        if node.op_type == "ArgMax":
            logits = onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None)
            del model.graph.output[:]
            model.graph.output.append(logits)
            break
    return model.SerializeToString()
