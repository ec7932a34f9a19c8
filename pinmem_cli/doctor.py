"""`pinmem doctor`: check the machine, and print what a bug report needs."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from pinmem_cli.options import Json, Quiet, option
from pinmem_cli.output import VERIFICATION_FAILED, Output, fields, size

EXAMPLES = ("pinmem doctor", "pinmem doctor --network", "pinmem doctor --json > doctor.json")


def doctor(
    network: Annotated[
        bool, option("Also ask the Hub and the sites of the datasets for an answer.", "--network")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check versions, devices, folders, datasets and locks; exit with code 4 if there is a problem.

    The output contains no secrets, and names neither the user nor the machine: paste it into a bug
    report.
    """
    from pinmem_core.doctor import CHECKS, check_network, diagnose

    output = Output(as_json=json, quiet=quiet)
    with output.listening() as listener:
        chosen = {**CHECKS, "network": check_network} if network else CHECKS
        diagnosis = diagnose(chosen, listener)
    rows = [(name, _lines(name, values)) for name, values in diagnosis.sections.items()]
    problems = [f"finding: {each.message} {each.fix}" for each in diagnosis.findings]
    output.result(diagnosis.as_json(), fields(rows), *(problems or ["nothing wrong"]))
    if problems:
        raise typer.Exit(VERIFICATION_FAILED)
    output.next_step("pinmem runs")


def _lines(name: str, values: Any) -> list[str]:
    """Return the values of a check as lines."""
    if not values:
        return ["none"]
    if name == "extras":
        return [_extra(extra, **state) for extra, state in values.items()]
    if any(isinstance(value, Mapping | list) for value in values.values()):
        return [f"{key}: {_words(key, value)}" for key, value in values.items()]
    return [_words(name, values)]


def _extra(name: str, adds: str, state: str, packages: Mapping[str, Any]) -> str:
    detail = f"pip install 'pinmem[{name}]'" if state == "missing" else _words(name, packages)
    return f"{name} ({adds}): {state}, {detail}"


def _words(name: str, value: Any) -> str:
    """Return a value as text."""
    if isinstance(value, Mapping):
        pairs = value.items()
        return ", ".join(f"{key.removesuffix('_bytes')} {_words(key, of)}" for key, of in pairs)
    if isinstance(value, list):
        return "; ".join(_words(name, entry) for entry in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return size(value) if name.endswith("_bytes") else str(value)
