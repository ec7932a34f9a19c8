"""Verify an exported file against its network."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pinmem_core.documents import json_text
from pinmem_core.errors import PinMemError
from pinmem_core.events import Listener, Progress
from pinmem_core.export.compared import Comparison, Pixels, Run, compare, pictures
from pinmem_core.files import write_whole

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
    write_whole(report.sidecar, (json_text(content, indent=2) + "\n").encode())
