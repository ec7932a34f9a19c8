"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Give one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
OutputFolder = Annotated[Path | None, typer.Option("--output", "-o", help="Folder to make.")]


def names(text: str | None) -> list[str]:
    """Return the comma-separated names in `text`."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
