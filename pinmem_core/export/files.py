"""Export a model: to a graph for other runtimes, or as a checkpoint to share."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pinmem_core.checkpoints.checkpoint import WEIGHTS, weights_sha256, write_checkpoint
from pinmem_core.checkpoints.config_file import CONFIG
from pinmem_core.checkpoints.hub import checkpoint_of, run_folder
from pinmem_core.checkpoints.model_card import CARD, ModelMetrics, has_scores, is_ours
from pinmem_core.data.transforms import normalize
from pinmem_core.documents import read_json_object
from pinmem_core.errors import ConfigError, DataError, MachineError
from pinmem_core.evaluation.compare import LARGEST_REPORT
from pinmem_core.evaluation.report import DATA
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.export.check import ExportedFile, Pixels, Run, Scores, verify
from pinmem_core.export.graph import Graph, file_metadata, trace
from pinmem_core.export.int8 import calibration_images, quantize, require_convolutions
from pinmem_core.export.onnx import OPSET, check_opset, require_onnx, write_onnx
from pinmem_core.export.torch_export import program_runner, write_program
from pinmem_core.files import atomic_file
from pinmem_core.inference import PROTOCOLS
from pinmem_core.inference.onnx_runner import OnnxRunner, Signature
from pinmem_core.inference.optimize import bytes_per_pixel
from pinmem_core.models import Segmenter, load_checkpoint

GraphFormat = Literal["onnx", "torch-export"]
CHECKPOINT_FILES = (WEIGHTS, CONFIG, CARD)
_GRAPHS = {"onnx": "model.onnx", "torch-export": "model.pt2"}


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
) -> ExportedFile:
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
    if form == "onnx":
        require_onnx()
        check_opset(opset or OPSET)
    elif opset is not None:
        raise ConfigError("an opset applies to ONNX files only.", "Leave it out.")
    signature = Signature(size, preprocess, argmax, segmenter.normalization)
    network = copy.deepcopy(segmenter).cpu().eval()
    network.autocast = None
    on_event(Progress(f"writing {path.name}", 0, 1))
    program = trace(Graph(network, signature, half=half))
    metadata = {
        **file_metadata(network.config, signature, "float16" if half else "float32"),
        "bytes_per_pixel": f"{bytes_per_pixel(network):.0f}",
        **({"protocol": network.about["protocol"]} if "protocol" in network.about else {}),
    }
    with atomic_file(path) as partial:
        if form == "onnx":
            write_onnx(program, signature, metadata, partial, opset or OPSET)
            run: Run = OnnxRunner(partial)
        else:
            write_program(program, metadata, partial)
            run = program_runner(partial, signature)
        on_event(Progress(f"writing {path.name}", 1, 1))
        return verify(
            partial, path, run, _eager(network), size=size, metadata=metadata, on_event=on_event
        )


def _eager(network: Segmenter) -> Run:
    """Return a function from RGB images (N, H, W, 3) to the network's own logits."""

    @torch.no_grad()
    def run(pixels: Pixels) -> Scores:
        images = normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2), network.normalization)
        result: Scores = network(images).numpy()
        return result

    return run


def export_graph(
    name: str,
    form: GraphFormat,
    output: Path | None = None,
    *,
    precision: Literal["float32", "fp16", "int8"] = "float32",
    calibrate: Sequence[str] = (),
    force: bool = False,
    on_event: Listener = ignore,
    **options: Any,
) -> list[ExportedFile]:
    """Write the graph of a model by name.

    Args:
        name: Name or path of a run, checkpoint or Hub model, as for `checkpoint_of`.
        form: Format, as for `export_model`.
        output: Output folder, or file with the suffix of the format (.onnx, .pt2); None for
            `export` in the run.
        precision: Precision; "int8", for ONNX only, writes a quantized file next to the float32
            file.
        calibrate: Images, folders or glob patterns for calibration of int8; empty for the
            validation images of the model's sources.
        force: Whether to replace existing files.
        on_event: Callback for progress events.
        options: `size`, `opset`, `preprocess` and `argmax`, as for `export_model`.

    Raises:
        ConfigError: A file exists, or an option or the network is not supported.
        DataError: The model does not exist or is damaged, or `calibrate` matches no image.
        MachineError: A library is missing, or the folder is not writable.
        PinMemError: A file disagrees with the network; it is removed.
    """
    checkpoint = checkpoint_of(name, on_event=on_event)
    segmenter, config = load_checkpoint(checkpoint)
    path = (output or run_folder(checkpoint) / "export") / _GRAPHS[form]
    if output and output.suffix == path.suffix and not output.is_dir():
        path = output
    quantized = path.with_stem(f"{path.stem}-int8")
    int8, half = precision == "int8", precision == "fp16"
    if int8:
        require_convolutions(segmenter)
    names = [path.name, *[quantized.name] * int8]
    prepare_folder(path.parent, [n for name in names for n in (name, f"{name}.json")], force=force)
    files = [export_model(segmenter, path, form, half=half, on_event=on_event, **options)]
    if int8:
        sources = config.get("training", {}).get("sources", ())
        images = calibration_images(calibrate, sources, on_event, segmenter.label_space)
        files.append(quantize(path, quantized, images, on_event=on_event))
    return files


def export_weights(
    name: str,
    output: Path | None = None,
    *,
    half: bool = False,
    force: bool = False,
    on_event: Listener = ignore,
) -> list[ExportedFile]:
    """Write a model as a checkpoint with its card to a folder.

    Args:
        name: Name or path of a run, checkpoint or Hub model, as for `checkpoint_of`.
        output: Output folder; None for `export` in the run.
        half: Whether to store the convolutions in float16.
        force: Whether to replace existing files.
        on_event: Callback for notices.

    Raises:
        ConfigError: A file exists.
        DataError: The model does not exist or is damaged.
        MachineError: The folder is not writable.
    """
    checkpoint = checkpoint_of(name, on_event=on_event)
    segmenter, _ = load_checkpoint(checkpoint)
    folder = output or run_folder(checkpoint) / "export"
    prepare_folder(folder, CHECKPOINT_FILES, force=force)
    evidence = evidence_of(checkpoint)
    metrics = evidence.metrics if evidence else None
    old = checkpoint / CARD
    card = old.read_bytes() if keeps_card(old, evidence) else None
    write_checkpoint(segmenter, folder, segmenter.about, half=half, metrics=metrics, card=card)
    return [
        ExportedFile(path, path.stat().st_size) for path in map(folder.joinpath, CHECKPOINT_FILES)
    ]


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
    digest = weights_sha256(checkpoint)

    def of_report(data: Mapping[str, Any]) -> ModelMetrics | None:
        is_on_these = data["checkpoint"]["weights_sha256"] == digest
        return ModelMetrics.of_report(data) if is_on_these else None

    run = run_folder(checkpoint)
    reports = [*run.glob(f"eval/*/{DATA}"), *checkpoint.glob(DATA)]
    for path in sorted(reports, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if metrics := _metrics(path, of_report):
            return Evidence(metrics, path)
    metrics = _metrics(run / "scores.json", _of_run)
    return Evidence(metrics) if metrics else None


def keeps_card(card: Path, evidence: Evidence | None) -> bool:
    """Return whether a copy keeps a card: it is written by hand, or has the only scores."""
    return not is_ours(card) or (evidence is None and has_scores(card))


def _metrics(path: Path, build: Callable[[Any], ModelMetrics | None]) -> ModelMetrics | None:
    """Return the metrics in a JSON file; None if it is missing or damaged."""
    try:
        return build(read_json_object(path, LARGEST_REPORT))
    except (DataError, KeyError, TypeError, AttributeError, ValueError):
        return None


def _of_run(data: Mapping[str, Any]) -> ModelMetrics:
    name = data["protocol"]
    return ModelMetrics.of_run(data, f"{name}: {PROTOCOLS[name].describe()}")
