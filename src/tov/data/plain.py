"""Values that JSON lacks in the forms that it has: what `selected.jsonl` holds of a row, and what a row is hashed by."""

from __future__ import annotations

import base64
import datetime
import decimal
import io
import uuid
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from tov.errors import DataError, kind_of


def plain(value: Any) -> Any:
    """What JSON can hold of a value that it cannot.

    Raises:
        DataError: nothing can.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat() if value == value else None  # unlike every other time, pandas' NaT is not itself
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (uuid.UUID, PurePath, complex)):
        return str(value)
    if type(value).__name__ == "NAType":  # of pandas
        return None
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if hasattr(value, "save") and hasattr(value, "mode"):  # an image of Pillow, as `datasets` decodes one
        return _image(value)
    raise DataError(
        f"A row holds {kind_of(value)}, which has no form in JSON.",
        allowed="text, numbers, lists, mappings, bytes, dates, images",
        fix="Convert the value, or leave its column out.",
    )


def _image(image: Any) -> dict[str, str | None]:
    """As `datasets.Image(decode=False)` has it, the bytes in base64."""
    if getattr(image, "filename", ""):
        return {"bytes": None, "path": str(image.filename)}
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return {"bytes": base64.b64encode(buffer.getvalue()).decode("ascii"), "path": None}
