"""Compare an exported file with its network on the same images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.documents import json_bytes
from pinmem_core.errors import PinMemError
from pinmem_core.events import Listener, Progress
from pinmem_core.files import write_atomic
from pinmem_core.synthetic import draw_scene

Pixels = NDArray[np.uint8]
Scores = NDArray[Any]
Run = Callable[[Pixels], Scores]
"""Function from RGB images (N, H, W, 3) to logits (N, K, H, W) or uint8 trainIds (N, H, W)."""

SHAPES = ((1, 128, 256), (3, 97, 131), (2, 161, 65))
"""Batch sizes, heights and widths for comparing files of dynamic size. They differ from the traced
shape."""
LEAST_TOLERANCE = 1e-3
"""Absolute difference of logits that is always accepted."""
_TOLERANCES: Mapping[str, tuple[float, str]] = {
    "float32": (0.001, "Try another version of torch, or the other format."),
    "float16": (0.05, "This network needs float32: export it without half precision."),
    "int8": (0.2, "Calibrate with images similar to those to predict, or use float32."),
}
"""Accepted difference as a fraction of the largest logit, and a hint, by precision."""


@dataclass(frozen=True)
class Comparison:
    """Result of comparing an exported file with its network.

    Attributes:
        shape: Number of images, height and width.
        largest_logit: Largest absolute logit of the network.
        tolerance: Accepted absolute difference of a logit.
        largest_difference: Largest absolute difference of a logit; None if the file returns
            trainIds.
        equal: Fraction of pixels with the same class, in 0..1.
        sure: Fraction of clear pixels, in 0..1. In a clear pixel, the best logit exceeds the second
            by more than the tolerance.
        sure_equal: Fraction of clear pixels with the same class, in 0..1; 1 if there are none.
    """

    shape: tuple[int, int, int]
    largest_logit: float
    tolerance: float
    largest_difference: float | None
    equal: float
    sure: float
    sure_equal: float

    def problem(self) -> str | None:
        """Return a description of the failure, or None if the file passes."""
        count, height, width = self.shape
        where = f"{count} image{'s' * (count > 1)} of {width}x{height}"
        difference = self.largest_difference or 0.0
        if not difference <= self.tolerance:  # also true for NaN
            return (
                f"on {where}, a logit differs by {difference:.2g}; "
                f"the tolerance is {self.tolerance:.2g}"
            )
        if self.sure_equal < 1:
            return f"on {where}, {1 - self.sure_equal:.2%} of the clear pixels change their class"
        return None


@dataclass(frozen=True)
class ExportedFile:
    """An exported file.

    Attributes:
        path: Path of the file.
        bytes: Size in bytes.
        compared: Comparisons with the network; empty for files of a checkpoint.
    """

    path: Path
    bytes: int
    compared: tuple[Comparison, ...] = ()

    @property
    def sidecar(self) -> Path:
        """Path of the JSON file with the metadata and the comparisons."""
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def agreement(self) -> str:
        """Description of the comparisons; empty if there are none."""
        if not self.compared:
            return ""
        same = min(one.equal for one in self.compared)
        gaps = [one.largest_difference for one in self.compared]
        logits = f", logits differ by at most {max(filter(None, gaps)):.1e}" if any(gaps) else ""
        return f"{100 * same:.2f} % of the pixels agree with the network{logits}"


def compare(run: Run, network: Run, images: Pixels, share: float) -> Comparison:
    """Compare an exported file with its network on the same images.

    Args:
        run: Function that runs the file.
        network: Function that returns the network's logits.
        images: RGB images, (N, H, W, 3).
        share: Accepted difference of logits as a fraction of the largest logit; a difference up to
            1e-3 is always accepted.
    """
    expected, actual = network(images), run(images)
    largest = float(np.abs(expected).max())
    tolerance = max(LEAST_TOLERANCE, share * largest)
    gives_logits = actual.ndim == expected.ndim
    classes = actual.argmax(axis=1) if gives_logits else actual
    same = classes == expected.argmax(axis=1)
    best = np.partition(expected, -2, axis=1)
    sure = best[:, -1] - best[:, -2] > tolerance
    count, height, width = images.shape[:3]
    return Comparison(
        shape=(count, height, width),
        largest_logit=largest,
        tolerance=tolerance,
        largest_difference=float(np.abs(actual - expected).max()) if gives_logits else None,
        equal=float(same.mean()),
        sure=float(sure.mean()),
        sure_equal=float(same[sure].mean()) if sure.any() else 1.0,
    )


def pictures(shape: tuple[int, int, int]) -> Pixels:
    """Return synthetic scenes as RGB images (N, H, W, 3)."""
    count, height, width = shape
    scenes = [Image.fromarray(draw_scene("cityday", number).image) for number in range(count)]
    return np.stack([np.asarray(scene.resize((width, height))) for scene in scenes])


def verify(
    written: Path,
    path: Path,
    run: Run,
    network: Run,
    *,
    size: tuple[int, int] | None,
    metadata: Mapping[str, str],
    on_event: Listener,
    images: Sequence[Pixels] = (),
) -> ExportedFile:
    """Compare a file with its network and write the comparisons to its sidecar.

    Args:
        written: Temporary path of the file.
        path: Final path of the file.
        run: Function that runs the file.
        network: Function that returns the network's logits.
        size: Fixed (height, width) of the input image; None for any size.
        metadata: Metadata of the file; its precision sets the tolerance.
        on_event: Callback for progress events.
        images: RGB images, (H, W, 3), to compare on; synthetic scenes by default.

    Raises:
        MachineError: The folder is not writable.
        PinMemError: The file disagrees with the network.
    """
    share, hint = _TOLERANCES[metadata["precision"]]
    shapes = ((1, *size),) if size else SHAPES
    batches = [image[None] for image in images] or [pictures(shape) for shape in shapes]
    compared: list[Comparison] = []
    for batch in batches:
        on_event(Progress(f"comparing {path.name}", len(compared), len(batches)))
        compared.append(compare(run, network, batch, share))
        if problem := compared[-1].problem():
            raise PinMemError(f"{path} was removed: {problem}.", hint)
    on_event(Progress(f"comparing {path.name}", len(batches), len(batches)))
    exported = ExportedFile(path, written.stat().st_size, tuple(compared))
    content = {
        "file": path.name,
        "bytes": exported.bytes,
        "metadata": dict(metadata),
        "compared": [asdict(comparison) for comparison in compared],
    }
    write_atomic(exported.sidecar, json_bytes(content))
    return exported
