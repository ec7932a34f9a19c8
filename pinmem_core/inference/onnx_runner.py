"""Run ONNX files that `pinmem export onnx` has written."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, Field, Json, ValidationError
from torch import Tensor

from pinmem_core.data.transforms import IMAGENET, Normalization, normalize
from pinmem_core.documents import validation_message
from pinmem_core.errors import ConfigError, DataError, MachineError, PinMemError
from pinmem_core.events import Listener, ignore
from pinmem_core.inference.predictor import Prediction, TiledPredictor
from pinmem_core.inference.protocols import Protocol, get_protocol, protocol_of
from pinmem_core.label_space import LabelSpace, first_classes

PREFIX = "pinmem."
"""Prefix of pinmem's keys in a file's `metadata_props`."""
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
        normalization: Mean and standard deviation of the images' normalisation.
    """

    size: tuple[int, int] | None = None
    preprocess: bool = False
    argmax: bool = False
    normalization: Normalization = IMAGENET

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
        if self.preprocess:
            return pixels
        return normalize(pixels.permute(0, 3, 1, 2), self.normalization).contiguous()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().split("\n")[0] or type(error).__name__


_Number = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Preprocessing(BaseModel):
    mean: tuple[_Number, _Number, _Number] = IMAGENET.mean
    std: tuple[_Positive, _Positive, _Positive] = IMAGENET.std


class _Metadata(BaseModel):
    """What is read back of the metadata; files of earlier versions state the classes only."""

    classes: Json[list[str]]
    label_space: Json[LabelSpace] | None = None
    preprocessing: Json[_Preprocessing] = _Preprocessing()
    bytes_per_pixel: _Positive = 4096


class OnnxRunner:
    """Run an ONNX file of pinmem with onnxruntime on the CPU.

    Args:
        model: Path or content of the file.

    Attributes:
        signature: Signature of the file.
        metadata: Metadata of the file.
        label_space: Classes of the network.
        bytes_per_pixel: Peak memory of a forward pass in torch, in bytes per pixel.

    Raises:
        DataError: The file was not written by pinmem, or its metadata are damaged.
        PinMemError: The installed onnxruntime cannot run the file.
    """

    def __init__(self, model: Path | bytes) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 3  # errors only
        try:
            self._session = onnxruntime.InferenceSession(
                model, settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base class
            version = onnxruntime.__version__
            raise PinMemError(
                f"onnxruntime {version} cannot run {_named(model)}: {first_line(error)}",
                "Export the model again, or update onnxruntime.",
            ) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.metadata = {
            key.removeprefix(PREFIX): value
            for key, value in metadata.items()
            if key.startswith(PREFIX)
        }
        if "classes" not in self.metadata:
            raise DataError(
                f"{_named(model)} was not written by pinmem: it does not name its classes.",
                "Write one: 'pinmem export onnx RUN'.",
            )
        try:
            about = _Metadata.model_validate(self.metadata)
            self.label_space = about.label_space or first_classes(len(about.classes))
            self.bytes_per_pixel = about.bytes_per_pixel
            how = about.preprocessing
            self.signature = self._read_signature(Normalization(how.mean, how.std))
        except ValueError as error:
            reason = validation_message(error) if isinstance(error, ValidationError) else error
            raise DataError(
                f"the metadata of {_named(model)} are damaged: {reason}.", "Export it again."
            ) from None

    def _read_signature(self, normalization: Normalization) -> Signature:
        """Return the signature of the file.

        Raises:
            ValueError: It does not take images, or gives logits of other classes.
        """
        taken, given = self._session.get_inputs()[0], self._session.get_outputs()[0]
        preprocess, argmax = ("uint8" in value.type for value in (taken, given))
        if taken.name != INPUT or len(taken.shape) != 4:
            raise ValueError(f"its input '{taken.name}' takes no images")
        classes = len(self.label_space)
        known = [axis for axis in given.shape[1:2] if isinstance(axis, int)]
        if not argmax and known not in ([], [classes]):
            raise ValueError(f"it names {classes} classes, but gives {known[0]} logits")
        height, width = taken.shape[1:3] if preprocess else taken.shape[2:]
        size = (height, width) if isinstance(height, int) else None
        return Signature(size, preprocess, argmax, normalization)

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the output of the file for RGB images (N, H, W, 3)."""
        fed = self.signature.feed(torch.from_numpy(pixels)).numpy()
        result: NDArray[Any] = self._session.run(None, {INPUT: fed})[0]
        return result


def _named(model: Path | bytes) -> str:
    return str(model) if isinstance(model, Path) else "the ONNX file"


class OnnxPredictor(TiledPredictor):
    """Predict images with an ONNX file that `pinmem export onnx` has written, on the CPU.

    A file of a fixed size predicts an image in overlapping windows of that size; smaller images are
    padded with black.

    Args:
        path: Path of the file.
        protocol: Inference protocol; None for the model's own, or else "fast".
        memory: Memory budget of one prediction in bytes, as for `Predictor`.
        on_event: Callback for notices.

    Raises:
        DataError: The file does not exist, or was not written by pinmem.
        MachineError: onnxruntime is not installed.
        PinMemError: onnxruntime cannot run the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        protocol: Protocol | None = None,
        memory: int | None = None,
        on_event: Listener = ignore,
    ) -> None:
        if find_spec("onnxruntime") is None:
            raise MachineError(
                f"{path} needs onnxruntime, which is missing.", "pip install 'pinmem[export]'"
            )
        self.path = path
        self.runner = OnnxRunner(path)
        own = protocol or get_protocol(protocol_of(self.runner.metadata, "fast"))
        super().__init__(self.runner.label_space, torch.device("cpu"), own, memory, on_event)

    @property
    def bytes_per_pixel(self) -> float:
        """Peak memory of a forward pass in torch, in bytes per pixel, as the file states it."""
        return self.runner.bytes_per_pixel

    @property
    def window(self) -> tuple[int, int] | None:
        """Only height and width that the file takes; None for any."""
        return self.runner.signature.size

    @property
    def classes_only(self) -> bool:
        """Whether the file was exported with `--argmax`."""
        return self.runner.signature.argmax

    def analyze(self, image: Path | str | NDArray[np.uint8], **wanted: bool) -> Prediction:
        """Return the classes of an image and what else is wanted, as `TiledPredictor` does.

        Raises:
            ConfigError: The file returns classes only, and more is wanted.
            DataError: The image cannot be read.
        """
        if self.classes_only and any(wanted.values()):
            raise ConfigError(
                f"{self.path} returns classes without their probabilities.",
                "Export the model without --argmax, or choose a format such as color.",
            )
        return super().analyze(image, **wanted)

    def forward(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the logits (N, K, h, w) of RGB windows (N, h, w, 3); without logits, 0 and 1."""
        height, width = images.shape[1:3]
        if self.window:
            missing = self.window[0] - height, self.window[1] - width
            images = np.pad(images, ((0, 0), *((0, more) for more in missing), (0, 0)))
        result = torch.from_numpy(self.runner(images))
        if self.classes_only:
            result = F.one_hot(result.long(), len(self.label_space)).permute(0, 3, 1, 2).float()
        return result[:, :, :height, :width]
