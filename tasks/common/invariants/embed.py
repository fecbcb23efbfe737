"""What must hold of the sealed vectors. `tasks.common.gates` says how it is held."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import safe_open

from tasks.common.files import read_json
from tasks.common.gates import SHARD_ROWS, Check, Invariant, View, is_true, none_of_them, same, table_view
from tasks.common.tables import read_parquet

FINITE = Invariant(
    name="embed_vector_finite",
    sentence="Every number in every vector is finite.",
    remedy="Remove the encoder's folder under .arms/vectors, so that it encodes again; if it stays, report it.",
)
WIDTH = Invariant(
    name="embed_width_right",
    sentence="Every encoder's vectors are as wide as it says.",
    remedy="Remove the encoder's folder under .arms/vectors, so that it encodes again; if it stays, report it.",
)
EVERY = Invariant(
    name="embed_every_query",
    sentence="Every query has a question vector and a picture vector of every encoder.",
    remedy="Run stage embed again; if it stays, report it.",
)
INVARIANTS = (FINITE, WIDTH, EVERY)
_MODALITIES = ("question", "picture")
_VECTORS_AT_ONCE = 4096  # read at a time: 20 MB of a wide encoder


def checks(folder: Path, queries: pl.DataFrame) -> list[Check]:
    """The checks of stage `embed`.

    Args:
        folder: what it sealed.
        queries: table `queries`.
    """
    described = read_json(folder / "encoders.json")
    shapes = {modality: _shapes(folder, modality) for modality in _MODALITIES}
    num_rows = {modality: min(height for height, _ in own.values()) for modality, own in shapes.items()}
    widths = pl.DataFrame(
        [
            {"encoder": name, "modality": modality, "width": width, "said_width": described[name]["width"]}
            for modality, own in shapes.items()
            for name, (_, width) in sorted(own.items())
        ]
    )
    return [
        Check(
            invariant=FINITE,
            rule=none_of_them("num_not_finite"),
            view=View(name="vectors", key=("encoder", "row"), shards=lambda: _counted(folder, shapes)),
        ),
        Check(
            invariant=WIDTH,
            rule=same("width", "said_width"),
            view=table_view("widths", widths, key=["encoder"]),
            observed=dict(widths.select("encoder", "width").iter_rows()),
        ),
        Check(
            invariant=EVERY,
            rule=is_true("has_vectors"),
            view=table_view("queries and their vectors", _placed(folder, queries, num_rows), key=["query_id"]),
        ),
    ]


def _shapes(folder: Path, modality: str) -> dict[str, tuple[int, int]]:
    """Encoder -> number and width of its vectors."""
    with safe_open(folder / f"{modality}s.safetensors", framework="numpy") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 - no dict
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


def _placed(folder: Path, queries: pl.DataFrame, num_rows: dict[str, int]) -> pl.DataFrame:
    """A row per query: where its vectors stand, and whether they are there."""
    index = read_parquet(folder / "index.parquet")
    placed = queries.select("query_id").join(index, on="query_id", how="left")
    there = [pl.col(f"{modality}_row").is_between(0, num_rows[modality] - 1) for modality in _MODALITIES]
    return placed.with_columns(pl.all_horizontal(there).fill_null(value=False).alias("has_vectors"))


def _counted(folder: Path, shapes: dict[str, dict[str, tuple[int, int]]]) -> Iterator[pl.DataFrame]:
    """A row per vector: how many of its numbers are not finite; few vectors are in memory at once."""
    for modality, own in shapes.items():
        with safe_open(folder / f"{modality}s.safetensors", framework="numpy") as opened:
            for name, (height, _) in sorted(own.items()):
                vectors = opened.get_slice(name)
                for start in range(0, height, SHARD_ROWS):
                    rows = range(start, min(start + SHARD_ROWS, height))
                    yield pl.DataFrame(
                        {"encoder": [name] * len(rows), "row": rows, "num_not_finite": _not_finite(vectors, rows)}
                    )


def _not_finite(vectors: Any, rows: range) -> np.ndarray[Any, np.dtype[np.int64]]:
    parts = [
        (~np.isfinite(vectors[start : min(start + _VECTORS_AT_ONCE, rows.stop)])).sum(axis=1)
        for start in range(rows.start, rows.stop, _VECTORS_AT_ONCE)
    ]
    return np.concatenate(parts)
