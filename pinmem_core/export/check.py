"""Compare an exported file with its network on the same images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pinmem_core.documents import json_text
from pinmem_core.errors import PinMemError
from pinmem_core.events import Listener, Progress
from pinmem_core.files import write_atomic
from pinmem_core.synthetic import draw_scene

Pixels = NDArray[np.uint8]
Scores = NDArray[Any]
Run = Callable[[Pixels], Scores]
"""Function from RGB images (N, H, W, 3) to logits (N, K, H, W) or uint8 trainIds (N, H, W)."""

LEAST_TOLERANCE = 1e-3
"""Absolute difference of logits that is always accepted."""


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


SHAPES = ((1, 128, 256), (3, 97, 131), (2, 161, 65))
"""Batch sizes, heights and widths for comparing files of dynamic size. They differ from the traced
shape."""


@dataclass(frozen=True)
class Bounds:
    """Tolerance of a precision.

    Attributes:
        share: Accepted difference of logits as a fraction of the largest logit; a difference up to
            1e-3 is always accepted.
        hint: Hint for the error message.
    """

    share: float
    hint: str


BOUNDS: Mapping[str, Bounds] = {
    "float32": Bounds(0.001, "Try another version of torch, or the other format."),
    "float16": Bounds(0.05, "This network needs float32: export it without half precision."),
    "int8": Bounds(0.2, "Calibrate with images similar to those to predict, or use float32."),
}


@dataclass(frozen=True)
class ExportReport:
    """An exported file with its comparisons.

    Attributes:
        path: Path of the file.
        sidecar: Path of the JSON file with the metadata and the comparisons.
        bytes: Size of the file in bytes.
        compared: Comparisons with the network, one per shape.
    """

    path: Path
    sidecar: Path
    bytes: int
    compared: tuple[Comparison, ...]


def verify(
    written: Path,
    path: Path,
    run: Run,
    network: Run,
    *,
    size: tuple[int, int] | None,
    facts: Mapping[str, str],
    on_event: Listener,
    images: Sequence[Pixels] = (),
) -> ExportReport:
    """Compare a file with its network and write the comparisons to its sidecar.

    Args:
        written: Temporary path of the file.
        path: Final path of the file.
        run: Function that runs the file.
        network: Function that returns the network's logits.
        size: Fixed (height, width) of the input image; None for any size.
        facts: Metadata of the file; its precision sets the tolerance.
        on_event: Callback for progress events.
        images: RGB images, (H, W, 3), to compare on; synthetic scenes by default.

    Raises:
        MachineError: The folder is not writable.
        PinMemError: The file disagrees with the network.
    """
    bounds = BOUNDS[facts["precision"]]
    shapes = ((1, *size),) if size else SHAPES
    shown = [image[None] for image in images] or [pictures(shape) for shape in shapes]
    compared = []
    for done, batch in enumerate(shown):
        on_event(Progress(f"comparing {path.name}", done, len(shown)))
        compared.append(compare(run, network, batch, bounds.share))
        if problem := compared[-1].problem():
            raise PinMemError(f"{path} was removed: {problem}.", bounds.hint)
    on_event(Progress(f"comparing {path.name}", len(shown), len(shown)))
    report = ExportReport(path, sidecar(path), written.stat().st_size, tuple(compared))
    _write_sidecar(report, facts)
    return report


def sidecar(path: Path) -> Path:
    """Return the path of the JSON file with a file's comparisons."""
    return path.with_name(f"{path.name}.json")


def _write_sidecar(report: ExportReport, facts: Mapping[str, str]) -> None:
    content = {
        "file": report.path.name,
        "bytes": report.bytes,
        "facts": dict(facts),
        "compared": [asdict(comparison) for comparison in report.compared],
    }
    write_atomic(report.sidecar, (json_text(content, indent=2) + "\n").encode())
