"""TFRecord files and the tf.train.Example messages in them, every checksum checked.

A record is its length (8 bytes, little-endian), a masked CRC-32C of that, the data, and a masked CRC-32C of the data.
"""

import functools
import struct
from collections.abc import Iterator

import numpy as np

from vitreous.data.vtab.files import Member
from vitreous.errors import InputError

CASTAGNOLI = 0x82F63B78
BLOCK = 1024


def records(member: Member) -> Iterator[tuple[int, bytes]]:
    """Offset in the file, and data, of each record.

    Raises:
        InputError: if the file ends early or a checksum is wrong.
    """
    container, name = member.container, member.name
    size, offset = container.size(name), 0
    while offset < size:
        head = container.part(name, offset, 12)
        (length,) = struct.unpack("<Q", head[:8].ljust(8, b"\0"))
        if len(head) < 12 or masked(crc32c(head[:8])) != struct.unpack("<I", head[8:])[0]:
            raise InputError(f"{member} is no TFRecord file, or damaged at byte {offset:,}; fetch it again")
        rest = container.part(name, offset + 12, min(length + 4, size))
        if len(rest) < length + 4:
            raise InputError(f"{member} ends within a record; fetch it again")
        if masked(crc32c(rest[:-4])) != struct.unpack("<I", rest[-4:])[0]:
            raise InputError(f"{member} is damaged at byte {offset:,}: wrong checksum; fetch it again")
        yield offset + 12, rest[:-4]
        offset += 16 + length


def features(data: bytes) -> dict[str, tuple[int, int] | int]:
    """The features of a serialised tf.train.Example, one value each: bytes as (offset, size) in `data`, or an integer.

    Raises:
        ValueError: if `data` is no such message.
    """
    found: dict[str, tuple[int, int] | int] = {}
    for _, start, end in _fields(data, 0, len(data), 1):  # Example.features
        for _, entry, entry_end in _fields(data, start, end, 1):  # Features.feature, a map
            parts = {number: (a, b) for number, a, b in _fields(data, entry, entry_end)}
            (key, key_end), value = parts[1], parts[2]
            for kind, a, b in _fields(data, *value):  # Feature: a list of bytes (1), floats (2) or integers (3)
                if kind == 1:
                    found.update((data[key:key_end].decode(), (x, y - x)) for _, x, y in _fields(data, a, b, 1))
                elif kind == 3:
                    found.update(
                        (data[key:key_end].decode(), _varint(data, x)[0]) for _, x, _ in _fields(data, a, b, 1)
                    )
    return found


def _fields(data: bytes, start: int, end: int, only: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of the message in `data[start:end]`."""
    while start < end:
        tag, start = _varint(data, start)
        number, wire = tag >> 3, tag & 7
        stop = start
        if wire == 0:
            stop = _varint(data, start)[1]
        elif wire in (1, 5):
            stop = start + (8 if wire == 1 else 4)
        elif wire == 2:
            length, start = _varint(data, start)
            stop = start + length
        if stop > end or (stop == start and wire != 2):
            raise ValueError("no protocol buffer message")
        if only in (None, number):
            yield number, start, stop
        start = stop


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, lowest first, and where it ends."""
    value = 0
    for i, byte in enumerate(data[start : start + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, start + i + 1
    raise ValueError("no protocol buffer message")


def masked(crc: int) -> int:
    """The form in which TFRecord files keep a checksum."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`.

    A CRC is linear in the bits of the message, so that of a block is the exclusive or of what each byte adds at its
    place, from a table; a block follows another by adding the state so far to its first four bytes.
    """
    if len(data) < 4:  # the state before the first byte, all ones, is added to the first four
        state = 0xFFFFFFFF
        for byte in data:
            state = int(_tables()[-1, (state ^ byte) & 0xFF]) ^ state >> 8
        return state ^ 0xFFFFFFFF
    message = np.zeros(-(-len(data) // BLOCK) * BLOCK, np.uint8)  # zeros in front change nothing
    message[-len(data) :] = np.frombuffer(data, np.uint8)
    message[len(message) - len(data) :][:4] ^= 0xFF
    tables = _tables()
    state = 0
    for crc in np.bitwise_xor.reduce(tables[np.arange(BLOCK), message.reshape(-1, BLOCK)], axis=1).tolist():
        for place in range(4):
            crc ^= int(tables[place, state >> 8 * place & 0xFF])
        state = crc
    return state ^ 0xFFFFFFFF


@functools.cache
def _tables() -> np.ndarray:
    """What byte b at place p of a block adds to its CRC, (place, byte)."""
    tables = np.zeros((BLOCK, 256), np.uint32)
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = np.where(last & 1, last >> 1 ^ np.uint32(CASTAGNOLI), last >> 1)
    tables[-1] = last
    for place in range(BLOCK - 2, -1, -1):
        after = tables[place + 1]
        tables[place] = last[after & 0xFF] ^ after >> 8
    return tables
