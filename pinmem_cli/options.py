"""Options that several commands share, and the rules for all of them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from pinmem_core.errors import ConfigError
from pinmem_core.errors import shell_join as shell_join

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


def names(texts: Sequence[str] | None) -> list[str]:
    """Return the names of an option that may be repeated and takes names joined by commas."""
    return [name.strip() for text in texts or () for name in text.split(",") if name.strip()]


def paths(given: Sequence[Path] | None) -> list[Path]:
    """Return the paths of an option, as `names` does; a comma in a path that exists is its own."""
    from pinmem_core.paths import expanded

    return [
        path
        for one in given or ()
        for path in ([one] if expanded(one).exists() else map(Path, names([str(one)])))
    ]


def given_options(context: typer.Context) -> list[str]:
    """Return the options that the user has given, by their long names."""
    return [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.param_type_name == "option" and _is_given(context, parameter.name or "")
    ]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_others(context: typer.Context, mode: str, why: str, allowed: Sequence[str] = ()) -> None:
    """Refuse the options that would do nothing.

    Args:
        context: Of the command.
        mode: What decides that they do nothing, an option for instance.
        why: What it does instead of listening to them.
        allowed: The options that it listens to.

    Raises:
        ConfigError: Another option is given.
    """
    idle = [o for o in given_options(context) if o not in (mode, *allowed, "--json", "--quiet")]
    if idle:
        raise ConfigError(
            f"{mode} {why}: {', '.join(idle)} would do nothing.", f"Leave out {', '.join(idle)}."
        )


def without(flag: str) -> str:
    """Return the command that is running, but without `flag`."""
    return shell_join("pinmem", *(word for word in sys.argv[1:] if word != flag))
