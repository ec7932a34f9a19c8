"""Predicting images with a trained segmenter."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pinmem_core.devices import pick_device
from pinmem_core.home import find_run
from pinmem_core.images import read_image
from pinmem_core.inference.protocol import Protocol, window_counts, windows
from pinmem_core.loading.augmentation import normalize
from pinmem_core.model import Segmenter, load_checkpoint

CHECKPOINT = "checkpoint"
"""Folder of the checkpoint inside a run."""


class Predictor:
    """A segmenter, a device and a protocol.

    Args:
        segmenter: Is put into evaluation mode, in which it is deterministic.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        protocol: How images are shown to it.

    Raises:
        ConfigError: The device's name is unknown.
        MachineError: This machine lacks the device.
    """

    def __init__(
        self, segmenter: Segmenter, *, device: str = "auto", protocol: Protocol | None = None
    ) -> None:
        self.device = pick_device(device)
        self.segmenter = segmenter.to(self.device).eval()
        self.protocol = protocol or Protocol()

    def predict(self, image: Path | str | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the (H, W) trainIds of an image file, or of (H, W, 3) RGB pixels.

        Raises:
            DataError: The file cannot be read.
        """
        return self.scores(image).argmax(dim=0).to(torch.uint8).cpu().numpy()

    @torch.inference_mode()
    def scores(self, image: Path | str | NDArray[np.uint8]) -> Tensor:
        """Return the fused logits or probabilities (K, H, W) of an image, as `predict` takes it."""
        pixels = image if isinstance(image, np.ndarray) else read_image(Path(image))
        views = [view for scale in self.protocol.scales for view in self._views(pixels, scale)]
        return torch.stack(views).mean(dim=0)[0]

    def _views(self, pixels: NDArray[np.uint8], scale: float) -> Iterator[Tensor]:
        """Yield the scores (1, K, H, W) of an image at one scale, and of its mirror image."""
        height, width = pixels.shape[:2]
        if scale != 1:
            size = max(1, int(width * scale)), max(1, int(height * scale))
            resample = Image.Resampling[self.protocol.resample.upper()]
            pixels = np.asarray(Image.fromarray(pixels).resize(size, resample))
        seen = normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1))[None].to(self.device)
        yield self._scores_of(seen, scale, (height, width))
        if self.protocol.flip:
            yield self._scores_of(seen.flip(-1), scale, (height, width)).flip(-1)

    def _scores_of(self, seen: Tensor, scale: float, size: tuple[int, int]) -> Tensor:
        """Return the scores (1, K, H, W), at `size`, of an image seen whole or in windows."""
        if self.protocol.crop is None:
            return self._fused(_resize(self.segmenter(seen), size))
        return _resize(self._windowed(seen, int(self.protocol.crop * scale)), size)

    def _windowed(self, seen: Tensor, crop: int) -> Tensor:
        """Return the mean scores (1, K, h, w) of the windows of an image."""
        height, width = seen.shape[-2:]
        total: Tensor | None = None
        places = windows(height, width, crop, self.protocol.overlap)
        for rows, columns in places:
            scores = self._fused(self.segmenter(seen[..., rows, columns]))
            if total is None:
                total = scores.new_zeros(1, scores.shape[1], height, width)
            total[..., rows, columns] += scores
        assert total is not None
        times = window_counts(places, total.shape[1:], self.protocol.count)
        return total / times.to(total)

    def _fused(self, logits: Tensor) -> Tensor:
        """Return what is averaged; probabilities in float64, as the original does."""
        return logits.softmax(dim=1).double() if self.protocol.fuse == "probabilities" else logits


def _resize(scores: Tensor, size: tuple[int, int]) -> Tensor:
    if scores.shape[-2:] == size:
        return scores
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


def load(name: str, *, device: str = "auto", protocol: Protocol | None = None) -> Predictor:
    """Return a predictor from a run's name, a run folder or a checkpoint folder.

    Raises:
        DataError: There is no such run, or its checkpoint is damaged.
    """
    segmenter, _ = load_checkpoint(checkpoint_of(name))
    return Predictor(segmenter, device=device, protocol=protocol)


def checkpoint_of(name: str) -> Path:
    """Return the checkpoint folder that a run's name, a run folder or a checkpoint folder means.

    Raises:
        DataError: No such folder exists.
    """
    folder = find_run(name)
    inside = folder / CHECKPOINT
    return inside if inside.is_dir() else folder
