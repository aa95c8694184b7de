"""What the messages of an Arrow file say of their packed buffers, read without the library, which allots what they say.

A packed buffer begins with the number of bytes that it unpacks to. What cannot be read is left to the library to refuse.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MAGIC = b"ARROW1"
_DICTIONARY, _BATCH = 2, 3
"""Kinds of messages that have buffers."""


def said_to_unpack_to(data: memoryview) -> int:
    """Bytes that all packed buffers of a file, or a stream, say that they unpack to."""
    size = 0
    for start, length, body in _messages(data):
        for at, stored in _packed_buffers(data[start : start + length]):
            if stored >= 8 and at >= 0 and body + at + 8 <= len(data):
                size += max(0, struct.unpack_from("<q", data, body + at)[0])
    return size


def _messages(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """(start and length of its flatbuffer, start of its body) of each message."""
    try:
        if bytes(data[:6]) == _MAGIC and bytes(data[-6:]) == _MAGIC:
            yield from _in_file(data)
        else:
            yield from _in_stream(data)
    except (struct.error, IndexError):
        return


def _in_file(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Those that the footer lists."""
    (length,) = struct.unpack_from("<i", data, len(data) - 10)
    if not 0 < length <= len(data) - 10:
        return
    footer = data[len(data) - 10 - length : len(data) - 10]
    for blocks in (2, 3):
        for start, prefixed in _structs(footer, _at(footer, 0), blocks, "<qi12x"):
            if 0 <= start <= len(data) - 8 and 0 < prefixed <= len(data) - start:
                (mark,) = struct.unpack_from("<i", data, start)
                skipped = 8 if mark == -1 else 4
                yield start + skipped, prefixed - skipped, start + prefixed


def _in_stream(data: memoryview) -> Iterator[tuple[int, int, int]]:
    at = 8 if bytes(data[:6]) == _MAGIC else 0
    while at + 8 <= len(data):
        mark, length = struct.unpack_from("<ii", data, at)
        length, start = (length, at + 8) if mark == -1 else (mark, at + 4)
        if not 0 < length <= len(data) - start:
            return
        message = data[start : start + length]
        yield start, length, start + length
        size_at = _field(message, _at(message, 0), 3)
        size = struct.unpack_from("<q", message, size_at)[0] if size_at else 0
        if size < 0:
            return
        at = start + length + size


def _packed_buffers(message: memoryview) -> list[tuple[int, int]]:
    """(place in the body, length) of each packed buffer of a message, as its flatbuffer has it."""
    try:
        root = _at(message, 0)
        kind_at, header_at = _field(message, root, 1), _field(message, root, 2)
        if not kind_at or not header_at or message[kind_at] not in (_DICTIONARY, _BATCH):
            return []
        header = _at(message, header_at)
        if message[kind_at] == _DICTIONARY:
            header = _at(message, _field(message, header, 1))
        return _structs(message, header, 2, "<qq") if _field(message, header, 3) else []
    except (struct.error, IndexError):
        return []


def _structs(data: memoryview, table: int, number: int, form: str) -> list[tuple[int, int]]:
    """The first two numbers of each entry of a field that is a vector of structs."""
    place = _field(data, table, number)
    if not place:
        return []
    vector = _at(data, place)
    (count,) = struct.unpack_from("<I", data, vector)
    size = struct.calcsize(form)
    if vector + 4 + size * count > len(data):
        return []
    return [struct.unpack_from(form, data, vector + 4 + size * entry)[:2] for entry in range(count)]


def _at(data: memoryview, place: int) -> int:
    """Where an offset at a place leads."""
    (offset,) = struct.unpack_from("<I", data, place)
    return place + int(offset)


def _field(data: memoryview, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is, or 0."""
    (back,) = struct.unpack_from("<i", data, table)
    if not 0 <= table - back < len(data):
        return 0
    (size,) = struct.unpack_from("<H", data, table - back)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", data, table - back + 4 + 2 * number)
    return table + offset if offset else 0
