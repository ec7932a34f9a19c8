"""The Typer app: commands, version, and the boundary where errors become exit codes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Annotated, Any

import typer

from pinmem_cli import (
    data,
    doctor,
    eval,
    export,
    let_idle_threads_sleep,
    predict,
    runs,
    serve,
    train,
)
from pinmem_cli.options import Group, add
from pinmem_cli.output import INTERRUPTED, exit_code, show_error, unforeseen
from pinmem_cli.streams import printable, repair_streams
from pinmem_core.errors import ConfigError, PinMemError
from pinmem_core.version import __version__

_DATA, _TRAIN, _USE, _MACHINE = "Data", "Train and score", "Use a model", "This machine"
_UsageError: Any = typer.BadParameter.__mro__[1]
"""Base class of Typer's usage errors, which Typer does not export."""


@contextmanager
def _printable_usage_errors() -> Iterator[None]:
    """Escape the arguments that Typer's own errors repeat."""
    try:
        yield
    except _UsageError as error:
        error.message = printable(error.message)
        raise


class _ErrorBoundary(Group):
    """Turn the core's errors into one sentence and an exit code; tracebacks need --debug."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find commands of two words, such as `eval compare`, where `eval` takes arguments."""
        _require_values(args)
        words = " ".join(args[:2])
        return super().resolve_command(ctx, [words, *args[2:]] if words in self.commands else args)

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse the options before the command's name."""
        with _printable_usage_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command and report its errors."""
        try:
            with _printable_usage_errors():
                return super().invoke(ctx)
        except PinMemError as error:
            if ctx.params.get("debug"):
                raise
            show_error(error)
            raise typer.Exit(exit_code(error)) from None
        except KeyboardInterrupt as stop:
            show_error(PinMemError(str(stop) or "interrupted."))
            raise typer.Exit(INTERRUPTED) from None


def _require_values(args: list[str]) -> None:
    """Raise ConfigError for an empty argument: as a path, it would name the current folder."""
    for before, word in pairwise(args):
        if not word or (word.startswith("--") and word.endswith("=")):
            option = word.removesuffix("=") or before
            what = f"the value of {option}" if option.startswith("-") else "an argument"
            raise ConfigError(f"{what} is empty.", "Is the variable that you gave set?")


app = typer.Typer(
    name="pinmem",
    cls=_ErrorBoundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Domain-generalized semantic segmentation: train on some domains, segment unseen ones.",
    epilog=(
        "Start with 'pinmem train --recipe demo': synthetic data, minutes on a CPU.\n\n"
        "Options that take A,B,... may also be repeated.\n\n"
        "Exit codes: 0 ok, 1 failure, 2 usage or configuration, 3 data missing or invalid, "
        "4 verification failed, 5 environment, 130 interrupted, 143 terminated"
    ),
)
app.add_typer(data.app, name="data", rich_help_panel=_DATA)
add(app, "train", train.train, *train.EXAMPLES, panel=_TRAIN)
add(app, "eval", eval.evaluate, *eval.EXAMPLES, panel=_TRAIN)
add(app, "eval compare", eval.compare, *eval.COMPARE_EXAMPLES, panel=_TRAIN)
add(app, "predict", predict.predict, *predict.EXAMPLES, panel=_USE)
add(app, "serve", serve.serve, *serve.EXAMPLES, panel=_USE)
add(app, "runs", runs.runs, *runs.EXAMPLES, panel=_TRAIN)
add(app, "doctor", doctor.doctor, *doctor.EXAMPLES, panel=_MACHINE)
app.add_typer(export.app, name="export", rich_help_panel=_USE)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an unexpected error is reported in one sentence, too."""
    repair_streams()
    let_idle_threads_sleep()
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        failure = unforeseen(error)
        show_error(failure)
        sys.exit(exit_code(failure))
