"""Damaging bytes, texts and JSON values."""

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def mutated_bytes(rng: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return `data` with one to four kinds of damage; parts of `others` may be spliced in."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_BYTE_MUTATORS)(rng, data)
        if others and rng.random() < 0.05:
            other = rng.choice(others)
            data = data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]
    return data


def _flip(rng: Random, data: bytes) -> bytes:
    place = rng.randrange(len(data)) if data else 0
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _set(rng: Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([rng.choice(_NUMBERS) & 0xFF]) + data[place + 1 :]


def _number(rng: Random, data: bytes) -> bytes:
    size = rng.choice((2, 4, 8))
    place = rng.randrange(max(1, len(data) - size))
    number = rng.choice(_NUMBERS) & (1 << 8 * size) - 1
    return (
        data[:place] + number.to_bytes(size, rng.choice(("big", "little"))) + data[place + size :]
    )


def _cut(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _cut_end(rng: Random, data: bytes) -> bytes:
    return data[: max(0, len(data) - rng.randint(1, 40))]


def _remove(rng: Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[place + rng.randint(1, 32) :]


def _repeat(rng: Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    part = data[place : place + rng.randint(1, 64)]
    return data[:place] + part * rng.randint(2, 4) + data[place + len(part) :]


def _insert(rng: Random, data: bytes) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + rng.randbytes(rng.randint(1, 16)) + data[place:]


def _append(rng: Random, data: bytes) -> bytes:
    return data + rng.choice((b"\0" * 512, rng.randbytes(40), data))


def _of_some(mutator: Callable[[Random, bytes], bytes]) -> Callable[[Random, bytes], bytes]:
    return lambda rng, data: mutator(rng, data) if data else b"\0"


_BYTE_MUTATORS = tuple(
    map(
        _of_some,
        (_flip, _flip, _set, _number, _number, _cut, _cut_end, _remove, _repeat, _insert, _append),
    )
)

ODD_TEXTS = (
    *("", " ", ".", "..", "../../x", "/etc/passwd", "a/b", "a\\b", "~nouser", "-", "--help", "*"),
    *(
        "\x1b[31m",
        "\0",
        "\n",
        "\u202e",
        "é",
        "e\u0301",
        "\U0001f697",
        ":car:",
        "{name}",
        "**",
        "%s",
    ),
    *("none", "null", "true", "yes", "NaN", "inf", "-inf", "1e999", "0x10", "1_000", "9" * 30),
    *(
        "9" * 5000,
        "x" * 300,
        "x" * 5000,
        "[" * 500,
        "{" * 500,
        "!!python/name:os.system",
        "&a [*a]",
    ),
    *(
        "2001-01-01",
        "12:30:05",
        "1:1",
        "<<",
        "=",
        "+",
        ",",
        ":",
        "@",
        "#",
        "'",
        '"',
        "|",
        ">-",
        "\t",
    ),
)
_RAW = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 25, "9" * 5000, "[" * 3000 + "]" * 3000)
_MARK = "\ue000"
"""Around the number of a raw text that no JSON value stands for."""
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 2**31, 2**63, -(2**63), 0.5, -0.0, 1e308, 1e-320),
    *([], {}, [[]], [None], {"": None}, [1, "a"], [0] * 1000, "\ud800"),
    *(f"{_MARK}{number}{_MARK}" for number in range(len(_RAW))),
)


def mutated_json(rng: Random, value: Any) -> bytes:
    """Return a JSON text of `value` with one to three nodes changed, or its bytes damaged."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _mutated_value(rng, value)
    text = json.dumps(value, indent=rng.choice((None, None, 2)))
    for number, raw in enumerate(_RAW):
        text = text.replace(json.dumps(f"{_MARK}{number}{_MARK}"), raw)
    if rng.random() < 0.08 and isinstance(value, dict) and value:
        key = rng.choice([*value])
        text = text.replace("{", "{" + json.dumps(key) + ": 1, ", 1)
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        data = mutated_bytes(rng, data)
    return b"\xef\xbb\xbf" + data if rng.random() < 0.02 else data


def _mutated_value(rng: Random, value: Any) -> Any:
    places = [*_places(value)]
    if not places or rng.random() < 0.03:
        return _odd_value(rng, value)
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0 | 1:
            holder[key] = _odd_value(rng, holder[key])
        case 2:
            del holder[key]
        case 3 if isinstance(holder, dict):
            holder[rng.choice((*ODD_TEXTS, key.upper(), f"{key} ", "unknown"))] = holder[key]
        case 3:
            holder.insert(key, copy.deepcopy(holder[key]))
        case 4:
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other.get(place) if isinstance(other, dict) else other)
        case _:
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
    return value


def _odd_value(rng: Random, value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((-value, value + 1, value * 10**6, float(value), str(value), value / 3))
    if isinstance(value, str) and rng.random() < 0.5:
        return rng.choice((value + "\0", value * 2, value[:-1], value.upper(), f"../{value}"))
    return rng.choice((*_ODD_VALUES, *ODD_TEXTS))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) in a JSON value."""
    if not isinstance(value, dict | list):
        return []
    found, todo = [], [value]
    while todo:
        holder = todo.pop()
        keys = [*holder] if isinstance(holder, dict) else [*range(len(holder))]
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                todo.append(holder[key])
    return found


def mutated_lines(rng: Random, text: str, more: Sequence[str] = ()) -> bytes:
    """Return a text with lines and words of it changed, or its bytes damaged."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(lines))
        match rng.randrange(8):
            case 0:
                del lines[place]
                lines = lines or [""]
            case 1:
                lines.insert(rng.randrange(len(lines)), lines[place])
            case 2:
                lines[place] = "  " + lines[place] if rng.random() < 0.5 else lines[place].lstrip()
            case 3:
                other = rng.randrange(len(lines))
                lines[place], lines[other] = lines[other], lines[place]
            case 4:
                lines.insert(place, rng.choice((*more, *ODD_TEXTS)))
            case _:
                lines[place] = _mutated_words(rng, lines[place])
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, data) if rng.random() < 0.15 else data


def _mutated_words(rng: Random, line: str) -> str:
    head, separator, tail = line.partition(rng.choice((": ", " = ", ", ", " ", "=", "+", "@")))
    odd = rng.choice((*ODD_TEXTS, tail * 2, tail[: len(tail) // 2]))
    return rng.choice((f"{head}{separator}{odd}", f"{odd}{separator}{tail}", f"{head}{tail}"))


def mutated_text(rng: Random, text: str) -> str:
    """Return a short text, such as an option's value, with parts changed."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        middle = rng.choice((*ODD_TEXTS, "", text[place:end] * 2, chr(rng.randrange(32, 0x250))))
        text = text[:place] + middle + text[end:]
    return text
