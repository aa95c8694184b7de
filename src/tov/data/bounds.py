"""How much a packed file may hold: more than real data ever does, and less than a small file can be made to unpack to."""

from __future__ import annotations

from pathlib import Path

from tov.errors import DataError

ALWAYS = 1 << 28
"""Bytes that any file may unpack to."""
MOST_TIMES = 250
"""Times its size that a larger one may: text packs 3 to 30 times smaller, a column of few values in Parquet 100 times."""
LONGEST_LINE = 1 << 28
"""Bytes in a line of a text file, which is in memory several times while it is read."""


def check_unpacked(path: Path, unpacked: int) -> None:
    """Raises DataError if a file unpacks to more than `MOST_TIMES` its size, and than `ALWAYS`."""
    most = max(ALWAYS, MOST_TIMES * path.stat().st_size)
    if unpacked > most:
        raise DataError(
            f"{path} of {path.stat().st_size:,} bytes unpacks to more than {most:,} bytes, as no data does: it is "
            "broken, or made to fill the memory.",
            allowed=f"{MOST_TIMES} times the size of the file, or {ALWAYS:,} bytes",
            fix="If it is right, unpack it and name what was in it; write Parquet and Arrow anew without dictionaries.",
        )


def check_line(path: Path, number: int, size: int) -> None:
    """Raises DataError if a line, counted from 1, has more bytes than `LONGEST_LINE`."""
    if size > LONGEST_LINE:
        raise DataError(
            f"{path}:{number}: the line has more than {LONGEST_LINE:,} bytes.",
            allowed=f"rows of at most {LONGEST_LINE:,} bytes, a row a line",
            fix="Delete the line, or write the file anew with a row a line.",
        )
