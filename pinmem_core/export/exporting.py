"""Export a segmenter to one file that runs without pinmem."""

import copy
from pathlib import Path
from typing import Literal

import torch

from pinmem_core.data.transforms import normalize
from pinmem_core.errors import ConfigError
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.export.compared import Pixels, Run, Scores
from pinmem_core.export.exported_program import program_runner, write_program
from pinmem_core.export.graph import Graph, trace
from pinmem_core.export.onnx_file import (
    OPSET,
    OnnxRunner,
    check_opset,
    require_onnx,
    write_onnx,
)
from pinmem_core.export.signature import Signature, facts
from pinmem_core.export.verified import ExportReport, verify
from pinmem_core.files import whole_file
from pinmem_core.models import Segmenter

ExportFormat = Literal["onnx", "torch-export"]


def export_model(
    segmenter: Segmenter,
    path: Path,
    form: ExportFormat,
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
    signature = Signature(size, preprocess, argmax)
    network = copy.deepcopy(segmenter).cpu().eval()
    network.autocast = None
    on_event(Progress(f"writing {path.name}", 0, 1))
    program = trace(Graph(network, signature, half=half))
    about = facts(network.config, signature, "float16" if half else "float32")
    with whole_file(path) as partial:
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


def _checked(form: ExportFormat, opset: int | None) -> int:
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
        images = normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        result: Scores = network(images).numpy()
        return result

    return run
