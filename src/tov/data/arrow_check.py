"""Parquet and Arrow files looked through before anything uses them: a library that believes a broken one ends the process.

Every batch is read once and checked in full: lengths, offsets, indices, UTF-8. What a file would take in memory is bounded, as
a few bytes of it can stand for any number of values (dictionaries, packed buffers, views that overlap).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tov.data.bounds import check_unpacked
from tov.errors import DataError

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
_ROWS = 1000
"""Rows of a Parquet file that are checked at once."""


def check_file(path: Path, named: Path | None = None) -> None:
    """Checks a Parquet file, or an Arrow file or stream, told by its suffix.

    Args:
        path: the file.
        named: what messages call it, where it was unpacked from another.

    Raises:
        DataError: it is broken, a text is not UTF-8, or it takes more memory than any data does.
    """
    try:
        (_check_parquet if path.suffix.lower() == ".parquet" else _check_arrow)(path, named or path)
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(
            f"{named or path} cannot be read: {error}",
            fix="Check that its content is what its suffix says. If it is, copy the file again, or write it anew.",
        ) from None


def _check_arrow(path: Path, named: Path) -> None:
    with pa.memory_map(str(path)) as file:
        _check_packed(file, named)
        file.seek(0)
        _check_batches(_batches(file), named)


def _check_parquet(path: Path, named: Path) -> None:
    with pq.ParquetFile(path) as file:
        data = file.metadata
        groups = [data.row_group(place) for place in range(data.num_row_groups)]
        chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
        check_unpacked(named, sum(chunk.total_uncompressed_size for chunk in chunks))
        kinds = {field.name: field.type for field in file.schema_arrow}
        # A nested text is read as it is: beyond 2 GiB at once the library refuses it.
        texts = {chunk.path_in_schema for chunk in chunks if _is_text(kinds.get(chunk.path_in_schema))}
    with pq.ParquetFile(path, read_dictionary=sorted(texts)) as file:
        _check_batches(file.iter_batches(_ROWS, use_threads=False), named)


def _is_text(kind: pa.DataType | None) -> bool:
    return kind is not None and any(test(kind) for test in _TEXTS)


def _batches(file: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    reader = open_arrow(file)
    if isinstance(reader, pa.ipc.RecordBatchStreamReader):
        yield from reader
    else:
        yield from (reader.get_batch(place) for place in range(reader.num_record_batches))


def open_arrow(file: pa.NativeFile) -> Any:
    """A reader of a file, or of a stream.

    Raises:
        ArrowInvalid: it is neither.
    """
    try:
        return pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_stream(file)


def _check_batches(batches: Iterator[pa.RecordBatch], path: Path) -> None:
    row = size = 0
    for batch in batches:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as error:
                if "UTF8" not in str(error):
                    raise
                raise DataError(
                    f"{path}: a text of the column {name} in rows {row + 1} to {row + batch.num_rows} is not UTF-8.",
                    fix="Write the file anew with UTF-8 text.",
                ) from None
            size += _expanded(column)
            check_unpacked(path, size)
        row += batch.num_rows


def _expanded(array: pa.Array) -> int:
    """Bytes that an array takes with each value of a dictionary, and of overlapping views, written out."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _expanded(array.storage)
    if pa.types.is_dictionary(kind):
        return _expanded_dictionary(array)
    if pa.types.is_run_end_encoded(kind):
        return len(array) * (8 + _each(array.values))
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return int(pc.sum(array.sizes).as_py() or 0) * (8 + _each(array.values))
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return _expanded_views(array)
    if pa.types.is_struct(kind):
        return sum(_expanded(array.field(place)) for place in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        inner = array.keys if pa.types.is_map(kind) else array.values
        more = _expanded(array.items) if pa.types.is_map(kind) else 0
        return 8 * len(array) + _expanded(inner) + more
    if pa.types.is_fixed_size_list(kind):
        return _expanded(array.values)
    if pa.types.is_null(kind):
        return len(array)
    return int(array.nbytes)


def _expanded_dictionary(array: pa.DictionaryArray) -> int:
    words = array.dictionary
    if _is_text(words.type):
        lengths = pc.binary_length(words).cast(pa.int64())
        return 8 * len(array) + int(pc.sum(lengths.take(array.indices)).as_py() or 0)
    return len(array) * (8 + _each(words))


def _expanded_views(array: pa.Array) -> int:
    """A view is 16 bytes and begins with the length of its text."""
    buffer = array.buffers()[1]
    if buffer is None:
        return 0
    lengths = np.frombuffer(buffer, np.int32).reshape(-1, 4)[array.offset : array.offset + len(array), 0]
    return 16 * len(array) + int(lengths[np.asarray(array.is_valid())].sum(dtype=np.int64))


def _each(values: pa.Array) -> int:
    """Bytes of the values' mean, at least one."""
    return -(-_expanded(values) // max(1, len(values)))


# Packed buffers: each begins with the number of bytes that it unpacks to, which the library allots before it unpacks it.

_BATCH, _DICTIONARY = 3, 2
"""Kinds of messages that have buffers."""


def _check_packed(file: pa.NativeFile, path: Path) -> None:
    """Raises DataError if the packed buffers of a file say that they unpack to more than any data does."""
    size = 0
    for message in _messages(file):
        if message.body is None:
            continue
        body = memoryview(message.body)
        for start, length in _packed_buffers(memoryview(message.metadata)):
            if length >= 8 and 0 <= start <= len(body) - 8:
                (told,) = struct.unpack_from("<q", body, start)
                size += max(0, told)
        check_unpacked(path, size)


def _messages(file: pa.NativeFile) -> Iterator[pa.Message]:
    if file.read(6) == b"ARROW1":
        file.seek(8)
    else:
        file.seek(0)
    reader = pa.ipc.MessageReader.open_stream(file)
    while True:
        try:
            yield reader.read_next_message()
        except (StopIteration, pa.ArrowInvalid, OSError):  # what is broken is said by who reads it
            return


def _packed_buffers(data: memoryview) -> list[tuple[int, int]]:
    """(start, length) of each packed buffer of a message, as its flatbuffer has it; none of what cannot be read so."""
    try:
        (root,) = struct.unpack_from("<I", data, 0)
        kind_at, header_at = _field(data, root, 1), _field(data, root, 2)
        if not kind_at or not header_at or data[kind_at] not in (_BATCH, _DICTIONARY):
            return []
        header = _at(data, header_at)
        if data[kind_at] == _DICTIONARY:
            header = _at(data, _field(data, header, 1))
        buffers_at, packed_at = _field(data, header, 2), _field(data, header, 3)
        if not buffers_at or not packed_at:
            return []
        buffers = _at(data, buffers_at)
        (count,) = struct.unpack_from("<I", data, buffers)
        if 4 + buffers + 16 * count > len(data):
            return []
        return [struct.unpack_from("<qq", data, buffers + 4 + 16 * place) for place in range(count)]
    except (struct.error, IndexError):
        return []


def _at(data: memoryview, place: int) -> int:
    """Where an offset at a place leads."""
    (offset,) = struct.unpack_from("<I", data, place)
    return place + int(offset)


def _field(data: memoryview, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is, or 0."""
    (back,) = struct.unpack_from("<i", data, table)
    (size,) = struct.unpack_from("<H", data, table - back)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", data, table - back + 4 + 2 * number)
    return table + offset if offset else 0
