"""Independent readers: as short as the formats allow, and strict."""

import json
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fuzz.cases import WrongError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4))
_ADAM7 = (*_PASSES, (1, 0, 2, 2), (0, 1, 1, 2))


class DamageError(ValueError):
    """A file that the format's specification does not allow."""


class Png(NamedTuple):
    """The samples of a PNG as they are stored: (H, W) or (H, W, C)."""

    samples: NDArray[np.uint16]
    kind: int
    depth: int
    chunks: dict[bytes, bytes]


def read_png(data: bytes) -> Png:
    """Return what a PNG stores.

    Raises:
        DamageError: A checksum is wrong, something is missing, or a value is not allowed.
    """
    chunks, stream = _chunks(data)
    width, height, depth, kind, method, filters, interlaced = _header(chunks)
    if (method, filters) != (0, 0) or interlaced > 1 or not width or not height:
        raise DamageError("header")
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    channels = _CHANNELS[kind]
    image = np.zeros((height, width, channels), np.uint16)
    sizes = [(-(-(height - y) // dy), -(-(width - x) // dx)) for x, y, dx, dy in passes]
    needed = sum(
        rows * (1 + (columns * channels * depth + 7) // 8)
        for rows, columns in sizes
        if rows > 0 and columns > 0
    )
    if needed > 1 << 22:
        raise DamageError("too large for a test")
    pixels = _inflated(stream, needed)
    at = 0
    for (x, y, dx, dy), (rows, columns) in zip(passes, sizes, strict=True):
        if rows <= 0 or columns <= 0:
            continue
        length = 1 + (columns * channels * depth + 7) // 8
        part = pixels[at : at + rows * length]
        at += rows * length
        image[y::dy, x::dx] = _unpacked(part, rows, columns, channels, depth)
    return Png(image[..., 0] if channels == 1 else image, kind, depth, chunks)


def _header(chunks: dict[bytes, bytes]) -> tuple[int, ...]:
    header = chunks.get(b"IHDR", b"")
    if len(header) != 13:
        raise DamageError("header")
    fields = struct.unpack(">IIBBBBB", header)
    if fields[2] not in _DEPTHS.get(fields[3], ()):
        raise DamageError("depth")
    return fields


def _chunks(data: bytes) -> tuple[dict[bytes, bytes], bytes]:
    if data[:8] != _SIGNATURE:
        raise DamageError("signature")
    at, found, stream = 8, {}, b""
    while True:
        if at + 12 > len(data):
            raise DamageError("end")
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        checksum = data[at + 8 + length : at + 12 + length]
        if len(checksum) < 4 or struct.unpack(">I", checksum)[0] != zlib.crc32(kind + body):
            raise DamageError("checksum")
        if kind == b"IEND":
            return found, stream
        if kind == b"IDAT":
            stream += body
        elif kind == b"PLTE" and kind in found:
            raise DamageError("palettes")
        else:
            found.setdefault(kind, body)
        at += 12 + length


def _inflated(stream: bytes, needed: int) -> bytes:
    reader = zlib.decompressobj()
    try:
        pixels = reader.decompress(stream, needed + 1)
    except zlib.error as error:
        raise DamageError("stream") from error
    if len(pixels) < needed:
        raise DamageError("stream")
    return pixels


def _unpacked(
    data: bytes, rows: int, columns: int, channels: int, depth: int
) -> NDArray[np.uint16]:
    step = max(1, channels * depth // 8)
    length = len(data) // rows
    before = bytearray(length - 1)
    lines = []
    for start in range(0, len(data), length):
        line = _unfiltered(data[start], bytearray(data[start + 1 : start + length]), before, step)
        lines.append(line)
        before = line
    packed = np.frombuffer(b"".join(lines), np.uint8).reshape(rows, -1)
    if depth == 16:
        values = packed.reshape(-1).view(">u2").astype(np.uint16)
    elif depth == 8:
        values = packed.astype(np.uint16)
    else:
        bits = np.unpackbits(packed, axis=1)
        bits = bits[:, : bits.shape[1] // depth * depth].reshape(rows, -1, depth)
        values = (bits @ (1 << np.arange(depth)[::-1])).astype(np.uint16)
        values = values[:, : columns * channels]
    return values.reshape(rows, columns, channels)


def _unfiltered(kind: int, line: bytearray, above: bytearray, step: int) -> bytearray:
    if kind > 4:
        raise DamageError("filter")
    for at in range(len(line) if kind else 0):
        left = line[at - step] if at >= step else 0
        corner = above[at - step] if at >= step else 0
        up = above[at]
        guess = (0, left, up, (left + up) // 2, 0)[kind]
        if kind == 4:
            goal = left + up - corner
            guess = min((left, up, corner), key=lambda value: abs(goal - value))
        line[at] = (line[at] + guess) & 0xFF
    return line


def shown(png: Png) -> NDArray[np.uint8] | None:
    """Return the (H, W, 3) RGB that a PNG shows on black; None where this reader does not know."""
    samples, kind, depth, chunks = png
    if b"tRNS" in chunks or b"acTL" in chunks or b"eXIf" in chunks:
        return None
    if kind == 3:
        colors = np.zeros((256, 3), np.uint8)
        given = np.frombuffer(chunks.get(b"PLTE", b""), np.uint8)
        if len(given) % 3 or not len(given) or samples.max() >= len(given) // 3:
            return None
        colors[: len(given) // 3] = given.reshape(-1, 3)
        return colors[samples]
    values = samples >> 8 if depth == 16 else samples * 255 // (2**depth - 1)
    if kind in (4, 6):
        opacity = values[..., -1:].astype(np.float64) / 255
        values = (values[..., :-1] * opacity).round()
    values = values if values.ndim == 3 else values[..., None]
    return np.broadcast_to(values, (*values.shape[:2], 3)).astype(np.uint8)


def strict_json(text: bytes | str) -> Any:
    """Return what a JSON text holds; a ValueError where two readers might differ about it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise DamageError("a key is given twice")
        return dict(pairs)

    def finite(token: str) -> float:
        if not np.isfinite(float(token)):
            raise DamageError("not finite")
        return float(token)

    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise DamageError("depth") from None


def json_of_accepted(text: bytes | str) -> Any:
    """Return what a JSON text that pinmem accepted holds; a WrongError if it is not strict JSON."""
    try:
        return strict_json(text)
    except ValueError as error:
        raise WrongError(f"it was accepted, but is no strict JSON: {error}") from error


def read_safetensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the tensors of a safetensors file.

    Raises:
        ValueError: It is damaged.
    """
    kinds = {
        "F32": np.float32,
        "F16": np.float16,
        "I64": np.int64,
        "U8": np.uint8,
        "F64": np.float64,
    }
    length = int.from_bytes(data[:8], "little")
    header = strict_json(data[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        part = data[8 + length + start : 8 + length + end]
        found[name] = np.frombuffer(part, kinds[entry["dtype"]]).reshape(entry["shape"])
    return found
