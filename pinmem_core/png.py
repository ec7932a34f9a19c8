"""Check PNG files and encode labels as PNG.

Pillow ignores checksums and fills missing rows with black. ISA-L is used because it decompresses
faster than zlib.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
_INTERLACED = (*_PASSES, (0, 1, 1, 2))
"""Adam7 passes: first column, first row, column step, row step."""
_BLOCK = 1 << 18
"""Maximum number of bytes in memory, for any claimed size."""
_LEVEL = 1
"""Fastest compression level of ISA-L; labels compress well at any level."""


def check_png(file: BinaryIO, *, pixels: bool = True) -> None:
    """Check every checksum of a PNG and that its pixel stream is complete.

    Args:
        file: The file, which must start with the PNG signature.
        pixels: Whether to decompress the pixel stream.

    Raises:
        ValueError: The file is damaged.
        isal_zlib.error: The pixel stream is damaged.
    """
    file.seek(len(_SIGNATURE))
    stream: _PixelStream | None = None
    kind = before = b""
    palettes = 0
    while kind != b"IEND":
        before = kind
        length, kind = struct.unpack(">I4s", _read(file, 8))
        if (kind == b"IHDR") != (stream is None):
            raise ValueError("its header is not at its beginning")
        palettes += kind == b"PLTE"
        if palettes > 1:  # decoders differ in which one they use
            raise ValueError("it has two palettes")
        if stream and stream.begun and kind == b"IDAT" != before:
            raise ValueError("its pixel stream is interrupted")
        checksum = isal_zlib.crc32(kind)
        for block in _blocks(file, length):
            checksum = isal_zlib.crc32(block, checksum)
            if stream is None:
                stream = _PixelStream(block)
            elif kind == b"IDAT" and pixels:
                stream.take(block)
        if struct.unpack(">I", _read(file, 4)) != (checksum,):
            raise ValueError("one of its checksums is wrong")
    if pixels and not (stream and stream.complete):
        raise ValueError("its pixel stream ends early")


class _PixelStream:
    """Count the pixels in the compressed stream of a PNG; `begun` after its first bytes."""

    def __init__(self, header: bytes) -> None:
        width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header)
        bits = depth * _CHANNELS[kind]
        passes = _INTERLACED if interlaced else ((0, 0, 1, 1),)
        sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in passes]
        self._missing = sum(
            rows * (1 + (columns * bits + 7) // 8)
            for columns, rows in sizes
            if columns > 0 and rows > 0
        )
        self._decompressor = isal_zlib.decompressobj()
        self.begun = False

    def take(self, data: bytes) -> None:
        """Decompress the next bytes; bytes after the last pixel are ignored."""
        self.begun = True
        size = _BLOCK
        # After a full block, the decompressor may hold more output without more input.
        while (data or size == _BLOCK) and self._missing >= 0 and not self._decompressor.eof:
            size = len(self._decompressor.decompress(data, _BLOCK))
            self._missing -= size
            data = self._decompressor.unconsumed_tail

    @property
    def complete(self) -> bool:
        """Whether all pixels and their checksum were read."""
        return self._missing < 0 or (self._missing == 0 and self._decompressor.eof)


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("the file is truncated")
    return data


def _blocks(file: BinaryIO, length: int) -> Iterator[bytes]:
    for start in range(0, length, _BLOCK):
        yield _read(file, min(_BLOCK, length - start))


def label_png(train_ids: NDArray[np.uint8]) -> bytes:
    """Return trainIds (H, W) as an 8-bit grey PNG without filters."""
    height, width = train_ids.shape
    rows = np.zeros((height, 1 + width), np.uint8)
    rows[:, 1:] = train_ids
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", isal_zlib.compress(rows.data, _LEVEL)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(*part) for part in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = isal_zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
