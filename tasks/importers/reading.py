"""Read text files and tables of unknown origin: size, encoding and form are checked, and a fault says file and line.

Rows come one by one, so that a data set with its pictures inside need not fit into memory. Nothing is unpickled.
"""

import csv
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from arms_model.errors import ConfigError, DataError
from tasks.common.recorded import encodable
from tasks.importers.spreadsheet import read_xlsx

MAX_JSON_BYTES = 1_000_000_000  # read whole
MAX_LINE_BYTES = 200_000_000  # a line may carry a picture
_PARQUET_ROWS = 256
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz")
_TABLES = (".csv", ".tsv", ".xlsx", ".json", ".jsonl", ".parquet")
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> Any:
    """A JSON file's value.

    Raises:
        DataError: no such file, too large, not UTF-8, no JSON or cut off.
    """
    with _opened(path, most=MAX_JSON_BYTES) as handle:
        try:
            return _parsed(handle.read())
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: {_form_fault(error)}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is no whole JSON file ({_one_line(error)}); fetch or write it again.") from None


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file one by one, each with its line number (from 1); blank lines are passed over.

    Raises:
        DataError: no such file, a line too long, not UTF-8, or no JSON object.
    """
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = _parsed(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: no whole JSON object ({_one_line(error)}); the file is cut off or damaged, "
                "fetch it again or remove that line."
            ) from None
        if not isinstance(value, dict):
            raise DataError(f"{path}, line {number}: a {type(value).__name__}, expected a JSON object ({{...}}).")
        yield number, value


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a csv, tsv, xlsx, json, jsonl or parquet table one by one, each with its number (from 1, no header).

    An empty cell is None; csv, tsv and xlsx have texts only. A json table is a list of objects.

    Raises:
        ConfigError: another kind of file, a pickle among them.
        DataError: no such file, too large, not UTF-8 or damaged.
    """
    kind = path.suffix.lower()
    if kind in _PICKLES:
        raise ConfigError(
            f"{path} is a pickle: opening one can run any program, so it is refused. Load it where it was made, write "
            "it again as tsv, json or parquet, and name that file."
        )
    if kind not in _TABLES:
        raise ConfigError(f"{path} has the ending {kind!r}, expected one of {', '.join(_TABLES)}.")
    if not path.is_file():
        raise DataError(f"{path} is missing; correct the path.")
    if kind in (".csv", ".tsv"):
        return _read_separated(path, "\t" if kind == ".tsv" else ",")
    if kind == ".jsonl":
        return ((number, _without_nan(row)) for number, row in read_json_lines(path))
    return {".json": _read_json_table, ".parquet": _read_parquet, ".xlsx": read_xlsx}[kind](path)


def _read_separated(path: Path, separator: str) -> Iterator[tuple[int, dict[str, Any]]]:
    header: list[str] | None = None
    number = 0
    for line, cells in _cells(path, separator):
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                raise DataError(f"{path}: a column's name stands twice in the first line; rename one.")
            continue
        number += 1
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(cells)} cells, but the first line names {len(header)} columns; the file is "
                "cut off or damaged, fetch or write it again."
            )
        yield number, {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _cells(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, the header among them, each with the number of its last line."""
    csv.field_size_limit(min(MAX_LINE_BYTES, sys.maxsize))
    reader = csv.reader(_lines(path), delimiter=separator, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {_form_fault(error)}") from None


def _read_json_table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of JSON objects, one a row ([{{...}}, {{...}}]).")
    return ((number, _without_nan(row)) for number, row in enumerate(rows, start=1))


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        table = pl.scan_parquet(path, glob=False)
        height = table.select(pl.len()).collect().item()
        for start in range(0, height, _PARQUET_ROWS):  # it may hold pictures
            rows = table.slice(start, _PARQUET_ROWS).collect().iter_rows(named=True)
            yield from enumerate(rows, start=start + 1)
    except (PolarsError, OSError) as error:
        raise DataError(f"{path} is no readable parquet file ({_one_line(error)}); write it again.") from None


def _opened(path: Path, *, most: int | None = None) -> io.TextIOWrapper:
    """The file as UTF-8 text (a byte-order mark is passed over), once its size and its first bytes are looked at."""
    try:
        handle = path.open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DataError(f"{path} is missing; correct the path.") from None
    except PermissionError:
        raise DataError(f"{path} may not be read; change its permissions.") from None
    start = handle.peek(4)
    if most is not None and (size := path.stat().st_size) > most:
        handle.close()
        raise DataError(f"{path} has {size:,} bytes, at most {most:,} are read; split it.")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start[:4]:
        handle.close()
        raise DataError(f"{path} is UTF-16 or no text, expected UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW converts it.")
    return io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file one by one."""
    with _opened(path) as handle:
        for number in itertools.count(1):
            try:
                line = handle.readline(MAX_LINE_BYTES)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, near line {number}: {_form_fault(error)}") from None
            if len(line) >= MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} characters; that is no row.")
            if not line:
                return
            yield line


def _form_fault(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"byte 0x{byte:02x} is not UTF-8; iconv -f LATIN1 -t UTF-8 OLD > NEW converts it, if it is Latin-1."
    return f"{_one_line(error)}; the file is cut off or damaged, fetch or write it again."


def _one_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _parsed(text: str) -> Any:
    """The value of a JSON text."""
    value = json.loads(text)
    return encodable(value) if _HALF_PAIR.search(text) else value


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """NaN, which pandas writes for an empty cell, as None."""
    return {name: None if isinstance(cell, float) and math.isnan(cell) else cell for name, cell in row.items()}
