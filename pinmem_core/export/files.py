"""Write a model as files for other runtimes, or as a checkpoint to share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pinmem_core.checkpoints.checkpoint import CONFIG, WEIGHTS, write_checkpoint
from pinmem_core.checkpoints.hub import checkpoint_of, run_folder
from pinmem_core.checkpoints.model_card import CARD
from pinmem_core.errors import ConfigError, MachineError
from pinmem_core.events import Listener, ignore
from pinmem_core.export.calibration import calibration_images
from pinmem_core.export.evidence import evidence_of
from pinmem_core.models import Segmenter, load_checkpoint

if TYPE_CHECKING:
    from pinmem_core.export.compared import Comparison

ExportFormat = Literal["onnx", "torch-export", "safetensors"]
CHECKPOINT_FILES = (WEIGHTS, CONFIG, CARD)
_NAMES: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": ("model.onnx", "model.onnx.json"),
    "torch-export": ("model.pt2", "model.pt2.json"),
    "safetensors": CHECKPOINT_FILES,
}
_INT8 = ("model-int8.onnx", "model-int8.onnx.json")


@dataclass(frozen=True)
class GraphWishes:
    """Options of exported graphs.

    Attributes:
        size: Fixed (height, width) of the input images; None for any size.
        preprocess: Whether the input is uint8 RGB.
        argmax: Whether the output is trainIds.
        opset: ONNX opset version; None for the default.
        int8: Whether to write a quantized ONNX file as well.
        calibrate: Images for calibration; None for the validation images of the model's sources.
    """

    size: tuple[int, int] | None = None
    preprocess: bool = False
    argmax: bool = False
    opset: int | None = None
    int8: bool = False
    calibrate: str | None = None


@dataclass(frozen=True)
class Written:
    """A written file.

    Attributes:
        path: Path of the file.
        bytes: Size in bytes.
        compared: Comparisons with the network, one per image size; empty for checkpoint files.
    """

    path: Path
    bytes: int
    compared: tuple["Comparison", ...] = ()

    @classmethod
    def of(cls, path: Path, compared: tuple["Comparison", ...] = ()) -> "Written":
        """Return the record of an existing file."""
        return cls(path, path.stat().st_size, compared)

    @property
    def agreement(self) -> str:
        """Description of the comparisons; empty if there are none."""
        if not self.compared:
            return ""
        same = min(one.equal for one in self.compared)
        gaps = [one.largest_difference for one in self.compared]
        logits = f", logits differ by at most {max(filter(None, gaps)):.1e}" if any(gaps) else ""
        return f"{100 * same:.2f} % of the pixels agree with the network{logits}"


def write_files(
    name: str,
    forms: Sequence[ExportFormat],
    output: Path | None = None,
    *,
    wishes: GraphWishes | None = None,
    half: bool = False,
    force: bool = False,
    on_event: Listener = ignore,
) -> list[Written]:
    """Write a model in each of `forms` to one folder.

    Args:
        name: Name or path of a run, checkpoint or Hub model, as for `checkpoint_of`.
        forms: Formats: "safetensors" for the checkpoint itself, the others for graphs.
        output: Output folder; None for `export` in the run.
        wishes: Options of the graphs.
        half: Whether to use half precision.
        force: Whether to replace existing files.
        on_event: Callback for progress events.

    Raises:
        ConfigError: A file exists, or an option is not supported.
        DataError: The model does not exist or is damaged.
        MachineError: A library is missing, or the folder is not writable.
        PinMemError: A file disagrees with the network; it is removed.
    """
    wishes = wishes or GraphWishes()
    if half and wishes.int8:
        raise ConfigError("half precision and int8 exclude each other.", "Choose one of them.")
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
    """Create the output folder and check that no file would be overwritten.

    Raises:
        ConfigError: A file exists, and `force` is not set.
        MachineError: The folder cannot be created.
    """
    there = [name for name in names if (folder / name).exists()]
    if there and not force:
        raise ConfigError(f"{folder / there[0]} exists already.", "Choose another -o, or --force.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot create the folder {folder}: {error.strerror}.") from error


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
    from pinmem_core.export.exporting import export_model

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
    from pinmem_core.export.quantized import quantize

    images = calibration_images(calibrate, sources, on_event)
    plain, path = folder / _NAMES["onnx"][0], folder / _INT8[0]
    report = quantize(plain, path, images, on_event=on_event)
    return Written.of(path, report.compared)
