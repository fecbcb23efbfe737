"""How far the project's labels agree with the reference labels that came with recorded outputs, and where they do not.

For each benchmark that has raw outputs: agreement over all pairs, and precision and recall of ours on the pairs that
the reference calls right (few pairs of a hard benchmark are right, so agreement alone says little). The pairs left over
are listed by id in `docs/label-disagreements.csv`, with whose fault each is and a cause in general words; both come
from looking at the pair, and are kept when the file is written again. No question, answer or output is copied.

Run: `ARMS_REAL_DATA=FOLDER python -m tasks.studies.label_agreement` from the checkout's top folder.
"""

import logging
import sys
from pathlib import Path

import polars as pl

from arms_model.errors import DataError
from tasks.common import recorded
from tasks.common.files import written_whole
from tasks.common.normalise import judge
from tasks.common.stage import run_command

log = logging.getLogger(__name__)
DISAGREEMENTS = Path("docs/label-disagreements.csv")
FAULTS = ("ours", "reference", "ambiguous", "unjudged")
_COLUMNS = ["query_id", "vlm", "benchmark", "fault", "cause"]


def judged_pairs(folder: Path) -> pl.DataFrame:
    """Label every raw output of a recorded folder.

    Args:
        folder: holds the recorded `queries.parquet` and `outputs.parquet`.

    Returns:
        Columns query_id, vlm, benchmark, ours bool, reference bool; a row per output with a reference label.

    Raises:
        DataError: a file is missing or breaks its contract.
    """
    outputs = recorded.read_outputs(folder).filter(
        pl.col("output").is_not_null() & pl.col("imported_correct").is_not_null()
    )
    pairs = outputs.join(recorded.read_queries(folder), on="query_id")
    ours = [
        judge(row["output"], answer=row["answer"], answer_type=row["answer_type"],
              choices=row["choices"], language=row["language"]).correct
        for row in pairs.iter_rows(named=True)
    ]  # fmt: skip
    return pairs.select(
        "query_id",
        "vlm",
        "benchmark",
        pl.Series("ours", ours, pl.Boolean),
        pl.col("imported_correct").alias("reference"),
    )


def agreement(pairs: pl.DataFrame) -> pl.DataFrame:
    """Compare ours with the reference, benchmark by benchmark.

    Args:
        pairs: from `judged_pairs`.

    Returns:
        A row per benchmark, sorted: benchmark, num_pairs, num_right (by the reference), agreement, precision, recall
        (shares; precision and recall are NaN where they have no pairs).
    """
    both = (pl.col("ours") & pl.col("reference")).sum()
    return (
        pairs.group_by("benchmark")
        .agg(
            pl.len().alias("num_pairs"),
            pl.col("reference").sum().alias("num_right"),
            (pl.col("ours") == pl.col("reference")).mean().alias("agreement"),
            (both / pl.col("ours").sum()).alias("precision"),
            (both / pl.col("reference").sum()).alias("recall"),
        )
        .sort("benchmark")
    )


def disagreements(pairs: pl.DataFrame, *, known: Path) -> pl.DataFrame:
    """List the pairs with two labels, with the judgements that a file already holds.

    Args:
        pairs: from `judged_pairs`.
        known: an earlier list; it may be missing.

    Returns:
        Columns query_id, vlm, benchmark, fault, cause, sorted by query and VLM; fault is 'unjudged' for a new pair.

    Raises:
        DataError: the earlier list has other columns, or a fault that is none of `FAULTS`.
    """
    left = pairs.filter(pl.col("ours") != pl.col("reference")).select("query_id", "vlm", "benchmark")
    judged = left.join(_read_judgements(known), on=["query_id", "vlm"], how="left")
    return judged.with_columns(pl.col("fault").fill_null("unjudged"), pl.col("cause").fill_null("")).sort(_COLUMNS)


def _read_judgements(path: Path) -> pl.DataFrame:
    if not path.exists():
        return pl.DataFrame(schema=dict.fromkeys(["query_id", "vlm", "fault", "cause"], pl.String))
    frame = pl.read_csv(path, infer_schema=False)
    if frame.columns != _COLUMNS:
        raise DataError(f"{path}: columns {frame.columns}, expected {_COLUMNS}; correct its first line.")
    strange = frame.filter(~pl.col("fault").is_in(FAULTS))
    if strange.height:
        raise DataError(
            f"{path}: fault must be one of {FAULTS}, not {strange['fault'].to_list()[:20]}; correct the file."
        )
    return frame.drop("benchmark")


def body() -> None:
    """Label, compare, print, and write the list."""
    pairs = judged_pairs(recorded.source_folder(None, where=recorded.VARIABLE))
    print(f"{'benchmark':<16}{'pairs':>8}{'right':>8}{'agreement':>12}{'precision':>12}{'recall':>12}")
    for benchmark, num_pairs, num_right, *shares in agreement(pairs).iter_rows():
        print(f"{benchmark:<16}{num_pairs:>8}{num_right:>8}" + "".join(f"{share:>12.4f}" for share in shares))
    listed = disagreements(pairs, known=DISAGREEMENTS)
    with written_whole(DISAGREEMENTS) as temporary:
        listed.write_csv(temporary)
    faults = ", ".join(f"{count} {fault}" for fault, count in listed["fault"].value_counts().sort("fault").iter_rows())
    print(f"{listed.height} pairs with two labels ({faults or 'none'}): {DISAGREEMENTS}")


def main() -> int:
    """Run the study; returns the exit code."""
    return run_command("label_agreement", body)


if __name__ == "__main__":
    sys.exit(main())
