"""Predictions of an image: classes, confidence, entropy and probabilities."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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
    """

    train_ids: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float16] | None = None

    @classmethod
    def empty(
        cls, classes: int, size: tuple[int, int], wanted: tuple[bool, bool, bool]
    ) -> "Prediction":
        """Return an uninitialized prediction to fill in.

        Args:
            classes: Number of classes, K.
            size: Height and width of the image.
            wanted: Whether to include confidence, entropy and probabilities.
        """
        confidence, entropy, probabilities = wanted
        return cls(
            np.empty(size, np.uint8),
            np.empty(size, np.float32) if confidence else None,
            np.empty(size, np.float32) if entropy else None,
            np.empty((classes, *size), np.float16) if probabilities else None,
        )

    def fill(self, rows: slice, scores: Tensor, *, are_probabilities: bool) -> None:
        """Fill in the rows `rows` from their scores (K, h, W)."""
        best = scores.max(dim=0).indices  # breaks ties as argmax does, and is seven times as fast
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
