"""Inputs, outputs and metadata of an exported file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pinmem_core.config import ModelConfig
from pinmem_core.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize
from pinmem_core.label_space import CLASSES
from pinmem_core.version import __version__

INPUT = "images"


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of an exported file.

    Attributes:
        size: Fixed (height, width) of a single input image; None for any batch size and image size.
        preprocess: Whether the input is uint8 RGB (N, H, W, 3) instead of normalised float32
            (N, 3, H, W).
        argmax: Whether the output is uint8 trainIds (N, H, W) instead of float32 logits
            (N, K, H, W).
    """

    size: tuple[int, int] | None = None
    preprocess: bool = False
    argmax: bool = False

    @property
    def output(self) -> str:
        """Name of the output."""
        return "train_ids" if self.argmax else "logits"

    @property
    def input_axes(self) -> tuple[str, ...]:
        """Names of the input's axes."""
        if self.preprocess:
            return "batch", "height", "width", "channel"
        return "batch", "channel", "height", "width"

    @property
    def output_axes(self) -> tuple[str, ...]:
        """Names of the output's axes."""
        return ("batch", *(() if self.argmax else ("class",)), "height", "width")

    def feed(self, pixels: Tensor) -> Tensor:
        """Convert uint8 RGB images (N, H, W, 3) to the input of the file."""
        return pixels if self.preprocess else normalize(pixels.permute(0, 3, 1, 2)).contiguous()


def facts(config: ModelConfig, signature: Signature, precision: str) -> Mapping[str, str]:
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
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    names = {"input": signature.input_axes, "output": signature.output_axes}
    types = {
        "input": "uint8" if signature.preprocess else "float32",
        "output": "uint8" if signature.argmax else "float32",
    }
    classes = CLASSES[: config.num_classes]
    return {
        "pinmem_version": __version__,
        "torch_version": str(torch.__version__),
        "precision": precision,
        "input": f"{INPUT}: {types['input']} ({', '.join(names['input'])})",
        "output": f"{signature.output}: {types['output']} ({', '.join(names['output'])})",
        "preprocessing": json.dumps(preprocessing),
        "classes": json.dumps([known.name for known in classes]),
        "palette": json.dumps([known.color for known in classes]),
        "model": config.model_dump_json(),
    }
