"""A model as files: for other runtimes, or as a checkpoint to pass on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pinmem_core.errors import ConfigError, MachineError
from pinmem_core.events import Listener, ignore
from pinmem_core.model import Segmenter, load_checkpoint
from pinmem_core.model.card import CARD
from pinmem_core.model.checkpoint import CONFIG, WEIGHTS, write_checkpoint
from pinmem_core.model.found import checkpoint_of, run_folder
from pinmem_core.publishing.calibration import calibration_images
from pinmem_core.publishing.evidence import evidence_of

if TYPE_CHECKING:
    from pinmem_core.publishing.compared import Comparison

Form = Literal["onnx", "torch-export", "safetensors"]
CHECKPOINT_FILES = (WEIGHTS, CONFIG, CARD)
_NAMES: dict[Form, tuple[str, ...]] = {
    "onnx": ("model.onnx", "model.onnx.json"),
    "torch-export": ("model.pt2", "model.pt2.json"),
    "safetensors": CHECKPOINT_FILES,
}
_INT8 = ("model-int8.onnx", "model-int8.onnx.json")


@dataclass(frozen=True)
class GraphWishes:
    """What a graph in a file is to be like.

    Attributes:
        size: (height, width) of its images; None for any.
        preprocess: Whether it takes 8-bit RGB.
        argmax: Whether it gives trainIds.
        opset: Version of ONNX's operators; None for the usual one.
        int8: Whether to write a quantised ONNX file, too.
        calibrate: Images by which its ranges are set; None for those of the model's sources.
    """

    size: tuple[int, int] | None = None
    preprocess: bool = False
    argmax: bool = False
    opset: int | None = None
    int8: bool = False
    calibrate: str | None = None


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        path: Of the file.
        bytes: Its size.
        compared: How it did beside the network, by size of the images; empty where it is no graph.
    """

    path: Path
    bytes: int
    compared: tuple["Comparison", ...] = ()

    @classmethod
    def of(cls, path: Path, compared: tuple["Comparison", ...] = ()) -> "Written":
        """Return what there is to say of a file that is there."""
        return cls(path, path.stat().st_size, compared)

    @property
    def agreement(self) -> str:
        """The comparison in words; nothing where there is none."""
        if not self.compared:
            return ""
        same = min(one.equal for one in self.compared)
        gaps = [one.largest_difference for one in self.compared]
        logits = f", logits differ by at most {max(filter(None, gaps)):.1e}" if any(gaps) else ""
        return f"{100 * same:.2f} % of the pixels as the network has them{logits}"


def write_files(
    name: str,
    forms: Sequence[Form],
    output: Path | None = None,
    *,
    wishes: GraphWishes | None = None,
    half: bool = False,
    force: bool = False,
    on_event: Listener = ignore,
) -> list[Written]:
    """Write a model in each of `forms`, all into one folder.

    Args:
        name: As `checkpoint_of` has it.
        forms: "safetensors" is the checkpoint itself, the others are graphs.
        output: The folder; None for `export` in the run.
        wishes: What graphs are to be like.
        half: Half precision.
        force: Replace files that exist.
        on_event: Hears of the progress.

    Raises:
        ConfigError: A file exists, or something that is wished for does not exist.
        DataError: There is no such model, or it is damaged.
        MachineError: A library is missing, or the folder cannot be written to.
        PinMemError: A file does not compute what the network does; it is removed.
    """
    wishes = wishes or GraphWishes()
    if half and wishes.int8:
        raise ConfigError("half precision and 8-bit integers contradict each other.", "Take one.")
    checkpoint = checkpoint_of(name, on_event=on_event)
    segmenter, config = load_checkpoint(checkpoint)
    folder = output or run_folder(checkpoint) / "export"
    names = [file for form in forms for file in _NAMES[form]] + [*_INT8] * wishes.int8
    prepare_folder(folder, names, force=force)
    written: list[Written] = []
    for form in forms:
        if form == "safetensors":
            written += _write_weights(segmenter, checkpoint, folder, half)
        else:
            written.append(_write_graph(segmenter, folder, form, wishes, half, on_event))
    if wishes.int8:
        sources = config.get("training", {}).get("sources", ())
        written.append(_write_int8(folder, wishes.calibrate, sources, on_event))
    return written


def prepare_folder(folder: Path, names: Sequence[str], *, force: bool) -> None:
    """Make a folder into which files of these names can be written.

    Raises:
        ConfigError: One is there already, and `force` is not set.
        MachineError: The folder cannot be made.
    """
    there = [name for name in names if (folder / name).exists()]
    if there and not force:
        raise ConfigError(f"{folder / there[0]} exists already.", "Choose another -o, or --force.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make the folder {folder}: {error.strerror}.") from error


def _write_weights(
    segmenter: Segmenter, checkpoint: Path, folder: Path, half: bool
) -> list[Written]:
    stored = {"stored": "float16; loaded and scored in float32"} if half else {}
    evidence = evidence_of(checkpoint)
    figures = evidence.figures if evidence else None
    write_checkpoint(segmenter, folder, segmenter.about | stored, half=half, figures=figures)
    return [Written.of(folder / name) for name in _NAMES["safetensors"]]


def _write_graph(
    segmenter: Segmenter,
    folder: Path,
    form: Literal["onnx", "torch-export"],
    wishes: GraphWishes,
    half: bool,
    on_event: Listener,
) -> Written:
    from pinmem_core.publishing.exporting import export_model

    path = folder / _NAMES[form][0]
    report = export_model(
        segmenter,
        path,
        form,
        size=wishes.size,
        half=half,
        opset=wishes.opset if form == "onnx" else None,
        preprocess=wishes.preprocess,
        argmax=wishes.argmax,
        on_event=on_event,
    )
    return Written.of(path, report.compared)


def _write_int8(
    folder: Path, calibrate: str | None, sources: Sequence[str], on_event: Listener
) -> Written:
    from pinmem_core.publishing.quantized import quantize

    images = calibration_images(calibrate, sources, on_event)
    plain, path = folder / _NAMES["onnx"][0], folder / _INT8[0]
    report = quantize(plain, path, images, on_event=on_event)
    return Written.of(path, report.compared)
