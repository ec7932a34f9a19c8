"""Write a model as files for other runtimes, or as a checkpoint to share."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pinmem_core.checkpoints.checkpoint import CONFIG, WEIGHTS, write_checkpoint
from pinmem_core.checkpoints.hub import checkpoint_of, run_folder
from pinmem_core.checkpoints.model_card import CARD, ModelMetrics
from pinmem_core.data.transforms import normalize
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError, MachineError
from pinmem_core.evaluation.compare import LARGEST_REPORT
from pinmem_core.evaluation.report import DATA
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.export.check import Comparison, ExportReport, Pixels, Run, Scores, verify
from pinmem_core.export.graph import Graph, Signature, file_metadata, trace
from pinmem_core.export.int8 import calibration_images, quantize
from pinmem_core.export.onnx import (
    OPSET,
    OnnxRunner,
    check_opset,
    require_onnx,
    write_onnx,
)
from pinmem_core.export.torch_export import program_runner, write_program
from pinmem_core.files import atomic_file
from pinmem_core.inference import PROTOCOLS
from pinmem_core.models import Segmenter, load_checkpoint


@dataclass(frozen=True)
class Evidence:
    """Scores with their source.

    Attributes:
        metrics: Metrics for the model card.
        report: Path of the `report.json` with the scores; None for the scores of the run.
    """

    metrics: ModelMetrics
    report: Path | None = None


def evidence_of(checkpoint: Path) -> Evidence | None:
    """Return the newest report on these weights, else the scores of the run, else None."""
    with (checkpoint / WEIGHTS).open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    run = run_folder(checkpoint)
    reports = [*run.glob(f"eval/*/{DATA}"), *checkpoint.glob(DATA)]
    for path in sorted(reports, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if metrics := _metrics(path, _of_report, digest):
            return Evidence(metrics, path)
    metrics = _metrics(run / "scores.json", _of_run)
    return Evidence(metrics) if metrics else None


def _metrics(
    path: Path, build: Callable[..., ModelMetrics | None], *facts: str
) -> ModelMetrics | None:
    """Return the metrics in a JSON file; None where there is none, or a damaged one."""
    try:
        return build(read_json_object(path, LARGEST_REPORT), *facts)
    except (DataError, KeyError, TypeError, AttributeError, ValueError):
        return None


def _of_report(data: Mapping[str, Any], digest: str) -> ModelMetrics | None:
    """Return the metrics of a report, None if it is on other weights."""
    return ModelMetrics.of_report(data) if data["checkpoint"]["weights_sha256"] == digest else None


def _of_run(data: Mapping[str, Any]) -> ModelMetrics:
    name = data["protocol"]
    return ModelMetrics.of_run(data, f"{name}: {PROTOCOLS[name].describe()}")


GraphFormat = Literal["onnx", "torch-export"]


def export_model(
    segmenter: Segmenter,
    path: Path,
    form: GraphFormat,
    *,
    size: tuple[int, int] | None = None,
    half: bool = False,
    opset: int | None = None,
    preprocess: bool = False,
    argmax: bool = False,
    on_event: Listener = ignore,
) -> ExportReport:
    """Write the forward pass of a segmenter with its memory to one file.

    The file is written only after it agrees with the network on synthetic scenes. The comparison is
    written to `path` with `.json` appended.

    Args:
        segmenter: Segmenter; it is not modified.
        path: Output file; an existing file is replaced.
        form: Format: "onnx", or "torch-export" for a program that torch loads (.pt2).
        size: Fixed (height, width) of a single input image; None for any batch size and image size
            (with "torch-export", sides of at least the output stride + 1).
        half: Whether to convolve in float16. The memory is read in float32, and the types of inputs
            and outputs do not change.
        opset: ONNX opset version; None for 18.
        preprocess: Whether the input is uint8 RGB (N, H, W, 3) instead of normalised float32
            (N, 3, H, W).
        argmax: Whether the output is uint8 trainIds (N, H, W) instead of float32 logits
            (N, K, H, W).
        on_event: Callback for progress events.

    Raises:
        ConfigError: The opset is not supported, or is given for another format than ONNX.
        MachineError: A library is missing, or the folder is not writable.
        PinMemError: The network cannot be traced, or the file disagrees with it. No file is
            written.
    """
    opset = _checked(form, opset)
    signature = Signature(size, preprocess, argmax, segmenter.normalization)
    network = copy.deepcopy(segmenter).cpu().eval()
    network.autocast = None
    on_event(Progress(f"writing {path.name}", 0, 1))
    program = trace(Graph(network, signature, half=half))
    about = file_metadata(network.config, signature, "float16" if half else "float32")
    with atomic_file(path) as partial:
        if form == "onnx":
            write_onnx(program, signature, about, partial, opset)
            run: Run = OnnxRunner(partial)
        else:
            write_program(program, about, partial)
            run = program_runner(partial, signature)
        on_event(Progress(f"writing {path.name}", 1, 1))
        return verify(
            partial, path, run, _eager(network), size=size, facts=about, on_event=on_event
        )


def _checked(form: GraphFormat, opset: int | None) -> int:
    """Return the opset after checking that the format can be written."""
    if form == "onnx":
        require_onnx()
        check_opset(OPSET if opset is None else opset)
    elif opset is not None:
        raise ConfigError("an opset applies to ONNX files only.", "Leave it out.")
    return OPSET if opset is None else opset


def _eager(network: Segmenter) -> Run:
    """Return a function from RGB images (N, H, W, 3) to the network's own logits."""

    @torch.no_grad()
    def run(pixels: Pixels) -> Scores:
        images = normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2), network.normalization)
        result: Scores = network(images).numpy()
        return result

    return run


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
    compared: tuple[Comparison, ...] = ()

    @classmethod
    def of(cls, path: Path, compared: tuple[Comparison, ...] = ()) -> "Written":
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
    metrics = evidence.metrics if evidence else None
    write_checkpoint(segmenter, folder, segmenter.about | stored, half=half, metrics=metrics)
    return [Written.of(folder / name) for name in _NAMES["safetensors"]]


def _write_graph(
    segmenter: Segmenter,
    folder: Path,
    form: Literal["onnx", "torch-export"],
    wishes: GraphWishes,
    half: bool,
    on_event: Listener,
) -> Written:
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
    images = calibration_images(calibrate, sources, on_event)
    plain, path = folder / _NAMES["onnx"][0], folder / _INT8[0]
    report = quantize(plain, path, images, on_event=on_event)
    return Written.of(path, report.compared)
