"""Predicting images with a trained segmenter."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pinmem_core.devices import full_float32, pick_device
from pinmem_core.errors import MachineError
from pinmem_core.events import Listener, Notice, ignore
from pinmem_core.images import read_image
from pinmem_core.inference.network import bytes_per_pixel, quickened
from pinmem_core.inference.prediction import Band, Prediction
from pinmem_core.inference.protocol import Protocol, windows
from pinmem_core.inference.protocols import PROTOCOLS, get_protocol, protocol_of
from pinmem_core.inference.rows import Rows
from pinmem_core.inference.tiling import Appetite, Tiles, chunks, largest_crop
from pinmem_core.loading.augmentation import normalize
from pinmem_core.model import PRECISIONS, Segmenter, load_checkpoint
from pinmem_core.model.compiling import compiling_explained
from pinmem_core.model.found import checkpoint_of
from pinmem_core.model.out_of_memory import memory_for

__all__ = ["Band", "Precision", "Prediction", "Predictor", "load"]

Precision = Literal["float32", "bf16", "fp16"]
_CPU_MEMORY = 3 * 2**29
"""Bytes that a prediction may take of any CPU's memory, so that all choose the same windows."""
_CPU_BATCH = 2**18
"""Pixels of the windows that a CPU, which gains nothing from more, sees at once."""


class Predictor:
    """A segmenter, a device and a protocol.

    Predictions do not depend on how many windows are computed at once, but for rounding: scores
    differ by less than a 1e-5th of the largest.

    Args:
        segmenter: Is put into evaluation mode, in which it is deterministic. Its weights are taken
            as they are now.
        device: "auto", "cpu", "mps", "cuda", "cuda:1", ...
        protocol: How images are shown to it; None for "fast", that is, if possible whole.
        precision: Of the network's convolutions.
        compile: Have torch compile the network, which takes a minute at the first image, and pays
            from a few hundred images of one size on.
        memory: Bytes that one prediction may take beside the network and the image; None for what
            suits the device: 1.5 GiB of a CPU's, half of what a GPU has free.
        on_event: Hears, once, of an image that was too large to be seen whole.

    Attributes:
        segmenter: As it was given.
        device: Where it computes.
        protocol: Likewise.
        compiled: Whether torch compiles the network.
        tiled: Whether an image was too large to be seen whole, though the protocol says so; then
            figures are not quite the protocol's.

    Raises:
        ConfigError: The device's name is unknown.
        MachineError: This machine lacks the device, or the device lacks the memory.
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
        self.device = pick_device(device)
        with memory_for(f"moving the network to {self.device}"):
            self.segmenter = segmenter.to(self.device).eval()
        self.protocol = protocol or PROTOCOLS["fast"]
        self.memory = _room(self.device) if memory is None else memory
        self.on_event = on_event
        self.tiled = False
        self._told = False
        self._network = quickened(self.segmenter)
        self._network.autocast = None
        if self.device.type == "cpu" or precision != "float32":
            self._network.to(memory_format=torch.channels_last)
        self._bytes_per_pixel = bytes_per_pixel(self._network)
        self._network.autocast = PRECISIONS[precision]
        self.compiled = compile
        if compile:
            self._network.compile(dynamic=False)  # a size of its own each: twice as fast

    def predict(self, image: Path | str | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the (H, W) trainIds of an image file, or of (H, W, 3) RGB pixels.

        Raises:
            DataError: The file cannot be read.
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
        """Return the classes of an image, as `predict` takes it, and what is asked for beside.

        Args:
            image: The file, or its pixels.
            confidence: Give each pixel's largest class probability.
            entropy: Give the entropy of each pixel's class probabilities.
            probabilities: Give them all; they take 2 K bytes a pixel.

        Raises:
            DataError: The file cannot be read.
            MachineError: The GPU's memory does not suffice, or compiling fails.
        """
        pixels = _pixels(image)
        wanted = confidence, entropy, probabilities
        classes = self.segmenter.config.num_classes
        found = Prediction.empty(classes, pixels.shape[:2], wanted)
        fused = self.protocol.fuse == "probabilities"
        for band in self.bands(pixels):
            found.fill(band.rows, band.scores, are_probabilities=fused)
        return found

    def scores(self, image: Path | str | NDArray[np.uint8]) -> Tensor:
        """Return the fused logits or probabilities (K, H, W) of an image, as `predict` takes it.

        They take 4 K bytes a pixel: `bands` suits large images better.
        """
        return torch.cat([band.scores for band in self.bands(image)], dim=1)

    @torch.inference_mode()
    def bands(self, image: Path | str | NDArray[np.uint8]) -> Iterator[Band]:
        """Yield the fused scores of an image, as `predict` takes it, from top to bottom.

        Raises:
            DataError: The file cannot be read.
            MachineError: The GPU's memory does not suffice, or compiling fails.
        """
        pixels = _pixels(image)
        height, width = pixels.shape[:2]
        streams = [self._stream(pixels, scale) for scale in self.protocol.scales_of(height, width)]
        for rows in chunks(height, width, self.segmenter.config.num_classes):
            views = [stream.take(rows) for stream in streams]
            if self.protocol.crop is None:
                views = [self._fused(view) for view in views]
            several = views[0] if len(views) == 1 else torch.cat(views)
            yield Band(rows, several[0] if len(several) == 1 else several.mean(dim=0))

    def _stream(self, pixels: NDArray[np.uint8], scale: float) -> Rows:
        """Return the scores of an image seen at one scale."""
        size = pixels.shape[0], pixels.shape[1]
        seen = _resized(pixels, scale, self.protocol.resample)
        tiles = self._tiles(seen, scale)
        return Rows(tiles.scores(self._look), len(seen), size)

    def _tiles(self, seen: NDArray[np.uint8], scale: float) -> Tiles:
        """Return an image at one scale in the windows that it is seen in."""
        height, width = seen.shape[:2]
        memory = self.memory / len(self.protocol.scales)
        appetite = self._appetite()
        if isinstance(self.protocol.crop, int):
            crop = int(self.protocol.crop * scale)
        else:
            crop = largest_crop(height, width, appetite, memory)
            if crop < max(height, width):
                self._tell_of_windows(height, width, crop)
        places = windows(height, width, crop, self.protocol.overlap)
        rows, columns = places[0]
        pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
        left = memory - appetite.kept * (rows.stop - rows.start) * width
        batch = max(1, int(left / (appetite.pixel * pixels)))
        if self.device.type == "cpu":
            batch = min(batch, max(1, _CPU_BATCH // pixels))
        return Tiles(seen, places, self.protocol.flip, batch, self.protocol.count)

    def _appetite(self) -> Appetite:
        """Return what predicting takes; a whole image's scores are fused only when handed out."""
        fused = self.protocol.crop is not None and self.protocol.fuse == "probabilities"
        score = self.segmenter.config.num_classes * (8 if fused else 4)
        views = 2 if self.protocol.flip else 1
        return Appetite(self._bytes_per_pixel + fused * score, score * views, views)

    def _tell_of_windows(self, height: int, width: int, crop: int) -> None:
        whole_was_promised = self.protocol.crop is None
        self.tiled = self.tiled or whole_was_promised
        if not self._told:
            self._told = True
            message = (
                f"an image of {width}x{height} does not fit into {self.memory / 1e9:.1f} GB of "
                f"memory; it is seen in overlapping windows of {crop}x{crop}"
            )
            self.on_event(Notice(message, warning=whole_was_promised))

    def _look(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the scores (N, K, h, w) of RGB windows (N, h, w, 3)."""
        seen = normalize(torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2))
        try:
            with compiling_explained(), full_float32():
                logits = self._network(seen)
        except torch.OutOfMemoryError:
            number, height, width = images.shape[:3]
            windows = f"{number} window{'s' * (number > 1)} of {width}x{height}"
            raise MachineError(
                f"{windows} did not fit into the memory of {self.device}.",
                "Allow the prediction less memory, or choose a protocol of smaller windows.",
            ) from None
        return logits if self.protocol.crop is None else self._fused(logits)

    def _fused(self, logits: Tensor) -> Tensor:
        """Return what is averaged; probabilities in float64, as the original does."""
        if self.protocol.fuse == "logits":
            return logits
        shares = logits.softmax(dim=1)
        return shares if self.device.type == "mps" else shares.double()  # which MPS lacks


def _pixels(image: Path | str | NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image if isinstance(image, np.ndarray) else read_image(Path(image))


def _resized(pixels: NDArray[np.uint8], scale: float, resample: str) -> NDArray[np.uint8]:
    if scale == 1:
        return pixels
    size = max(1, int(pixels.shape[1] * scale)), max(1, int(pixels.shape[0] * scale))
    method = Image.Resampling[resample.upper()]
    return np.asarray(Image.fromarray(pixels).resize(size, method))


def _room(device: torch.device) -> int:
    """Return the bytes that a prediction may take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    if device.type == "mps":
        return torch.mps.recommended_max_memory() // 2
    return _CPU_MEMORY


def load(
    name: str,
    *,
    device: str = "auto",
    protocol: Protocol | None = None,
    precision: Precision = "float32",
    compile: bool = False,
    memory: int | None = None,
    on_event: Listener = ignore,
) -> Predictor:
    """Return a predictor of what `checkpoint_of` finds by a name.

    Without a protocol, the checkpoint's own is taken, or else "fast". The rest is as for
    `Predictor`.

    Raises:
        DataError: There is no such run or model, or its checkpoint is damaged.
        MachineError: The Hub is asked, and cannot be reached.
    """
    segmenter, config = load_checkpoint(checkpoint_of(name, on_event=on_event))
    protocol = protocol or get_protocol(protocol_of(config, "fast"))
    return Predictor(
        segmenter,
        device=device,
        protocol=protocol,
        precision=precision,
        compile=compile,
        memory=memory,
        on_event=on_event,
    )
