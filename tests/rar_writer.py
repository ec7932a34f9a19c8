"""Writes RAR archives of files that are stored without compression, as broken as a test asks."""

import struct
import zlib
from dataclasses import dataclass

SIGNATURE_4 = b"Rar!\x1a\x07\x00"
SIGNATURE_5 = b"Rar!\x1a\x07\x01\x00"
VOLUME, HIDDEN_NAMES = 0x1, 0x80  # flags of format 4's main header
LOCKED, SOLID = 0x4, 0x10  # flags of its file headers
LOCK_RECORD = b"\x24\x01\x00\x00\x0f" + bytes(
    32
)  # of format 5: its length, kind 1, AES, rounds, salt, IV
NO_CRC = -1


def link_record(kind: int, target: str) -> bytes:
    """Kind 1 is a symbolic link, 4 a hard link, 5 a copy of another member; of format 5."""
    body = number(5) + number(kind) + number(0) + number(len(target)) + target.encode()
    return number(len(body)) + body


@dataclass(frozen=True)
class Entry:
    name: str
    data: bytes = b""
    mode: int = 0o100644
    flags: int = 0
    size: int | None = None
    """What the header says, where it is not the truth."""
    packed: int | None = None
    """The same for how many bytes of it follow; of format 5."""
    crc: int | None = None
    extra: bytes = b""
    """Records of format 5."""


def rar4(*entries: Entry, main_flags: int = 0, end: bool = True) -> bytes:
    blocks = [SIGNATURE_4, _block_4(0x73, main_flags, bytes(6))]
    blocks += [_file_4(entry) for entry in entries]
    return b"".join([*blocks, _block_4(0x7B, 0x4000, b"")] if end else blocks)


def _file_4(entry: Entry) -> bytes:
    name = entry.name.encode()
    size = len(entry.data) if entry.size is None else entry.size
    fields = struct.pack(
        "<IIBIIBBHI",
        *(len(entry.data), size & 0xFFFFFFFF, 3, _crc(entry)),  # 3: made on Unix
        *(0x4A210000, 20, 0x30, len(name), entry.mode),  # 0x30: stored
    )
    flags = 0x8000 | entry.flags | (0xE0 if entry.mode & 0o040000 == 0o040000 else 0)
    if size >> 32:
        flags |= 0x100
        fields += struct.pack("<II", 0, size >> 32)
    return _block_4(0x74, flags, fields + name) + entry.data


def _block_4(kind: int, flags: int, body: bytes) -> bytes:
    header = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
    return struct.pack("<H", zlib.crc32(header) & 0xFFFF) + header


def rar5(*entries: Entry, main_flags: int = 0, hidden_names: bool = False) -> bytes:
    blocks = [SIGNATURE_5]
    if hidden_names:
        blocks.append(_block_5(4, 0, bytes(20)))
    blocks.append(_block_5(1, 0, number(main_flags)))
    blocks += [_file_5(entry) for entry in entries]
    return b"".join([*blocks, _block_5(5, 0, number(0))])


def _file_5(entry: Entry) -> bytes:
    name = entry.name.encode()
    size = len(entry.data) if entry.size is None else entry.size
    has_crc = entry.crc != NO_CRC
    body = number(len(entry.extra)) if entry.extra else b""
    packed = len(entry.data) if entry.packed is None else entry.packed
    is_folder = entry.mode & 0o170000 == 0o040000
    body += number(packed) + number(4 * has_crc + is_folder) + number(size)
    body += number(entry.mode) + (struct.pack("<I", _crc(entry)) if has_crc else b"")
    body += number(0) + number(1) + number(len(name)) + name + entry.extra  # stored, on Unix
    return _block_5(2, 0x3 if entry.extra else 0x2, body) + entry.data


def _block_5(kind: int, flags: int, body: bytes) -> bytes:
    header = number(kind) + number(flags) + body
    header = number(len(header)) + header
    return struct.pack("<I", zlib.crc32(header)) + header


def number(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    digits = b""
    while value >= 0x80:
        digits += bytes([value & 0x7F | 0x80])
        value >>= 7
    return digits + bytes([value])


def _crc(entry: Entry) -> int:
    return zlib.crc32(entry.data) if entry.crc is None else entry.crc
