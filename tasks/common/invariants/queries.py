"""What must hold of the query set. `tasks.common.gates` says how it is held."""

import hashlib
from pathlib import Path

import polars as pl

from tasks.common.gates import Check, Invariant, is_true, not_empty, same, table_view, unique

UNIQUE = Invariant(
    name="queries_id_unique",
    sentence="Every query has an id of its own.",
    remedy="Give one of them another query_id, or drop it.",
)
QUESTION = Invariant(
    name="queries_question_not_empty",
    sentence="Every query has a question.",
    bounds="more than white space",
    remedy="Write the question into the source, or drop the query.",
)
ANSWER = Invariant(
    name="queries_answer_not_empty",
    sentence="Every query has a right answer to compare with.",
    bounds="more than white space",
    remedy="Write the answer into the source, or drop the query.",
)
IMAGE = Invariant(
    name="queries_image_exists",
    sentence="Every query's picture is stored.",
    remedy="Put the picture where the source names it, and run the stage again.",
)
HASH = Invariant(
    name="queries_image_hash",
    sentence="Every stored picture is byte for byte the one that its query means.",
    remedy="Restore the picture, or correct image_sha256 in the source.",
)
INVARIANTS = (UNIQUE, QUESTION, ANSWER, IMAGE, HASH)


def checks(queries: pl.DataFrame, *, images: Path) -> list[Check]:
    """The checks of stage `queries`.

    Args:
        queries: table `queries`.
        images: the folder of stored pictures that column `image` is relative to.
    """
    stored = {image: _sha256(images / image) for image in queries["image"].unique()}
    hashes = pl.DataFrame(
        list(stored.items()), schema={"image": pl.String, "stored_sha256": pl.String}, orient="row"
    ).with_columns(pl.col("stored_sha256").is_not_null().alias("is_stored"))
    view = table_view("queries", queries.join(hashes, on="image", how="left"), key=["query_id"])
    return [
        unique(UNIQUE, queries, key=["query_id"], shown=["benchmark"]),
        Check(invariant=QUESTION, rule=not_empty("question"), view=view),
        Check(invariant=ANSWER, rule=not_empty("answer"), view=view),
        Check(invariant=IMAGE, rule=is_true("is_stored"), view=view),
        Check(invariant=HASH, rule=same("stored_sha256", "image_sha256"), view=view),
    ]


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
