"""Parquet and Arrow files with types that `datasets` does not know: DuckDB's maps and UUIDs, list views, extensions of others.

Such a column is read as the nearest type that it knows, so that a column that nobody uses stands in no one's way.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from tov.data.arrow_check import check_file, open_arrow
from tov.data.known import known_digest
from tov.data.text_files import is_packed, unpacked
from tov.files import atomic, digest

CHECK = "checked-1"
"""Ends the name of an empty file that says so; another number for every change of what is checked."""
_KNOWN_EXTENSIONS = ("arrow.json", "datasets.")
"""Beginnings of names of extension types that `datasets` reads itself."""


def load_arrow(builder: str, paths: Sequence[Path]) -> datasets.Dataset:
    """The rows of Parquet files, or of Arrow files and streams, maybe compressed.

    Args:
        builder: parquet or arrow.
        paths: the files.

    Raises:
        DataError: a file is broken, or unpacks to more than any data does.
    """
    digests = [known_digest(path) for path in paths]
    plain = [_plain_file(path, name) for path, name in zip(paths, digests, strict=True)]
    for path, file, name in zip(paths, plain, digests, strict=True):
        _check_once(file, path, name)
    table = with_known_types(plain)
    if table is not None:
        return datasets.Dataset(table)
    # `datasets` keeps what it has read, and takes a file of the same time for the same file: its content is in the name.
    files = [glob.escape(str(path)) for path in plain]
    return datasets.load_dataset(builder, digest(digests), data_files=files, split="train")


def _kept() -> Path:
    """Our folder beside what `datasets` keeps."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "downloads" / "extracted" / "tov"


def _check_once(file: Path, named: Path, name: str) -> None:
    """Checks the content of a file, unless the very same was checked before: decoding it takes longer than reading it."""
    mark = _kept() / f"{name}{file.suffix.lower()}.{CHECK}"
    if mark.exists():
        return
    check_file(file, named)
    with suppress(OSError):  # a cache that cannot be written is told of by who needs it
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _plain_file(path: Path, name: str) -> Path:
    """The file, or an unpacked copy of it."""
    if not is_packed(path):
        return path
    file = _kept() / f"{name}{Path(path.stem).suffix.lower()}"
    if not file.exists():
        with atomic(file) as temporary, open(temporary, "wb") as copy:
            copy.writelines(unpacked(path))
    return file


def with_known_types(paths: Sequence[Path]) -> pa.Table | None:
    """The rows of checked files in memory, unknown types replaced; None where `datasets` knows the types of all columns.

    A map becomes a list of its entries, a UUID text, a category its text, and another extension what it is stored as.
    """
    schemas = [_schema(path) for path in paths]
    if all(_known(field.type) == field.type for schema in schemas for field in schema):
        return None
    return pa.concat_tables([_converted(_read(path)) for path in paths])


def _schema(path: Path) -> pa.Schema:
    if path.suffix.lower() == ".parquet":
        return pq.read_schema(path)
    with pa.memory_map(str(path)) as file:
        return open_arrow(file).schema


def _read(path: Path) -> pa.Table:
    if path.suffix.lower() == ".parquet":
        return pq.read_table(path)
    with pa.memory_map(str(path)) as file:
        return open_arrow(file).read_all()


def _converted(table: pa.Table) -> pa.Table:
    for place, field in enumerate(table.schema):
        kind = _known(field.type)
        if kind != field.type:
            values = [_plain(value, field.type) for value in table[place].to_pylist()]
            table = table.set_column(place, field.name, pa.array(values, kind))
    return table


def _known(kind: pa.DataType) -> pa.DataType:
    """The nearest type that `datasets` knows."""
    if pa.types.is_map(kind):
        return pa.list_(pa.struct([("key", _known(kind.key_type)), ("value", _known(kind.item_type))]))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_known(field.type)) for field in kind])
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(_known(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _known(kind.value_type)
        return kind if inner == kind.value_type else pa.large_list(inner)
    if pa.types.is_dictionary(kind):
        return pa.large_string() if pa.types.is_string_view(kind.value_type) else kind
    if isinstance(kind, pa.UuidType):
        return pa.string()
    if isinstance(kind, pa.BaseExtensionType) and not kind.extension_name.startswith(_KNOWN_EXTENSIONS):
        return _known(kind.storage_type)
    return kind


def _plain(value: object, kind: pa.DataType) -> object:
    """A value of a type, as its nearest known type takes it."""
    if value is None or _known(kind) == kind:
        return value
    if pa.types.is_map(kind):
        assert isinstance(value, list)
        return [{"key": _plain(key, kind.key_type), "value": _plain(one, kind.item_type)} for key, one in value]
    if pa.types.is_struct(kind):
        assert isinstance(value, dict)
        return {field.name: _plain(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [_plain(one, kind.value_type) for one in value]
    return str(value) if isinstance(kind, pa.UuidType) else value
