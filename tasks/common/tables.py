"""The tables' contracts: names, columns and types, in this one place; reading and writing hold them.

Written tables are sorted by their key and identical byte for byte for the same content, so that DVC sees no change
where there is none.
"""

from pathlib import Path

import polars as pl
from polars.exceptions import ComputeError

from arms_model.errors import DataError
from tasks.common.files import written_whole

_TEXT = pl.String()
SCHEMAS: dict[str, dict[str, pl.DataType]] = {
    "queries": {
        "query_id": _TEXT, "benchmark": _TEXT, "task": _TEXT, "language": _TEXT, "question": _TEXT,
        "choices": pl.List(pl.String()), "answer": _TEXT, "answer_type": _TEXT, "image": _TEXT, "image_sha256": _TEXT,
        "image_group": _TEXT, "template": _TEXT, "source_image_sha256": _TEXT, "licence": _TEXT,
    },
    "profiles": {
        "vlm": _TEXT, "provider": _TEXT, "pool": _TEXT, "profile": _TEXT,
        "params_b": pl.Float64(), "language_model": _TEXT, "vision_model": _TEXT, "released": _TEXT,
    },
    "collect": {
        "query_id": _TEXT, "vlm": _TEXT, "output": _TEXT, "imported_correct": pl.Boolean(), "error": _TEXT,
        "latency_s": pl.Float64(), "prompt_tokens": pl.Int64(), "completion_tokens": pl.Int64(),
        "cost_usd": pl.Float64(), "spent_usd": pl.Float64(), "finish_reason": _TEXT, "request_id": _TEXT,
        "answer_key": _TEXT,
    },
    "label": {"query_id": _TEXT, "vlm": _TEXT, "correct": pl.Boolean(), "predicted": _TEXT},
    "split": {"query_id": _TEXT, "split": _TEXT},
    "embed_index": {"query_id": _TEXT, "question_row": pl.Int32(), "picture_row": pl.Int32()},
    "held_out": {"query_id": _TEXT, "vlm": _TEXT, "confidence": pl.Float32()},
    "confidence": {
        "query_id": _TEXT, "split": _TEXT, "router": _TEXT, "vlm": _TEXT, "confidence": pl.Float32(),
    },
    "fold": {
        "query_id": _TEXT, "vlm": _TEXT, "seed": pl.Int16(), "fold": pl.Int16(), "confidence": pl.Float16(),
    },
}  # fmt: skip
KEYS: dict[str, list[str]] = {
    "queries": ["query_id"], "profiles": ["vlm"], "collect": ["query_id", "vlm"], "label": ["query_id", "vlm"],
    "split": ["query_id"], "embed_index": ["query_id"], "held_out": ["query_id", "vlm"],
    "confidence": ["router", "query_id", "vlm"], "fold": ["query_id", "vlm"],
}  # fmt: skip
TEST_SPLITS = ("test_id", "test_ood")
SPLITS = ("train", "validation", "gate", *TEST_SPLITS)
COLLECT_OPTIONAL = (  # what a recorded table may leave out
    "error", "latency_s", "prompt_tokens", "completion_tokens", "cost_usd", "spent_usd", "finish_reason", "request_id",
    "answer_key",
)  # fmt: skip
NULLABLE: dict[str, set[str]] = {
    "queries": {"choices", "source_image_sha256", "licence"},
    "profiles": {"params_b", "language_model", "vision_model", "released"},
    "collect": set(COLLECT_OPTIONAL) | {"output", "imported_correct"},
    "label": {"predicted"},
    "split": set(),
    "embed_index": set(),
    "held_out": set(),
    "confidence": set(),
    "fold": set(),
}


def read_table(path: Path, table: str) -> pl.DataFrame:
    """Read a parquet file that must hold `table`; columns come in the contract's order, further ones are left out.

    Raises:
        DataError: no such file, no parquet, a missing or mistyped column, a null where none may be, a key twice.
    """
    frame = read_parquet(path)
    check_table(frame, table, str(path))
    return frame.select(*SCHEMAS[table])


def write_table(path: Path, frame: pl.DataFrame, table: str) -> None:
    """Write `frame`, checked and sorted by its key, whole or not at all.

    Raises:
        DataError: `frame` breaks the contract of `table`.
        StorageError: the disk is full.
    """
    check_table(frame, table, str(path))
    write_parquet(path, frame.select(*SCHEMAS[table]).sort(KEYS[table]))


def strategy_row(strategy: str, tau: float | None) -> str:
    """What a way to serve is called in `cascade_eval/table.csv`, column `method`."""
    return f"ARMS {strategy}" + ("" if tau is None else f", tau {tau:g}")


def read_parquet(path: Path) -> pl.DataFrame:
    """Read any parquet file.

    Raises:
        DataError: no such file, or no parquet.
    """
    try:
        return pl.read_parquet(path)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; run the stage that writes it (`dvc repro`), or correct the path."
        ) from None
    except ComputeError as error:
        raise DataError(f"{path} is no readable parquet file ({error}); write it again.") from None


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write any frame as parquet, whole or not at all; the same content gives the same bytes."""
    with written_whole(path) as temporary:
        frame.write_parquet(temporary, compression="zstd", statistics=False)


def check_table(frame: pl.DataFrame, table: str, where: str) -> None:
    """Hold `frame` against the contract of `table`.

    Raises:
        DataError: see `read_table`; the text names `where`, the column, and the first rows at fault.
    """
    for column, expected in SCHEMAS[table].items():
        if column not in frame.columns:
            raise DataError(f"{where}: column '{column}' is missing; table '{table}' has {', '.join(SCHEMAS[table])}.")
        if frame.schema[column] != expected:
            raise DataError(f"{where}: column '{column}' is {frame.schema[column]}, expected {expected}; convert it.")
        if column not in NULLABLE[table] and frame[column].null_count():
            rows = frame.filter(pl.col(column).is_null()).select(KEYS[table])
            raise DataError(
                f"{where}: column '{column}' is null in {rows.height} rows, first: {rows.head(20).rows()}; fill them."
            )
    key = KEYS[table]
    twice = frame.filter(pl.struct(key).is_duplicated()).select(key).unique(maintain_order=True)
    if twice.height:
        raise DataError(
            f"{where}: {twice.height} keys ({', '.join(key)}) stand twice, first: {twice.head(20).rows()}; keep one."
        )
