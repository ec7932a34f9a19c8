"""Graphs as files of torch.export (.pt2), and running them."""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import torch
from torch.export import ExportedProgram

from pinmem_core.publishing.compared import Pixels, Run, Scores
from pinmem_core.publishing.signature import Signature

FACTS = "pinmem.json"
"""The extra file inside that tells what the program takes and gives."""


def write_program(program: ExportedProgram, facts: Mapping[str, str], path: Path) -> None:
    """Write a program and, as an extra file in it, its facts.

    Args:
        program: Of `trace`.
        facts: What a user of the file has to know.
        path: The file.
    """
    data = BytesIO()  # torch's own writer aborts the process where the disk is full
    torch.export.save(program, data, extra_files={FACTS: json.dumps(dict(facts))})
    path.write_bytes(data.getbuffer())


def program_runner(path: Path, signature: Signature) -> Run:
    """Return what runs the program in a file on RGB images (N, H, W, 3).

    Args:
        path: The file.
        signature: What it was traced with.
    """
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    @torch.no_grad()
    def run(pixels: Pixels) -> Scores:
        result: Scores = module(signature.feed(torch.from_numpy(pixels))).numpy()
        return result

    return run
