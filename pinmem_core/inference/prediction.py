"""What is said of an image: its classes, and how sure the network is of them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Band:
    """Scores of some rows of an image.

    Attributes:
        rows: Which.
        scores: (K, h, W) fused logits or probabilities, on the predictor's device.
    """

    rows: slice
    scores: Tensor


@dataclass(frozen=True)
class Prediction:
    """What is known of each pixel of an image.

    Attributes:
        train_ids: (H, W) uint8.
        confidence: (H, W) float32, the largest class probability.
        entropy: (H, W) float32 of the class probabilities, 0 for one class, 1 for all alike.
        probabilities: (K, H, W) float16.
    """

    train_ids: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float16] | None = None

    @classmethod
    def empty(
        cls, classes: int, size: tuple[int, int], wanted: tuple[bool, bool, bool]
    ) -> "Prediction":
        """Return one to fill in; `wanted` are confidence, entropy, probabilities."""
        confidence, entropy, probabilities = wanted
        return cls(
            np.empty(size, np.uint8),
            np.empty(size, np.float32) if confidence else None,
            np.empty(size, np.float32) if entropy else None,
            np.empty((classes, *size), np.float16) if probabilities else None,
        )

    def fill(self, rows: slice, scores: Tensor, *, are_probabilities: bool) -> None:
        """Write down what the scores (K, h, W) of some rows say."""
        best = scores.max(dim=0).indices  # the first of equals, as argmax, seven times as fast
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
    """Return the entropy (h, W) of probabilities (K, h, W), in units of its maximum."""
    return torch.special.entr(shares).sum(dim=0).div(math.log(len(shares))).clamp(0, 1)


def _array(values: Tensor) -> NDArray[np.generic]:
    return values.cpu().numpy()
