from pathlib import Path
from typing import Any

import polars as pl
import pytest

from arms_model.errors import DataError
from tasks.common.tables import SCHEMAS, read_table, write_table

ROWS: list[dict[str, Any]] = [
    {"query_id": "b", "vlm": "x", "correct": True, "predicted": "B"},
    {"query_id": "a", "vlm": "y", "correct": False, "predicted": None},
    {"query_id": "a", "vlm": "x", "correct": True, "predicted": "A"},
]
LABEL = pl.DataFrame(ROWS, schema=SCHEMAS["label"])


def test_table_comes_back_sorted_by_its_key(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", LABEL, "label")
    keys = read_table(tmp_path / "t.parquet", "label").select("query_id", "vlm").rows()
    assert keys == [("a", "x"), ("a", "y"), ("b", "x")]


def test_same_content_gives_the_same_bytes_whatever_its_order(tmp_path: Path) -> None:
    write_table(tmp_path / "1.parquet", LABEL, "label")
    write_table(tmp_path / "2.parquet", LABEL.reverse().select("predicted", "vlm", "correct", "query_id"), "label")
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_empty_table_is_a_table(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", LABEL.clear(), "label")
    assert read_table(tmp_path / "t.parquet", "label").schema == pl.Schema(SCHEMAS["label"])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (LABEL.drop("correct"), r"column 'correct' is missing; table 'label' has query_id, vlm, correct, predicted"),
        (LABEL.with_columns(pl.col("correct").cast(pl.Int8)), r"column 'correct' is Int8, expected Boolean; convert"),
        (LABEL.with_columns(correct=pl.lit(None, pl.Boolean)), r"column 'correct' is null in 3 rows, first: .*'b'"),
        (pl.concat([LABEL, LABEL.head(1)]), r"1 keys \(query_id, vlm\) stand twice, first: \[\('b', 'x'\)\]"),
    ],
)
def test_broken_table_is_refused_on_reading_and_on_writing(tmp_path: Path, frame: pl.DataFrame, message: str) -> None:
    frame.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.parquet", "label")
    with pytest.raises(DataError, match=message):
        write_table(tmp_path / "new.parquet", frame, "label")
    assert not (tmp_path / "new.parquet").exists()


def test_file_that_is_missing_or_no_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.parquet is missing; run the stage"):
        read_table(tmp_path / "gone.parquet", "label")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match=r"bad\.parquet is no readable parquet file"):
        read_table(tmp_path / "bad.parquet", "label")
    (tmp_path / "empty.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.parquet is no readable parquet file"):
        read_table(tmp_path / "empty.parquet", "label")
