"""What may go wrong on this machine, for `pinmem doctor` and for bug reports.

A broken library must not stop the checks that do not need it. Each check therefore imports what it
needs when it runs, and a check that fails is a finding.
"""

import getpass
import platform
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pinmem_core.addresses import redact_values
from pinmem_core.doctor.contents import check_datasets, check_locks, check_runs, check_settings
from pinmem_core.doctor.findings import Finding, Section, first_line
from pinmem_core.doctor.libraries import check_extras, check_libraries
from pinmem_core.doctor.machine import check_devices, check_folders, check_system
from pinmem_core.doctor.network import check_network
from pinmem_core.errors import PinMemError
from pinmem_core.events import Listener, Progress, ignore

__all__ = ["CHECKS", "Diagnosis", "Finding", "Section", "anonymous", "check_network", "diagnose"]

CHECKS: Mapping[str, Callable[[], Section]] = {
    "system": check_system,
    "libraries": check_libraries,
    "extras": check_extras,
    "devices": check_devices,
    "folders": check_folders,
    "datasets": check_datasets,
    "runs": check_runs,
    "locks": check_locks,
    "settings": check_settings,
}
"""The checks that need no network."""


@dataclass(frozen=True)
class Diagnosis:
    """The results of all checks, without secrets.

    Attributes:
        sections: JSON-like values by the name of the check; None for a check that failed.
        findings: All problems.
    """

    sections: Mapping[str, Any]
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the diagnosis as a JSON object."""
        return {**self.sections, "findings": [asdict(finding) for finding in self.findings]}


def diagnose(
    checks: Mapping[str, Callable[[], Section]] | None = None, on_event: Listener = ignore
) -> Diagnosis:
    """Run the checks, and remove names and secrets from what they return.

    Args:
        checks: Checks by name; None for `CHECKS`.
        on_event: Callback for progress events.
    """
    checks = checks or CHECKS
    sections = {}
    for done, (name, check) in enumerate(checks.items(), start=1):
        sections[name] = _run(name, check)
        on_event(Progress("checking", done, len(checks)))
    findings = dict.fromkeys(each for section in sections.values() for each in section.findings)
    return Diagnosis(
        anonymous({name: section.values for name, section in sections.items()}),
        tuple(Finding(*anonymous([each.message, each.fix])) for each in findings),
    )


def _run(name: str, check: Callable[[], Section]) -> Section:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check()
    except PinMemError as error:
        return Section(None, [Finding(error.message, error.hint or "Check the path.")])
    except Exception as error:
        text = f"the check '{name}' failed: {first_line(error)}."
        return Section(None, [Finding(text, "Repair the other findings first; else report it.")])


def anonymous(value: Any) -> Any:
    """Return a JSON-like `value` without names and secrets.

    URLs lose their secrets (`redact_url`); the user's home folder becomes `~`, and the names of
    user and machine in paths become `USER` and `HOST`.
    """
    if isinstance(value, Mapping):
        return {anonymous(key): anonymous(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [anonymous(entry) for entry in value]
    if not isinstance(value, str):
        return value
    text = str(redact_values(value))
    with suppress(RuntimeError):  # a user without a home folder
        for folder in (Path.home(), Path.home().resolve()):
            if folder != Path(folder.anchor):
                text = re.sub(rf"{re.escape(str(folder))}(?![\w.-])", "~", text)
    names = {"HOST": platform.node()}
    with suppress(OSError, KeyError, ImportError):  # a user without a name
        names["USER"] = getpass.getuser()
    for word, name in names.items():
        if name:
            text = re.sub(rf"(?<=[/\\]){re.escape(name)}(?![\w-])", word, text)
    return text
