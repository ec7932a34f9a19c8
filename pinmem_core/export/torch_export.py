"""Write and run files of torch.export (.pt2)."""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from pinmem_core.export.check import Pixels, Run, Scores
from pinmem_core.inference.onnx_runner import Signature

METADATA = "pinmem.json"
"""Name of the extra file in the archive that describes inputs and outputs."""


def write_program(program: ExportedProgram, metadata: Mapping[str, str], path: Path) -> None:
    """Write a program with its metadata as an extra file.

    The traces of the stack that torch notes of each node are left out: they name paths of this
    machine.

    Args:
        program: Program returned by `trace`.
        metadata: Metadata for users of the file.
        path: Path of the file.
    """
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    data = BytesIO()  # torch's own writer aborts the process if the disk is full
    torch.export.save(program, data, extra_files={METADATA: json.dumps(dict(metadata))})
    path.write_bytes(data.getbuffer())


def program_runner(path: Path, signature: Signature) -> Run:
    """Return a function that runs the program on RGB images (N, H, W, 3).

    Args:
        path: Path of the file.
        signature: Signature that the program was traced with.
    """
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    @torch.no_grad()
    def run(pixels: Pixels) -> Scores:
        result: Scores = module(signature.feed(torch.from_numpy(pixels))).numpy()
        return result

    return run
