"""Principal component analysis (PCA) to two dimensions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane of the first two principal components.

    Attributes:
        mean: Mean of the points, (D,).
        axes: Orthonormal axes, (2, D); the component of largest magnitude of each is positive.
        shares: Fraction of the variance along each axis, (2,).
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, points: NDArray[Any]) -> "Plane":
        """Fit the plane to `points`, (N, D), with N and D at least 2."""
        mean = points.mean(axis=0, dtype=np.float64)
        _, lengths, directions = np.linalg.svd(points - mean, full_matrices=False)
        axes = directions[:2]
        largest = np.take_along_axis(axes, abs(axes).argmax(axis=1, keepdims=True), axis=1)
        total = max((lengths**2).sum(), np.finfo(np.float64).tiny)
        return cls(mean, axes * np.sign(largest), lengths[:2] ** 2 / total)

    def project(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Return the coordinates (N, 2) of `points` (N, D) in the plane."""
        return (points - self.mean) @ self.axes.T
