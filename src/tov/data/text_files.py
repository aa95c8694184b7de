"""Text files as bytes: decompressed, their encoding checked, faults told with file and line. Must not know formats."""

from __future__ import annotations

import codecs
import lzma
import tempfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from tov.errors import DataError

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
BLOCK_BYTES = 1 << 22
_FOREIGN = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


def open_bytes(path: Path) -> BinaryIO:
    """A file for reading, decompressed as its suffix says."""
    opened: Any = lzma.open(path) if path.suffix == ".xz" else pa.input_stream(str(path), compression="detect")  # noqa: SIM115
    return opened


def open_plain(path: Path) -> BinaryIO:
    """A file that can be read from anywhere: itself, or a nameless temporary file that holds its decompressed bytes.

    The bytes are those of now, also if the file is replaced later.

    Raises:
        DataError: it cannot be decompressed, or is UTF-16.
    """
    packed = path.suffix.lower() in COMPRESSED
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
        with open_bytes(path) as packed:
            while block := packed.read(BLOCK_BYTES):
                file.write(block)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(
            f"{path} cannot be read: {error}",
            fix="Copy or pack the file again: it is cut, or not what its suffix says.",
        ) from error
    file.seek(0)


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
