"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[
    bool,
    typer.Option("--json", help="Give one JSON object on stdout.", rich_help_panel="Output"),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Only results and errors.", rich_help_panel="Output"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")]
Precision = Annotated[
    Literal["float32", "bf16", "fp16"], typer.Option(help="Of the network's convolutions.")
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Have torch compile the network: slow at first, then faster."),
]
OutputFolder = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder to make.", rich_help_panel="Output"),
]


def examples(*commands: str) -> str:
    """Return the block of examples at the end of a command's help."""
    return "\n\n".join(["Examples:", *commands])  # the help joins lines without a blank between


def names(text: str | None) -> list[str]:
    """Return the comma-separated names in `text`."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
