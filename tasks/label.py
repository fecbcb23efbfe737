"""Stage `label`: whether each answer was right, a table per pool.

An answer with a raw output is right where the answer read out of it equals the query's (`tasks.common.normalise`); an
answer of which the source kept only right or wrong keeps that. An error is no answer: it gets no label, neither right
nor wrong. The raw outputs stay beside the labels, in `collect/`.

Run: `python -m tasks.label`; reads `queries/queries.parquet` and `collect/{base,new}.parquet`, writes
`label/{base,new}.parquet`, both or none.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from arms_model.errors import DataError
from tasks.common.files import folder_written_whole
from tasks.common.normalise import judge
from tasks.common.params import load_section
from tasks.common.stage import run_stage
from tasks.common.tables import SCHEMAS, read_table, write_table

log = logging.getLogger(__name__)
QUERIES = Path("queries/queries.parquet")
COLLECT, FOLDER = Path("collect"), Path("label")
POOLS = ("base", "new")
_NUM_NAMED = 20  # rows at fault that a message names


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Section `label`: nothing to set; a key there is refused."""


def labels(collect: pl.DataFrame, *, queries: pl.DataFrame, where: str) -> pl.DataFrame:
    """Label the answers of one pool.

    Args:
        collect: table `collect`.
        queries: table `queries`.
        where: the file that `collect` was read from, for the messages.

    Returns:
        Table `label`: a row per answer without an error, sorted by query and VLM; `predicted` is null where no answer
        could be read, and for imported labels.

    Raises:
        DataError: an answer to a query that is not in `queries`, or a row without output, imported label and error.
    """
    unknown = collect.join(queries, on="query_id", how="anti")
    _refuse(unknown, f"{where}: answers to queries that are not in {QUERIES}", "Run `queries` and `collect` again.")
    answers = collect.filter(pl.col("error").is_null())
    empty = answers.filter(pl.col("output").is_null() & pl.col("imported_correct").is_null())
    _refuse(
        empty,
        f"{where}: rows with neither an output, nor an imported right or wrong, nor an error",
        "One of the three was expected in each; correct the source and run `collect` again, or drop them.",
    )
    imported = answers.filter(pl.col("output").is_null()).select(
        "query_id", "vlm", pl.col("imported_correct").alias("correct"), pl.lit(None, pl.String).alias("predicted")
    )
    outputs = answers.filter(pl.col("output").is_not_null()).join(queries, on="query_id")
    judged = [
        (query_id, vlm, verdict.correct, verdict.predicted)
        for query_id, vlm, output, answer, answer_type, choices, language in outputs.select(
            "query_id", "vlm", "output", "answer", "answer_type", "choices", "language"
        ).iter_rows()
        for verdict in [judge(output, answer=answer, answer_type=answer_type, choices=choices, language=language)]
    ]
    read = pl.DataFrame(judged, schema=SCHEMAS["label"], orient="row")
    return pl.concat([imported, read]).sort("query_id", "vlm")


def _refuse(rows: pl.DataFrame, what: str, remedy: str) -> None:
    """Raise DataError, naming the first rows, where there are any."""
    if rows.height:
        first = rows.select("query_id", "vlm").sort("query_id", "vlm").head(_NUM_NAMED).rows()
        raise DataError(f"{what}: {rows.height}, first {first}. {remedy}")


def body() -> None:
    """Label both pools, then write both tables, whole or not at all."""
    load_section("label", LabelSettings)
    queries = read_table(QUERIES, "queries")
    tables = {}
    for pool in POOLS:
        source = COLLECT / f"{pool}.parquet"
        collect = read_table(source, "collect")
        tables[pool] = table = labels(collect, queries=queries, where=str(source))
        log.info("pool %s: %d labels, %d right, %d errors left out",
                 pool, table.height, table["correct"].sum(), collect.height - table.height)  # fmt: skip
    with folder_written_whole(FOLDER) as folder:
        for pool, table in tables.items():
            write_table(folder / f"{pool}.parquet", table, "label")


def main() -> int:
    """Run the stage; returns the exit code."""
    return run_stage("label", body)


if __name__ == "__main__":
    sys.exit(main())
