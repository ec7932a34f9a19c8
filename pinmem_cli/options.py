"""Options that several commands share, and the rules for all of them."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from pinmem_cli import names as known
from pinmem_core.errors import ConfigError
from pinmem_core.errors import shell_join as shell_join


def option(
    help: str,
    *names: str,
    panel: str | None = None,
    metavar: str | None = None,
    complete: Callable[[], list[str]] | None = None,
    **limits: Any,
) -> Any:
    """Return a Typer option; its names follow from the parameter unless given."""
    completion = known.complete(complete) if complete else None
    return typer.Option(
        *names,
        help=help,
        rich_help_panel=panel,
        metavar=metavar,
        autocompletion=completion,
        **limits,
    )


def argument(
    help: str, *, metavar: str | None = None, complete: Callable[[], list[str]] | None = None
) -> Any:
    """Return a Typer argument."""
    completion = known.complete(complete) if complete else None
    return typer.Argument(help=help, metavar=metavar, autocompletion=completion)


_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh])", re.ASCII)

Json = Annotated[bool, option("Print one JSON object on stdout.", "--json", panel="Output")]
Quiet = Annotated[bool, option("Print only results and errors.", "--quiet", "-q", panel="Output")]
Device = Annotated[str, option("Device: auto, cpu, mps, cuda or cuda:N.", complete=known.devices)]
Precision = Annotated[Literal["float32", "bf16", "fp16"], option("Precision of the convolutions.")]
Compile = Annotated[
    bool, option("Compile the network with torch: a slow start, faster afterwards.", "--compile")
]
OutputFolder = Annotated[Path | None, option("Folder to create.", "--output", "-o", panel="Output")]
Force = Annotated[bool, option("Overwrite existing files.", "--force", panel="Output")]


Dataset = Annotated[
    str, argument("Dataset: {datasets}, or your own.", complete=known.known_datasets)
]
Prepared = Annotated[str, argument("Prepared dataset.", complete=known.known_datasets)]


class _Help:
    """Show flags without a type, and fill in names such as `{datasets}`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; flags have no metavar."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]  # of the command
        for param in params:
            if getattr(param, "is_bool_flag", False):
                param.metavar = ""
        return params

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help with the known names."""
        for param in self.get_params(ctx):
            for names in known.KINDS:
                place = f"{{{names.__name__}}}"
                if place in (param.help or ""):
                    param.help = param.help.replace(place, ", ".join(names()))
        super().format_help(ctx, formatter)  # type: ignore[misc]  # of the command


class Command(_Help, TyperCommand):
    """A command with pinmem's help."""


class Group(_Help, TyperGroup):
    """A group of commands with pinmem's help."""


def group(help: str, cls: type[Group] = Group) -> typer.Typer:
    """Return an empty group of commands."""
    context = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(cls=cls, no_args_is_help=True, help=help, context_settings=context)


def add(
    app: typer.Typer,
    name: str,
    function: Callable[..., None],
    *examples: str,
    panel: str | None = None,
) -> None:
    """Add a command to a group, with examples at the end of its help; `panel` groups commands."""
    lines = "\n\n".join(["Examples:", *examples]) if examples else None  # a blank line each
    app.command(name, cls=Command, epilog=lines, rich_help_panel=panel)(function)


def names(texts: Sequence[str] | None) -> list[str]:
    """Return the entries of a list option, which repeats and takes commas."""
    return [name.strip() for text in texts or () for name in text.split(",") if name.strip()]


def minutes(text: str) -> float:
    """Return a duration such as "90s", "30m" or "1.5h" in minutes.

    Raises:
        ConfigError: The text is not of this form.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise ConfigError(f"'--time {text}' is not a duration.", "Write e.g. 90s, 30m or 2h.")
    return float(match[1]) * {"s": 1 / 60, "m": 1, "h": 60}[match[2]]


def paths(given: Sequence[Path] | None) -> list[Path]:
    """Return the paths of a list option like `names`; a path that exists may contain commas."""
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
        context: Context of the command.
        mode: Option or input that makes the others ineffective.
        why: What the mode does, for the message.
        allowed: Options that have an effect.

    Raises:
        ConfigError: Another option is given.
    """
    idle = [o for o in given_options(context) if o not in (mode, *allowed, "--json", "--quiet")]
    if idle:
        raise ConfigError(
            f"{mode} {why}: {', '.join(idle)} would do nothing.",
            f"Leave out {', '.join(idle)}.",
        )


def without(flag: str) -> str:
    """Return the current command line without `flag`."""
    return shell_join("pinmem", *(word for word in sys.argv[1:] if word != flag))


def with_flag(command: str, flag: str) -> str:
    """Return the current command line with `flag` after the name of the command."""
    words = [word for word in sys.argv[1:] if word != flag]
    place = words.index(command) + 1 if command in words else len(words)
    return shell_join("pinmem", *words[:place], flag, *words[place:])
