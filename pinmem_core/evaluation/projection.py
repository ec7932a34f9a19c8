"""Many dimensions on paper: the plane in which points differ most."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Plane:
    """The two directions in which points differ most (principal component analysis).

    Attributes:
        mean: (D,) of the points.
        axes: (2, D), at right angles and of unit length; the largest component is positive.
        shares: (2,) of the variance that lies in each.
    """

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    shares: NDArray[np.float64]

    @classmethod
    def of(cls, points: NDArray[Any]) -> "Plane":
        """Return the plane of `points` (N, D): at least two, in at least two dimensions."""
        mean = points.mean(axis=0, dtype=np.float64)
        _, lengths, directions = np.linalg.svd(points - mean, full_matrices=False)
        axes = directions[:2]
        largest = np.take_along_axis(axes, abs(axes).argmax(axis=1, keepdims=True), axis=1)
        total = max((lengths**2).sum(), np.finfo(np.float64).tiny)
        return cls(mean, axes * np.sign(largest), lengths[:2] ** 2 / total)

    def project(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Return the places (N, 2) of `points` (N, D)."""
        return (points - self.mean) @ self.axes.T
