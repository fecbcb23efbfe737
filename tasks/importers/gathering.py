"""Rows gathered into tables in little memory, and old and new tables united without a contradiction."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from arms_model.errors import DataError
from tasks.common.recorded import encodable, named

_ROWS_A_CHUNK = 20_000
_NUM_NAMED = 20


class Rows:
    """Rows that become a frame chunk by chunk: a list of many small objects would cost several times the memory."""

    def __init__(self, schema: Mapping[str, pl.DataType]) -> None:
        self._schema = dict(schema)
        self._rows: list[dict[str, Any]] = []
        self._chunks: list[pl.DataFrame] = []

    def append(self, row: dict[str, Any]) -> None:
        """Take a row; columns that the schema does not name are left out."""
        self._rows.append({name: encodable(row[name]) for name in self._schema})
        if len(self._rows) >= _ROWS_A_CHUNK:
            self._close_chunk()

    def frame(self) -> pl.DataFrame:
        """All rows taken so far, in their order."""
        self._close_chunk()
        return pl.concat(self._chunks)

    def _close_chunk(self) -> None:
        self._chunks.append(pl.DataFrame(self._rows, schema=self._schema))
        self._rows = []


def united(old: pl.DataFrame | None, new: pl.DataFrame, *, key: list[str], but: str | None, what: str) -> pl.DataFrame:
    """Old and new rows, each key once, sorted by key.

    Args:
        old: the rows that stand there; None where there are none.
        new: rows in the same columns, perhaps in another order.
        key: the columns that name a row.
        but: a column that may differ between rows that are the same; the old one stays.
        what: what the rows are, for the message.

    Raises:
        DataError: a key has two contents; the message names keys and differing columns.
    """
    frame = new if old is None else pl.concat([old.select(new.columns), new])
    frame = frame.unique([name for name in frame.columns if name != but], keep="first", maintain_order=True)
    twice = frame.filter(pl.struct(key).is_duplicated())
    if twice.height:
        keys = twice.select(key).unique(maintain_order=True)
        first = twice.join(keys.head(_NUM_NAMED), on=key, maintain_order="left").partition_by(key, maintain_order=True)
        raise DataError(
            f"{what} that come twice with different content: "
            f"{named([_difference(rows, key, but) for rows in first], keys.height)}. Nothing was changed; import them "
            "under another name (a VLM's, a benchmark's), or into another folder."
        )
    return frame.sort(key)


def _difference(rows: pl.DataFrame, key: list[str], but: str | None) -> str:
    differing = [name for name in rows.columns if name != but and rows[name].n_unique() > 1]
    return f"{' of '.join(rows.row(0, named=True)[name] for name in key)} (differs in {', '.join(differing)})"
