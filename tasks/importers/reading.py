"""Read text files and tables of unknown origin: size, encoding and form are checked, and a fault says the line.

Paths that a file names are followed only inside the folder that the user named.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl


def inside(folder: Path, name: str) -> Path:
    """The file `name` under `folder`, which the user named and a data file points into.

    Raises:
        DataError: an absolute name, a URL, `..`, a backslash, a link that leads out of `folder`, or no such file.
    """
    raise NotImplementedError


def read_json(path: Path) -> Any:
    """A JSON file's value.

    Raises:
        DataError: no such file, too large, not UTF-8, no JSON or cut off.
    """
    raise NotImplementedError


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file one by one, each with its line number (from 1).

    Raises:
        DataError: no such file, a line too long, not UTF-8, or no JSON object.
    """
    raise NotImplementedError
    yield


def read_table_file(path: Path) -> pl.DataFrame:
    """A parquet, csv, tsv, xlsx, json or jsonl table; csv and tsv come as texts, the header row as it stands.

    Raises:
        ConfigError: another kind of file, a pickle among them.
        DataError: no such file, too large, not UTF-8, damaged.
    """
    raise NotImplementedError
