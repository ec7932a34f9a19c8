"""Predicting images with a trained segmenter."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pinmem_core.devices import pick_device
from pinmem_core.home import find_run
from pinmem_core.images import read_image
from pinmem_core.inference.protocol import Protocol, windows
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
        whole = normalize(torch.from_numpy(pixels.copy()).permute(2, 0, 1))[None].to(self.device)
        size = whole.shape[-2:]
        views = [self._scores_at(whole, scale, size) for scale in self.protocol.scales]
        return torch.stack(views).mean(dim=0)[0]

    def _scores_at(self, whole: Tensor, scale: float, size: tuple[int, ...]) -> Tensor:
        """Return the scores (1, K, H, W) of one scale, brought back to `size`."""
        if scale != 1:
            scaled = [round(side * scale) for side in size]
            whole = F.interpolate(whole, scaled, mode="bilinear", align_corners=False)
        scores = self._scores_of(whole)
        if self.protocol.flip:
            scores = (scores + self._scores_of(whole.flip(-1)).flip(-1)) / 2
        if scale != 1:
            scores = F.interpolate(scores, size, mode="bilinear", align_corners=False)
        return scores

    def _scores_of(self, image: Tensor) -> Tensor:
        """Return the scores (1, K, h, w) of an image seen whole or in windows."""
        if self.protocol.crop is None:
            return self._forward(image)
        height, width = image.shape[-2:]
        total: Tensor | None = None
        times = image.new_zeros(height, width)
        for rows, columns in windows(height, width, self.protocol.crop, self.protocol.overlap):
            scores = self._forward(image[..., rows, columns])
            if total is None:
                total = scores.new_zeros(1, scores.shape[1], height, width)
            total[..., rows, columns] += scores
            times[rows, columns] += 1
        assert total is not None
        return total / times

    def _forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.segmenter(image)
        return logits.softmax(dim=1) if self.protocol.fuse == "probabilities" else logits


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
