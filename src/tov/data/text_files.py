"""Text files as bytes: decompressed, their encoding checked, faults told with file and line. Must not know formats."""

from __future__ import annotations

import codecs
import errno
import lzma
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from tov.data.bounds import LONGEST_LINE, check_line, check_unpacked
from tov.errors import DataError

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
BLOCK_BYTES = 1 << 20
_XZ_MEMORY = 1 << 28
"""Bytes that unpacking .xz may take: `xz -9` makes files that take 65 MB."""
_FOREIGN = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


def is_packed(path: Path) -> bool:
    """Whether a file's suffix says that it is compressed."""
    return path.suffix.lower() in COMPRESSED


def unpacked(path: Path) -> Iterator[bytes]:
    """The bytes of a file in blocks, decompressed as its suffix says.

    Raises:
        DataError: it cannot be decompressed, or to more than any data has.
    """
    if not is_packed(path):
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
        return
    size = 0
    try:
        for block in _unpacked_xz(path) if path.suffix.lower() == ".xz" else _unpacked_stream(path):
            size += len(block)
            check_unpacked(path, size)
            yield block
    except (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(
            f"{path} cannot be read: {error}",
            fix="Copy or pack the file again: it is cut, or not what its suffix says.",
        ) from error


def head(path: Path, size: int) -> bytes:
    """The first bytes of a file, decompressed no further than for them. Errors as of `unpacked`."""
    data = b""
    for block in unpacked(path):
        data += block
        if len(data) >= size:
            break
    return data[:size]


def _unpacked_stream(path: Path) -> Iterator[bytes]:
    kind = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}[path.suffix.lower()]
    with pa.input_stream(str(path), compression=kind) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _unpacked_xz(path: Path) -> Iterator[bytes]:
    """As `lzma.open` reads it, streams one behind another, within `_XZ_MEMORY`."""
    with open(path, "rb") as file:
        data = file.read(BLOCK_BYTES)
        while data:
            stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            while not stream.eof:
                if stream.needs_input:
                    data = data or file.read(BLOCK_BYTES)
                    if not data:
                        raise EOFError("the file ends before its end marker")
                block, data = stream.decompress(data, BLOCK_BYTES), b""
                if block:
                    yield block
            data = (stream.unused_data or file.read(BLOCK_BYTES)).lstrip(b"\0")  # padding between streams


def open_plain(path: Path) -> BinaryIO:
    """A file that can be read from anywhere: itself, or a nameless temporary file that holds its decompressed bytes.

    The bytes are those of now, also if the file is replaced later.

    Raises:
        DataError: it cannot be decompressed, to more than any data has or than the disk takes, or is UTF-16.
    """
    packed = is_packed(path)
    file: Any = tempfile.TemporaryFile() if packed else open(path, "rb")  # noqa: SIM115
    try:
        if packed:
            _unpack(path, file)
        _check_encoding(file.read(64), path)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    opened: BinaryIO = file
    return opened


def _unpack(path: Path, file: BinaryIO) -> None:
    try:
        for block in unpacked(path):
            file.write(block)
        file.seek(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"{path} cannot be unpacked: there is no room for it in {tempfile.gettempdir()}.",
            fix="Unpack the file yourself, or name a larger disk: TMPDIR=FOLDER tov ...",
        ) from None


def lines_of(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """(its number from 1, its bytes with the line end) of each line.

    Raises:
        DataError: a line has more than `LONGEST_LINE` bytes.
    """
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        check_line(path, number, len(line))
        yield number, line


def _check_encoding(head: bytes, path: Path) -> None:
    """Raises DataError for the two encodings in which a text looks like nothing at all."""
    name = next((name for mark, name in _FOREIGN.items() if head.startswith(mark)), None)
    if name is None and len(head) > 3 and 0 in head[:4]:
        name = "UTF-16 or UTF-32"
    if name:
        raise DataError(
            f"{path} is {name}, not UTF-8.",
            fix=f"Convert the file: iconv -f {name.partition(' ')[0].lower()} -t utf-8 {path.name} > NEW",
        )


def decode_line(line: bytes, path: Path, number: int) -> str:
    """A line of a text file.

    Raises:
        DataError: it is not UTF-8; names the file, the line and the byte.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: byte 0x{line[error.start]:02x} at column {error.start + 1} is not UTF-8.",
            fix=f"Convert the file, e.g. with iconv -f latin1 -t utf-8 {path.name}",
        ) from None
