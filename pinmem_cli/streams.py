"""Standard streams that are closed or of other encodings, and text that is safe to print."""

import os
import re
import sys

from pinmem_core.addresses import redact_text

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, which a terminal obeys
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line separators, and changes of direction
    "\ud800-\udfff]"  # parts of names that are not UTF-8
)


def printable(text: str) -> str:
    r"""Return `text` as one line without control characters.

    File names and the texts of web servers and cards come from outside. Control characters, also
    newlines, become escapes such as `\x1b` and `\n`; passwords in URLs are hidden.
    """
    return _UNSAFE.sub(lambda match: _escape(match[0]), redact_text(text))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name, as Python keeps it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def repair_streams() -> None:
    """Make the standard streams usable, whatever the parent process did to them.

    Closed streams are replaced by empty ones; otherwise, the next opened file takes their number,
    and prints of libraries go into it. Characters that an encoding lacks are escaped.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
