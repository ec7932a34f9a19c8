"""Exporting a segmenter into one file that needs no pinmem."""

import copy
from pathlib import Path
from typing import Literal

import torch

from pinmem_core.errors import ConfigError
from pinmem_core.events import Listener, Progress, ignore
from pinmem_core.files import whole_file
from pinmem_core.loading.augmentation import normalize
from pinmem_core.model import Segmenter
from pinmem_core.publishing.compared import Pixels, Run, Scores
from pinmem_core.publishing.exported_program import program_runner, write_program
from pinmem_core.publishing.graph import Graph, trace
from pinmem_core.publishing.onnx_file import (
    OPSET,
    OnnxRunner,
    check_opset,
    require_onnx,
    write_onnx,
)
from pinmem_core.publishing.signature import Signature, facts
from pinmem_core.publishing.verified import ExportReport, verify

Form = Literal["onnx", "torch-export"]


def export_model(
    segmenter: Segmenter,
    path: Path,
    form: Form,
    *,
    size: tuple[int, int] | None = None,
    half: bool = False,
    opset: int | None = None,
    preprocess: bool = False,
    argmax: bool = False,
    on_event: Listener = ignore,
) -> ExportReport:
    """Write the plain forward of a segmenter, its memory inside, to one file.

    The file is run and compared with the network on drawn streets before it takes its place; what
    came of it goes into a JSON file beside it, `path` with `.json` at its end.

    Args:
        segmenter: Is left as it is.
        path: The file, replaced if it exists.
        form: "onnx", or "torch-export" for a program that torch loads (.pt2).
        size: (height, width) of the one image that the file takes; None for any number of images
            of any size (with "torch-export", from the output stride + 1 on).
        half: Convolve in float16. The memory is read in float32, and what goes in and comes out
            has the types that it has without.
        opset: Version of ONNX's operators; None for 18.
        preprocess: Take uint8 RGB (N, H, W, 3) instead of normalised float32 (N, 3, H, W).
        argmax: Give uint8 trainIds (N, H, W) instead of float32 logits (N, K, H, W).
        on_event: Hears of the progress.

    Raises:
        ConfigError: The opset cannot be written, or one is given for another form.
        MachineError: A library is missing, or the folder cannot be written to.
        PinMemError: The network cannot be traced, or the file does not compute what it does; then
            there is no file.
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


def _checked(form: Form, opset: int | None) -> int:
    """Return the opset to write, once it is sure that the form can be written."""
    if form == "onnx":
        require_onnx()
        check_opset(OPSET if opset is None else opset)
    elif opset is not None:
        raise ConfigError("an opset is of ONNX files only.", "Leave it out.")
    return OPSET if opset is None else opset


def _eager(network: Segmenter) -> Run:
    """Return what gives the network's own logits of RGB images (N, H, W, 3)."""

    @torch.no_grad()
    def run(pixels: Pixels) -> Scores:
        images = normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        result: Scores = network(images).numpy()
        return result

    return run
