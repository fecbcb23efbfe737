"""Whether each answer was right, for the stages that need to know.

An answer with a raw output is right where the answer read out of it equals the query's (`tasks.common.normalise`); an
answer of which the source kept only right or wrong keeps that. An error is no answer: it gets no label, neither right
nor wrong.
"""

import polars as pl

from arms_model.errors import DataError
from tasks.common.normalise import judge
from tasks.common.tables import SCHEMAS

_NUM_NAMED = 20  # rows at fault that a message names


def labels(collect: pl.DataFrame, *, queries: pl.DataFrame, where: str) -> pl.DataFrame:
    """Label the answers of one pool.

    Args:
        collect: table `collect`.
        queries: table `queries`.
        where: the file that `collect` was read from, for the messages.

    Returns:
        Table `label`: a row per answer without an error, sorted by query and VLM; `predicted` is null where no answer
        could be read, and for imported labels. A row with neither output, imported label nor error gets none; the gate
        of stage `label` names it.

    Raises:
        DataError: an answer to a query that is not in `queries`.
    """
    unknown = collect.join(queries, on="query_id", how="anti")
    if unknown.height:
        first = unknown.select("query_id", "vlm").sort("query_id", "vlm").head(_NUM_NAMED).rows()
        raise DataError(
            f"{where}: answers to queries that are not in queries/queries.parquet: {unknown.height}, first {first}. "
            "Run `queries` and `collect` again."
        )
    answers = collect.filter(pl.col("error").is_null())
    imported = answers.filter(pl.col("output").is_null() & pl.col("imported_correct").is_not_null()).select(
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


def answered_rightly(collect: pl.DataFrame, *, queries: pl.DataFrame, where: str) -> set[str]:
    """The queries that one of the VLMs answered rightly; arguments and errors as of `labels`."""
    return set(labels(collect, queries=queries, where=where).filter("correct")["query_id"])
