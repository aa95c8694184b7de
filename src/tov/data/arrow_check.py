"""Parquet and Arrow files looked through before anything uses them: a library that believes a broken one ends the process.

Every batch is read once and checked in full: lengths, offsets, indices, UTF-8. What a file would take in memory is bounded, as
a few bytes of it can stand for any number of values (dictionaries, packed buffers, views that overlap).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tov.data.arrow_messages import said_to_unpack_to
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
        check_unpacked(named, said_to_unpack_to(memoryview(file.read_buffer())))
        file.seek(0)
        _check_batches(_batches(file), named)


def _check_parquet(path: Path, named: Path) -> None:
    with pq.ParquetFile(path) as file:
        data = file.metadata
        # What is said of single columns is not asked for: the library ends the process where that is broken.
        check_unpacked(named, sum(data.row_group(place).total_byte_size for place in range(data.num_row_groups)))
        # A nested text is read as it is: beyond 2 GiB at once the library refuses it.
        texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
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
