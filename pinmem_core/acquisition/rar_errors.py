"""What the complaints of those who read RAR archives mean."""

import re
from pathlib import Path

from pinmem_core.acquisition.members import UnsupportedError, damaged, refused
from pinmem_core.errors import PinMemError


def failure(archive: Path, reader: str, reason: str) -> PinMemError:
    """Return the error that a reader's complaint stands for."""
    text = reason.replace(f" {archive.absolute()}", "").removeprefix(f"{reader}: ").rstrip(".")
    if re.search("encrypt|password", text, re.IGNORECASE):
        return refused(archive, "it is encrypted")
    if re.search("unavailable|supported|open the file as archive", text, re.IGNORECASE):
        return unsupported(archive, f"{reader} says: {text}")
    return damaged(archive, f"{reader} says: {text}")


def unsupported(archive: Path, reason: str) -> UnsupportedError:
    """Return the error for an archive that a reader is not able to read."""
    return UnsupportedError(
        f"{archive} is of a kind that nothing on this machine reads: {reason}.",
        "Install the tool 'unrar', which reads every kind of RAR archive, and try again.",
    )
