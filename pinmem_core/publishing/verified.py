"""A file is kept only if it computes what the network does."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pinmem_core.documents import json_text
from pinmem_core.errors import PinMemError
from pinmem_core.events import Listener, Progress
from pinmem_core.files import write_whole
from pinmem_core.publishing.compared import Comparison, Pixels, Run, compare, pictures

SHAPES = ((1, 128, 256), (3, 97, 131), (2, 161, 65))
"""Images, rows and columns that files of any size are compared at; none is what was traced."""


@dataclass(frozen=True)
class Bounds:
    """How far a precision may be from float32.

    Attributes:
        share: Of the largest logit, by which logits may differ; by 1e-3 they always may.
        hint: What to do where they differ by more.
    """

    share: float
    hint: str


BOUNDS: Mapping[str, Bounds] = {
    "float32": Bounds(0.001, "Another version of torch, or the other form, may do."),
    "float16": Bounds(0.05, "This network needs float32: export it without half precision."),
    "int8": Bounds(0.2, "Calibrate with images like those it will see, or stay with float32."),
}


@dataclass(frozen=True)
class ExportReport:
    """A file that was written and compared.

    Attributes:
        path: The file.
        sidecar: The JSON file beside it, with the facts and the comparisons.
        bytes: The file's size.
        compared: How it did beside the network, by shape.
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
    """Compare a file with what it was made of, and write what came of it beside its place.

    Args:
        written: Where the file is now.
        path: Where it is going to be.
        run: Runs it.
        network: What it was made of; gives logits.
        size: (height, width) of the one image that it takes; None for any.
        facts: What the file says of itself; its precision decides what it may differ by.
        on_event: Hears of the progress.
        images: RGB (H, W, 3) to compare on; by default drawn streets.

    Raises:
        MachineError: The folder cannot be written to.
        PinMemError: The file computes something else.
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
    """Return where the comparisons of a file are written."""
    return path.with_name(f"{path.name}.json")


def _write_sidecar(report: ExportReport, facts: Mapping[str, str]) -> None:
    content = {
        "file": report.path.name,
        "bytes": report.bytes,
        "facts": dict(facts),
        "compared": [asdict(comparison) for comparison in report.compared],
    }
    write_whole(report.sidecar, (json_text(content, indent=2) + "\n").encode())
