"""Strict readers for JSON, JSON Lines, TOML and YAML files, and a writer for JSON.

A reader returns the content of a file or raises a `DataError` that names the file. Size and depth
are limited. Duplicate keys, non-finite numbers and integers beyond 64 bits are errors.
"""

import json
import math
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import ValidationError

from pinmem_core.errors import DataError
from pinmem_core.events import Listener, Notice
from pinmem_core.yaml_text import YamlTextError, load_yaml

T = TypeVar("T")

MAX_BYTES = 16 * 2**20
"""Default size limit of a JSON file in bytes."""
MAX_TEXT_BYTES = 2**20
"""Size limit of a TOML or YAML file and of a line of a JSON Lines file in bytes."""
MAX_DEPTH = 64
"""Maximum number of nested containers."""
_MAX_DIGITS = 20  # in JSON; 64 bits fit into 20 digits
_MAX_BITS = 64  # in TOML, where hexadecimal integers have no limit
_MAX_DOTS = 200  # in a line of TOML: the parser is quadratic in the number of parts of a key
_LINE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RecursionError, DataError)


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a UTF-8 file.

    Args:
        path: The file.
        limit: Maximum size in bytes.

    Raises:
        DataError: The file is missing, not a regular file, too large, or not UTF-8.
    """
    try:
        with _open_regular(path) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise _unreadable(path, f"it is larger than {limit:,} bytes")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _unreadable(path, "it is not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise _unreadable(path, error) from None


def parse_json(text: str, name: object) -> Any:
    """Return the value of a JSON text.

    Args:
        text: JSON text.
        name: Name of the text in error messages, e.g. its path.

    Raises:
        DataError: The text is not JSON, is nested too deeply, repeats a key, or holds a number that
            is not finite or too long.
    """
    try:
        return _parse_json(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(name, _reason(error)) from None


def json_text(content: Any, indent: int | None = None) -> str:
    """Return `content` as JSON. Non-finite numbers become null, because JSON has none.

    Args:
        content: Strings, numbers, booleans and None in mappings and sequences.
        indent: Spaces per level; None for a single line.
    """
    return json.dumps(_finite_only(content), indent=indent, allow_nan=False)


def json_bytes(content: Any) -> bytes:
    """Return the content of a JSON file that holds `content`, as in `json_text`."""
    return f"{json_text(content, indent=2)}\n".encode()


def _finite_only(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite_only(value) for key, value in content.items()}
    return [_finite_only(v) for v in content] if isinstance(content, list | tuple) else content


def read_json(path: Path, limit: int = MAX_BYTES) -> Any:
    """Return the value of a JSON file of at most `limit` bytes.

    Raises:
        DataError: As for `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, limit), path)


def read_json_object(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Return the object of a JSON file of at most `limit` bytes.

    Raises:
        DataError: As for `read_json`, or the value is not an object.
    """
    content = read_json(path, limit)
    if not isinstance(content, dict):
        raise _unreadable(path, "it does not hold a JSON object")
    return content


def read_json_lines(
    path: Path, build: Callable[[dict[str, Any]], T], on_event: Listener | None = None
) -> Iterator[T]:
    """Yield `build(object)` for each line of a JSON Lines file. Empty lines are skipped.

    Args:
        path: The file. A missing file has no lines.
        build: Function of a line's object. A ValueError, TypeError, KeyError, AttributeError or
            DataError that it raises marks the line as invalid.
        on_event: Callback for a warning per invalid line, which is skipped. An incomplete last line
            is skipped silently: a killed process leaves one. None makes invalid lines errors.

    Raises:
        DataError: The file cannot be read, or a line is invalid and `on_event` is None.
    """
    try:
        with _open_regular(path) as file:
            for number, line in enumerate(_lines(file), start=1):
                if not line.strip():
                    continue
                try:
                    yield build(_parse_line(line))
                except _LINE_ERRORS as error:
                    problem = f"{path}, line {number}: {_reason(error)}"
                    if on_event is None:
                        raise DataError(f"{problem}.") from None
                    if line.endswith(b"\n") or len(line) == MAX_TEXT_BYTES:
                        on_event(Notice(f"{problem}; the line is skipped", warning=True))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(path, error) from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        DataError: The file cannot be read, is not TOML, is nested too deeply, or holds a number
            that is not finite or too long.
    """
    text = read_text(path)
    try:
        if any(line.count(".") > _MAX_DOTS for line in text.splitlines()):
            raise ValueError(f"a line holds more than {_MAX_DOTS} dots")
        content = tomllib.loads(text)
        _check_depth(content)
        _check_numbers(content)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, _reason(error)) from None
    return content


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        DataError: The file cannot be read, is not YAML, or exceeds a limit of `load_yaml`.
    """
    try:
        return load_yaml(read_text(path))
    except YamlTextError as error:
        place = f"line {error.line}: " if error.line else ""
        raise _unreadable(path, f"{place}{_reason(error)}") from None


def validation_message(error: ValidationError) -> str:
    """Return the first problem of a pydantic error as "key: reason"."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    return f"{key}: {reason}" if key else reason


def _open_regular(path: Path) -> BinaryIO:
    """Open a regular file. Reading a pipe could block forever, and a device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is not a regular file")
    return path.open("rb")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file, truncated to `MAX_TEXT_BYTES`."""
    while line := file.readline(MAX_TEXT_BYTES):
        rest = line
        while len(rest) == MAX_TEXT_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_TEXT_BYTES)
        yield line


def _parse_line(line: bytes) -> dict[str, Any]:
    if len(line) == MAX_TEXT_BYTES:
        raise ValueError(f"the line is longer than {MAX_TEXT_BYTES:,} bytes")
    content = _parse_json(line.decode())
    if not isinstance(content, dict):
        raise TypeError("this is not a JSON object")
    return content


def _parse_json(text: str) -> Any:
    content = json.loads(
        text,
        parse_int=_integer,
        parse_float=_finite,
        parse_constant=_finite,
        object_pairs_hook=_unique,
    )
    _check_depth(content)
    return content


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
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


def _check_depth(content: Any) -> None:
    """Raise ValueError if containers nest deeper than `MAX_DEPTH`."""
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [i for outer in level for i in _members(outer) if isinstance(i, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _check_numbers(content: Any) -> None:
    """Raise ValueError if a number is not finite or does not fit into 64 bits."""
    for value in _members(content):
        if isinstance(value, float):
            _finite(str(value))
        elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise ValueError(f"it holds a number of more than {_MAX_BITS} bits")
        _check_numbers(value)


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
    """Return the cause of an error in one line, without a final period."""
    match error:
        case RecursionError():
            return f"it is nested deeper than {MAX_DEPTH} levels"
        case KeyError():
            return f"the key {error} is missing"
        case UnicodeDecodeError():
            return "it is not UTF-8 text"
        case DataError():
            text = error.message
        case _:
            text = str(error)
    return " ".join(text.split())[:300].rstrip(".")
