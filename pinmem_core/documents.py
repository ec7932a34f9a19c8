"""Reading and writing JSON, and reading JSON lines, TOML and YAML that may be torn, odd or hostile.

Whatever such a file holds, the readers return its content or raise a `DataError` that names the
file. They bound its size and depth before anything is built from it, and refuse what two readers
would understand differently: a key that is given twice, a number that is not finite, an integer of
thousands of digits.
"""

import json
import math
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pinmem_core.errors import DataError
from pinmem_core.events import Listener, Notice
from pinmem_core.yaml_text import YamlTextError, load_yaml

T = TypeVar("T")

LARGEST = 16 * 2**20
"""Bytes of the largest JSON document that is read where the caller sets no limit."""
LARGEST_TEXT = 2**20
"""Bytes of the largest TOML or YAML document, and of the longest of many JSON lines."""
DEEPEST = 64
"""Containers inside one another, at most."""
_BITS = 64
"""Of the longest integer in TOML, whose hexadecimal numbers have no limit of their own."""
_DOTS = 200
"""In a line of TOML: the parser's time grows with the square of a key's parts."""
_DIGITS = 20
"""Of the longest integer: more than 64 bits have."""


def read_text(path: Path, limit: int = LARGEST_TEXT) -> str:
    """Return the UTF-8 text of a regular file.

    Args:
        path: The file.
        limit: Bytes that it may have.

    Raises:
        DataError: The file is missing, no regular file, too large, or not UTF-8.
    """
    try:
        with _regular(path) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise _unreadable(path, f"it is larger than {limit:,} bytes")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _unreadable(path, "it is not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise _unreadable(path, error) from None


def parse_json(text: str, name: object) -> Any:
    """Return what a JSON text holds.

    Args:
        text: The JSON.
        name: What errors call it, e.g. its path.

    Raises:
        DataError: The text is not JSON, is nested too deeply, or holds a key twice or a number
            that is not finite or too long.
    """
    try:
        return _json(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, _reason(error)) from None


def json_text(content: Any, indent: int | None = None) -> str:
    """Return the JSON that stands for `content`, with null for numbers that are not finite.

    Python writes those as NaN and Infinity, which other readers, and `parse_json`, refuse.

    Args:
        content: Texts, numbers, booleans and None in mappings and sequences.
        indent: Spaces of each level; None for a single line.
    """
    return json.dumps(_finite_only(content), indent=indent, allow_nan=False)


def _finite_only(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite_only(value) for key, value in content.items()}
    return [_finite_only(v) for v in content] if isinstance(content, list | tuple) else content


def read_json(path: Path, limit: int = LARGEST) -> Any:
    """Return what a JSON file holds.

    Args:
        path: The file.
        limit: Bytes that it may have.

    Raises:
        DataError: As `read_text` and `parse_json` raise it.
    """
    return parse_json(read_text(path, limit), path)


def read_json_object(path: Path, limit: int = LARGEST) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Args:
        path: The file.
        limit: Bytes that it may have.

    Raises:
        DataError: As `read_json` raises it, or the file holds something else than an object.
    """
    content = read_json(path, limit)
    if not isinstance(content, dict):
        raise _unreadable(path, "it does not hold a JSON object")
    return content


def read_json_lines(
    path: Path, build: Callable[[dict[str, Any]], T], on_event: Listener | None = None
) -> Iterator[T]:
    """Yield what `build` makes of each line of a file of JSON objects; empty lines are skipped.

    Args:
        path: The file. A missing one has no lines.
        build: Called with each line's object. A ValueError, TypeError, KeyError, AttributeError or
            DataError that it raises means that the line is odd.
        on_event: Callback that is sent a warning for each odd line, which is then skipped; only a
            last line that a killed process tore is skipped without one. None refuses odd lines.

    Raises:
        DataError: The file cannot be read, or a line is odd and `on_event` is None.
    """
    try:
        with _regular(path) as file:
            for number, line in enumerate(_lines(file), start=1):
                if not line.strip():
                    continue
                try:
                    yield build(_object(line))
                except _ODD as error:
                    problem = f"{path}, line {number}: {_reason(error)}"
                    if on_event is None:
                        raise DataError(f"{problem}.") from None
                    if line.endswith(b"\n") or len(line) == LARGEST_TEXT:
                        on_event(Notice(f"{problem}; the line is skipped", warning=True))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(path, error) from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises:
        DataError: The file cannot be read, is not TOML, is nested too deeply, or holds a number
            that is not finite or too long.
    """
    try:
        text = read_text(path)
        if any(line.count(".") > _DOTS for line in text.splitlines()):
            raise ValueError(f"a line holds more than {_DOTS} dots")
        content = tomllib.loads(text)
        _require_shallow(content)
        _require_short_numbers(content)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, _reason(error)) from None
    return content


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        DataError: The file cannot be read, is not YAML, or breaks a limit of `load_yaml`.
    """
    try:
        return load_yaml(read_text(path))
    except YamlTextError as error:
        place = f"line {error.line}: " if error.line else ""
        raise _unreadable(path, f"{place}{_reason(error)}") from None


_ODD = (ValueError, TypeError, KeyError, AttributeError, RecursionError, DataError)


def _regular(path: Path) -> BinaryIO:
    """Open a regular file: reading a pipe could wait forever, a device never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is not a regular file")
    return path.open("rb")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; of one that is too long, its beginning."""
    while line := file.readline(LARGEST_TEXT):
        rest = line
        while len(rest) == LARGEST_TEXT and not rest.endswith(b"\n"):
            rest = file.readline(LARGEST_TEXT)
        yield line


def _object(line: bytes) -> dict[str, Any]:
    if len(line) == LARGEST_TEXT:
        raise ValueError(f"the line is longer than {LARGEST_TEXT:,} bytes")
    content = _json(line.decode())
    if not isinstance(content, dict):
        raise TypeError("this is not a JSON object")
    return content


def _json(text: str) -> Any:
    content = json.loads(
        text,
        parse_int=_integer,
        parse_float=_finite,
        parse_constant=_finite,
        object_pairs_hook=_unique,
    )
    _require_shallow(content)
    return content


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {text[:30]}, which is not finite")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it holds the key {twice[:60]!r} twice")
    return content


def _require_shallow(content: Any) -> None:
    """Raise ValueError where containers nest deeper than `DEEPEST`."""
    level = [content]
    for _ in range(DEEPEST):
        level = [i for outer in level for i in _members(outer) if isinstance(i, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def _require_short_numbers(content: Any) -> None:
    """Raise ValueError where a number has a value that JSON could not hold."""
    for value in _members(content):
        if isinstance(value, float):
            _finite(str(value))
        elif isinstance(value, int) and value.bit_length() > _BITS:
            raise ValueError(f"it holds a number of more than {_BITS} bits")
        _require_short_numbers(value)


def _members(content: Any) -> Iterable[Any]:
    if isinstance(content, dict):
        return content.values()
    return content if isinstance(content, list) else ()


def _unreadable(name: object, reason: object) -> DataError:
    if isinstance(reason, OSError):
        missing = isinstance(reason, FileNotFoundError)
        reason = "there is no such file" if missing else reason.strerror or reason
    return DataError(f"{name} cannot be read: {reason}.")


def _reason(error: BaseException) -> str:
    """Return what is wrong in a line, without a final stop."""
    match error:
        case RecursionError():
            return f"it is nested deeper than {DEEPEST} levels"
        case KeyError():
            return f"it lacks the key {error}"
        case UnicodeDecodeError():
            return "it is not UTF-8 text"
        case DataError():
            text = error.message
        case _:
            text = str(error)
    return " ".join(text.split())[:300].rstrip(".")
