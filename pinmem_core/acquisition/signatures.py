"""What a file is by its first bytes, whatever its name says."""

import re
from pathlib import Path

from pinmem_core.errors import DataError

ZIP = "a zip archive"
TAR = "a tar archive"
GZIP = "a gzip archive"
BZIP2 = "a bzip2 archive"
XZ = "an xz archive"
RAR = "a RAR archive"

_SIGNATURES = {
    TAR: rb".{257}ustar",
    ZIP: rb"PK(\x03\x04|\x05\x06|\x07\x08)",
    GZIP: rb"\x1f\x8b",
    RAR: rb"Rar!\x1a\x07",
    "a 7z archive": rb"7z\xbc\xaf\x27\x1c",
    BZIP2: rb"BZh",
    XZ: rb"\xfd7zXZ",
    "a web page": rb"(\xef\xbb\xbf)?\s*<",
}
_MAY_BEGIN_OTHERWISE = (ZIP, TAR)  # behind a program that unpacks them; before there was "ustar"


def require_signature(path: Path, kind: str) -> None:
    """Refuse a file that is something else than its name promises.

    Args:
        path: The file.
        kind: What it should be: one of this module's constants.

    Raises:
        DataError: It cannot be read, is empty, or looks like something else.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from error
    if not head:
        raise DataError(f"{path} is empty.", "Fetch it again.")
    found = _look(head)
    if found == kind or (found is None and kind in _MAY_BEGIN_OTHERWISE):
        return
    beginning = head.lstrip().split(b"\n")[0][:40].decode("ascii", "replace")
    raise DataError(
        f"{path} is not {kind}: it looks like {found or 'something else'} "
        f"(it starts with {beginning!r}).",
        "Fetch it again; where the site gave a page instead, log in or accept its terms first.",
    )


def _look(head: bytes) -> str | None:
    fits = (kind for kind, pattern in _SIGNATURES.items() if re.match(pattern, head, re.DOTALL))
    return next(fits, None)
