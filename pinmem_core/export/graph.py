"""The exported graph: the forward pass of a segmenter, its inputs and its outputs."""

import json
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pinmem_core.config import ModelConfig
from pinmem_core.data.transforms import normalize
from pinmem_core.errors import ConfigError, PinMemError
from pinmem_core.inference.onnx_runner import INPUT, Signature, first_line
from pinmem_core.inference.optimize import folded
from pinmem_core.models import Segmenter
from pinmem_core.version import __version__


def file_metadata(config: ModelConfig, signature: Signature, precision: str) -> Mapping[str, str]:
    """Return the metadata of a file; structured values are JSON.

    Args:
        config: Architecture of the network.
        signature: Inputs and outputs of the file.
        precision: Precision, "float32", "float16" or "int8".
    """
    preprocessing = {
        "inside": signature.preprocess,
        "channels": "RGB",
        "range": [0, 1],
        "mean": signature.normalization.mean,
        "std": signature.normalization.std,
    }
    names = {"input": signature.input_axes, "output": signature.output_axes}
    types = {
        "input": "uint8" if signature.preprocess else "float32",
        "output": "uint8" if signature.argmax else "float32",
    }
    classes = config.label_space.classes
    return {
        "pinmem_version": __version__,
        "torch_version": str(torch.__version__),
        "precision": precision,
        "input": f"{INPUT}: {types['input']} ({', '.join(names['input'])})",
        "output": f"{signature.output}: {types['output']} ({', '.join(names['output'])})",
        "preprocessing": json.dumps(preprocessing),
        "classes": json.dumps(list(classes)),
        "label_space": config.label_space.model_dump_json(),
        "palette": json.dumps(list(classes.values())),
        "model": config.model_dump_json(),
    }


_TRACED = (2, 64, 96)
"""Batch size, height and width for tracing a graph of dynamic size."""
_TRAINING_ONLY = ("auxiliary", "memory.write_map", "memory.classifier")


class Graph(nn.Module):
    """A segmenter with optional preprocessing and argmax.

    Args:
        segmenter: Segmenter on the CPU in evaluation mode. It is copied without the parts that only
            training needs.
        signature: Inputs and outputs of the graph.
        half: Whether to convolve in float16. The memory is read in float32, and the types of inputs
            and outputs do not change.
    """

    def __init__(self, segmenter: Segmenter, signature: Signature, *, half: bool) -> None:
        super().__init__()
        self.signature = signature
        self.network = _prepared(segmenter)
        if half:
            self.network.backbone.half()
            self.network.decoder.half()
            self.network.autocast = torch.float16

    def forward(self, images: Tensor) -> Tensor:
        """Return logits or trainIds of the images, as the signature defines."""
        if self.signature.preprocess:
            images = normalize(images.permute(0, 3, 1, 2), self.signature.normalization)
        logits: Tensor = self.network(images)
        return logits.argmax(dim=1).to(torch.uint8) if self.signature.argmax else logits


def _prepared(segmenter: Segmenter) -> Segmenter:
    """Return a folded copy without the parts that only training needs."""
    network = folded(segmenter)
    parts = dict(network.named_modules())
    for part in parts.values():
        if hasattr(part, "inplace"):
            part.inplace = False  # in-place operators take several times as long to trace
    for name in _TRAINING_ONLY:
        if name in parts:
            network.set_submodule(name, nn.Identity())
    return network


@torch.no_grad()
def trace(graph: Graph) -> ExportedProgram:
    """Trace a graph with torch.export.

    Raises:
        ConfigError: The backbone needs a fixed size.
        PinMemError: The network cannot be traced.
    """
    size = graph.signature.size
    if size is None and graph.network.backbone.size_multiple > 1:
        raise ConfigError(
            f"the backbone '{graph.network.config.backbone}' is exported for one image size only.",
            "Give the size: '--size 1024x512'.",
        )
    count, height, width = (1, *size) if size else _TRACED
    pixels = torch.zeros(count, height, width, 3, dtype=torch.uint8)
    shapes = None if size else (_free_axes(graph),)
    try:
        fed = graph.signature.feed(pixels)
        program = torch.export.export(graph, (fed,), dynamic_shapes=shapes)
        # The decompositions remove autocast's device, and Einsum, which some runtimes get wrong.
        return program.run_decompositions({torch.ops.aten.einsum.default: _as_product})
    except Exception as error:  # torch raises a dozen kinds
        raise PinMemError(f"the network cannot be traced: {first_line(error)}") from error


def _as_product(
    equation: str, operands: Sequence[Tensor], *, path: Sequence[int] | None = None
) -> Tensor:
    """Rewrite an einsum of maps (N, C, H, W) with a matrix over channels as a matrix product."""
    match = re.fullmatch(r"n(.)hw,(..)->n(.)hw", equation)
    if match is None or {*match[2]} != {match[1], match[3]}:
        return NotImplemented  # keep other einsums
    maps, matrix = operands
    matrix = matrix if match[2] == match[3] + match[1] else matrix.T
    product = matrix @ maps.flatten(2)
    return product.reshape(maps.shape[0], matrix.shape[0], *maps.shape[2:])


def _free_axes(graph: Graph) -> dict[int, Dim]:
    """Return the dynamic axes of the input with their minimum lengths."""
    least = graph.network.config.output_stride + 1
    lengths = {"batch": 1, "height": least, "width": least}
    axes = enumerate(graph.signature.input_axes)
    return {axis: Dim(name, min=lengths[name]) for axis, name in axes if name in lengths}
