"""Predict images with a trained segmenter."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pinmem_core.data.transforms import normalize
from pinmem_core.devices import compiling_explained, full_float32, memory_for, pick_device
from pinmem_core.errors import ConfigError, DataError, MachineError, unknown_name
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.images import read_image
from pinmem_core.inference.optimize import bytes_per_pixel, optimize_for_inference
from pinmem_core.inference.protocols import PROTOCOLS, Protocol
from pinmem_core.inference.sliding_window import (
    MemoryModel,
    RowResampler,
    Tiles,
    chunks,
    largest_crop,
    windows,
)
from pinmem_core.label_space import CITYSCAPES, LabelSpace
from pinmem_core.models import PRECISIONS, Segmenter


@dataclass(frozen=True)
class Band:
    """Scores of a band of rows of an image.

    Attributes:
        rows: Range of the rows.
        scores: Fused logits or probabilities, (K, h, W), on the predictor's device.
    """

    rows: slice
    scores: Tensor


@dataclass(frozen=True)
class Prediction:
    """Per-pixel prediction of an image.

    Attributes:
        train_ids: Predicted classes, (H, W) uint8.
        confidence: Largest class probability, (H, W) float32.
        entropy: Entropy of the class probabilities divided by log K, (H, W) float32 in 0..1.
        probabilities: Class probabilities, (K, H, W) float16.
        space: Label space of the classes.
    """

    train_ids: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float16] | None = None
    space: LabelSpace = CITYSCAPES

    @classmethod
    def empty(
        cls, space: LabelSpace, size: tuple[int, int], wanted: tuple[bool, bool, bool]
    ) -> "Prediction":
        """Return an uninitialized prediction to fill in.

        Args:
            space: Label space of the classes.
            size: Height and width of the image.
            wanted: Whether to include confidence, entropy and probabilities.
        """
        confidence, entropy, probabilities = wanted
        return cls(
            np.empty(size, np.uint8),
            np.empty(size, np.float32) if confidence else None,
            np.empty(size, np.float32) if entropy else None,
            np.empty((len(space), *size), np.float16) if probabilities else None,
            space,
        )

    def fill(self, rows: slice, scores: Tensor, *, are_probabilities: bool) -> None:
        """Fill in the rows `rows` from their scores (K, h, W).

        Raises:
            DataError: A score is infinite or not a number.
        """
        largest, best = scores.max(dim=0)  # breaks ties as argmax does, and is seven times as fast
        if not largest.isfinite().all():  # the argmax would be the first class
            raise DataError(
                "the network gives scores that are not finite, of which no class is the best.",
                "Predict with '--precision float32'; if it does, too, the training diverged.",
            )
        self.train_ids[rows] = _array(best.to(torch.uint8))
        if self.confidence is None and self.entropy is None and self.probabilities is None:
            return
        shares = scores if are_probabilities else scores.softmax(dim=0)
        if self.confidence is not None:
            self.confidence[rows] = _array(shares.amax(dim=0).float())
        if self.entropy is not None:
            self.entropy[rows] = _array(_entropy(shares).float())
        if self.probabilities is not None:
            self.probabilities[:, rows] = _array(shares.half())


def _entropy(shares: Tensor) -> Tensor:
    """Return the entropy (h, W) of probabilities (K, h, W), divided by its maximum log K."""
    return torch.special.entr(shares).sum(dim=0).div(math.log(len(shares))).clamp(0, 1)


def _array(values: Tensor) -> NDArray[np.generic]:
    return values.cpu().numpy()


__all__ = ["Band", "Precision", "Prediction", "Predictor", "TiledPredictor"]

Precision = Literal["float32", "bf16", "fp16"]
_CPU_MEMORY = 3 * 2**29
"""Memory budget of a prediction on a CPU, in bytes. It is fixed, so that all CPUs choose the same
windows."""
_CPU_BATCH = 2**18
"""Pixels per batch of windows on a CPU; larger batches are not faster."""


class TiledPredictor(ABC):
    """Predict images by one protocol, with any network.

    Args:
        label_space: Classes of the network.
        device: Device of the scores.
        protocol: Inference protocol; None for "fast", which predicts whole images if they fit.
        memory: Memory budget of one prediction in bytes, without the network and the image. None
            for 1.5 GiB on a CPU and half of the free memory on a GPU.
        on_event: Callback for a notice, sent once, about an image too large to predict whole.

    Attributes:
        label_space: Classes of the network.
        device: Device of the scores.
        protocol: Inference protocol.
        tiled: Whether an image was predicted in windows although the protocol asks for whole
            images. Metrics then deviate slightly from the protocol's.
    """

    def __init__(
        self,
        label_space: LabelSpace,
        device: torch.device,
        protocol: Protocol | None,
        memory: int | None,
        on_event: Listener,
    ) -> None:
        if memory is not None and not (math.isfinite(memory) and memory > 0):
            raise ConfigError(f"a memory budget of {memory} bytes cannot be kept.")
        self.label_space = label_space
        self.device = device
        self.protocol = protocol or PROTOCOLS["fast"]
        self.memory = _memory_budget(device) if memory is None else memory
        self.on_event = on_event
        self.tiled = False
        self._notified = False

    @abstractmethod
    def forward(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the logits (N, K, h, w) of RGB windows (N, h, w, 3)."""

    @property
    @abstractmethod
    def bytes_per_pixel(self) -> float:
        """Peak memory of a forward pass in bytes per pixel."""

    @property
    def window(self) -> tuple[int, int] | None:
        """Only height and width of windows that the network takes; None for any."""
        return None

    @property
    def classes_only(self) -> bool:
        """Whether the network returns classes without their probabilities."""
        return False

    def predict(self, image: Path | str | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the trainIds (H, W) of an image file or of RGB pixels (H, W, 3).

        Raises:
            DataError: The file cannot be read, or the pixels have another shape or type.
            MachineError: The GPU's memory does not suffice, or compiling fails.
        """
        return self.analyze(image).train_ids

    def analyze(
        self,
        image: Path | str | NDArray[np.uint8],
        *,
        confidence: bool = False,
        entropy: bool = False,
        probabilities: bool = False,
    ) -> Prediction:
        """Return the classes of an image and, on request, confidence, entropy and probabilities.

        Args:
            image: Image file, or RGB pixels (H, W, 3).
            confidence: Whether to return the largest class probability of each pixel.
            entropy: Whether to return the entropy of the class probabilities of each pixel.
            probabilities: Whether to return all class probabilities; they take 2 K bytes per pixel.

        Raises:
            DataError: The file cannot be read, or the pixels have another shape or type.
            MachineError: The GPU's memory does not suffice, or compiling fails.
        """
        pixels = _pixels(image)
        wanted = confidence, entropy, probabilities
        prediction = Prediction.empty(self.label_space, pixels.shape[:2], wanted)
        fused = self.protocol.fuse == "probabilities"
        for band in self.bands(pixels):
            prediction.fill(band.rows, band.scores, are_probabilities=fused)
        return prediction

    def scores(self, image: Path | str | NDArray[np.uint8]) -> Tensor:
        """Return the fused logits or probabilities (K, H, W) of an image file or of RGB pixels.

        They take 4 K bytes per pixel; use `bands` for large images.
        """
        return torch.cat([band.scores for band in self.bands(image)], dim=1)

    @torch.inference_mode()
    def bands(self, image: Path | str | NDArray[np.uint8]) -> Iterator[Band]:
        """Yield the fused scores of an image file or of RGB pixels, from top to bottom.

        Raises:
            DataError: The file cannot be read, or the pixels have another shape or type.
            MachineError: The GPU's memory does not suffice, or compiling fails.
        """
        pixels = _pixels(image)
        height, width = pixels.shape[:2]
        streams = [self._stream(pixels, scale) for scale in self.protocol.scales_of(height, width)]
        for rows in chunks(height, width, len(self.label_space)):
            views = [stream.take(rows) for stream in streams]
            if self.protocol.crop is None:
                views = [self._fused(view) for view in views]
            several = views[0] if len(views) == 1 else torch.cat(views)
            yield Band(rows, several[0] if len(several) == 1 else several.mean(dim=0))

    def _stream(self, pixels: NDArray[np.uint8], scale: float) -> RowResampler:
        """Return the scores of an image at one scale as a row resampler."""
        size = pixels.shape[0], pixels.shape[1]
        resized = _resized(pixels, scale, self.protocol.resample)
        tiles = self._tiles(resized, scale)
        return RowResampler(tiles.scores(self._forward), len(resized), size)

    def _tiles(self, pixels: NDArray[np.uint8], scale: float) -> Tiles:
        """Split an image at one scale into windows."""
        height, width = pixels.shape[:2]
        memory = self.memory / len(self.protocol.scales)
        model = self._memory_model()
        crop: int | tuple[int, int]
        if self.window:
            crop = self.window
        elif isinstance(self.protocol.crop, int):
            crop = int(self.protocol.crop * scale)
        else:
            crop = largest_crop(height, width, model, memory)
            if crop < max(height, width):
                self._report_windows(height, width, crop)
        places = windows(height, width, crop, self.protocol.overlap)
        rows, columns = places[0]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        left = memory - model.kept * (rows.stop - rows.start) * width
        batch = max(1, int(left / (model.pixel * area)))
        if self.window:
            batch = 1
        elif self.device.type == "cpu":
            batch = min(batch, max(1, _CPU_BATCH // area))
        return Tiles(pixels, places, self.protocol.flip, batch, self.protocol.count)

    def _memory_model(self) -> MemoryModel:
        """Return the memory that a prediction needs.

        Scores of a whole image are fused band by band in `bands`, so they add nothing here.
        """
        fused = self.protocol.crop is not None and self.protocol.fuse == "probabilities"
        score = len(self.label_space) * (8 if fused else 4)
        views = 2 if self.protocol.flip else 1
        return MemoryModel(self.bytes_per_pixel + fused * score, score * views, views)

    def _report_windows(self, height: int, width: int, crop: int) -> None:
        whole_was_promised = self.protocol.crop is None
        self.tiled = self.tiled or whole_was_promised
        if not self._notified:
            self._notified = True
            message = (
                f"an image of {width}x{height} does not fit into {self.memory / 1e9:.1f} GB of "
                f"memory; predicting it in overlapping windows of {crop}x{crop}"
            )
            self.on_event(Notice(message, warning=whole_was_promised))

    def _forward(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the scores (N, K, h, w) of RGB windows (N, h, w, 3)."""
        logits = self.forward(images)
        return logits if self.protocol.crop is None else self._fused(logits)

    def _fused(self, logits: Tensor) -> Tensor:
        """Return the logits, or the probabilities in float64 as the original computes them."""
        if self.protocol.fuse == "logits":
            return logits
        shares = logits.softmax(dim=1)
        return shares if self.device.type == "mps" else shares.double()  # MPS has no float64


class Predictor(TiledPredictor):
    """Predict images with a segmenter on one device by one protocol.

    Predictions do not depend on the batch size of windows, up to rounding: scores differ by less
    than 1e-5 of the largest score.

    Args:
        segmenter: Trained segmenter. It is moved to the device and put into evaluation mode; later
            changes to its weights have no effect.
        device: Device name: "auto", "cpu", "mps", "cuda", "cuda:1", ...
        protocol: Inference protocol; None for "fast", which predicts whole images if they fit.
        precision: Floating-point type of the network's convolutions.
        compile: Whether torch compiles the network. Compilation takes about a minute per image
            size and pays off from a few hundred images of one size on.
        memory: Memory budget of one prediction in bytes, without the network and the image. None
            for 1.5 GiB on a CPU and half of the free memory on a GPU.
        on_event: Callback for a notice, sent once, about an image too large to predict whole.

    Attributes:
        segmenter: Segmenter passed to the constructor.
        network: Copy of the segmenter, optimized for inference, that predicts.
        device: Device of the network.
        protocol: Inference protocol.
        compiled: Whether torch compiles the network.
        tiled: Whether an image was predicted in windows although the protocol asks for whole
            images. Metrics then deviate slightly from the protocol's.

    Raises:
        ConfigError: The device or the precision is unknown, or the memory budget is not above 0.
        MachineError: The device is not available, or its memory does not suffice.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        device: str = "auto",
        protocol: Protocol | None = None,
        precision: Precision = "float32",
        compile: bool = False,
        memory: int | None = None,
        on_event: Listener = ignore,
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown_name("precision", str(precision), PRECISIONS)
        chosen = pick_device(device)
        with memory_for(f"moving the network to {chosen}"):
            self.segmenter = segmenter.to(chosen).eval()
        super().__init__(segmenter.label_space, chosen, protocol, memory, on_event)
        self.network = optimize_for_inference(self.segmenter)
        self.network.autocast = None
        if self.device.type == "cpu" or precision != "float32":
            self.network.to(memory_format=torch.channels_last)
        self._bytes_per_pixel = bytes_per_pixel(self.network)
        self.network.autocast = PRECISIONS[precision]
        self.compiled = compile
        if compile:
            self.network.compile(dynamic=False)  # static shapes are twice as fast

    @property
    def bytes_per_pixel(self) -> float:
        """Peak memory of a forward pass in float32, in bytes per pixel."""
        return self._bytes_per_pixel

    def forward(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the logits (N, K, h, w) of RGB windows (N, h, w, 3).

        Raises:
            MachineError: The GPU's memory does not suffice, or compiling fails.
        """
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        normalized = normalize(pixels, self.segmenter.normalization)
        try:
            with compiling_explained(), full_float32():
                logits: Tensor = self.network(normalized)
        except torch.OutOfMemoryError:
            number, height, width = images.shape[:3]
            windows = f"{number} window{'s' * (number > 1)} of {width}x{height}"
            raise MachineError(
                f"{windows} did not fit into the memory of {self.device}.",
                "Lower the memory limit of the prediction, or choose a protocol with smaller "
                "windows.",
            ) from None
        return logits


def _pixels(image: Path | str | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGB pixels (H, W, 3) of uint8; other values would be normalized in another way.

    Raises:
        DataError: The file cannot be read, or an array has another shape or type.
    """
    if isinstance(image, str | PathLike):
        return read_image(Path(image))
    given = f"a {type(image).__name__}"
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return image
        given = f"an array {image.shape} of {image.dtype}"
    raise DataError(
        f"an image is a path, or an array (H, W, 3) of uint8 with RGB in 0..255; this is {given}.",
        "Convert it, e.g. an image of Pillow by 'np.asarray(image.convert(\"RGB\"))'.",
    )


def _resized(pixels: NDArray[np.uint8], scale: float, resample: str) -> NDArray[np.uint8]:
    if scale == 1:
        return pixels
    size = max(1, int(pixels.shape[1] * scale)), max(1, int(pixels.shape[0] * scale))
    method = Image.Resampling[resample.upper()]
    return np.asarray(Image.fromarray(pixels).resize(size, method))


def _memory_budget(device: torch.device) -> int:
    """Return the memory budget of a prediction on a device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    if device.type == "mps":
        return torch.mps.recommended_max_memory() // 2
    return _CPU_MEMORY
