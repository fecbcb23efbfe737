"""Stage `collect`: what each VLM of `params.yaml: vlms` answered, a table per pool.

`recorded_answers` is the one source so far; a source takes the query set and the VLMs and gives the table `collect`.
Which queries a VLM is asked (`benchmarks`, `sample` of its block) is decided here, alike for every source. A pair that
is not in the tables was not asked; it is never an answer that was wrong.

Run: `python -m tasks.collect`; reads the source and `queries/queries.parquet`, writes `collect/{base,new}.parquet`.
"""

import hashlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from arms_model.errors import ConfigError, DataError
from arms_model.settings import nearest
from tasks.common import recorded
from tasks.common.files import folder_written_whole
from tasks.common.params import load_section
from tasks.common.stage import run_stage
from tasks.common.tables import SCHEMAS, read_table, write_table
from tasks.common.vlms import POOLS, Vlm, load_vlms

log = logging.getLogger(__name__)
FOLDER = Path("collect")
QUERIES = Path("queries/queries.parquet")


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """Section `collect`.

    Attributes:
        source: where answers come from.
        folder: a recorded folder; None for the one that ARMS_REAL_DATA names.
    """

    source: Literal["recorded"]
    folder: str | None = None


def recorded_answers(folder: Path, *, queries: pl.DataFrame, vlms: Sequence[Vlm]) -> pl.DataFrame:
    """The answers of `vlms` in a recorded folder, cut to the queries that each VLM is asked.

    Args:
        folder: the recorded folder.
        queries: table `queries`.
        vlms: the VLMs of params.

    Returns:
        Table `collect`, both pools together.

    Raises:
        ConfigError: a VLM's block asks none of the queries that it has answers to.
        DataError: the recorded table breaks its contract, answers a query that is not in the query set, or holds
            nothing of a VLM that params name.
    """
    outputs = recorded.read_outputs(folder)
    where = folder / recorded.OUTPUTS
    unknown = outputs.join(queries, on="query_id", how="anti").select("query_id", "vlm").sort("query_id", "vlm")
    if unknown.height:
        rows = recorded.named(unknown.iter_rows(), unknown.height)
        raise DataError(f"{where}: answers to queries that are not in {QUERIES}: {rows}. Drop them or add the queries.")
    _refuse_vlms_without_answers(outputs, vlms, where=where)
    _log_vlms_left_out(outputs, vlms)
    answers = outputs.join(queries.select("query_id", "benchmark"), on="query_id")
    parts = [asked(answers.filter(pl.col("vlm") == vlm.name), vlm) for vlm in vlms]
    for vlm, part in zip(vlms, parts, strict=True):
        if not part.height:
            _refuse_block_that_asks_nothing(vlm, answers)
    return pl.concat(parts).select(*SCHEMAS["collect"])


def asked(askable: pl.DataFrame, vlm: Vlm) -> pl.DataFrame:
    """The queries that a VLM is asked, of those it can be asked.

    The sample is drawn by the hash of query_id, so a larger one keeps the smaller one's queries, and two VLMs with the
    same number are asked the same ones.

    Args:
        askable: rows with `query_id` and `benchmark`, one a query.
        vlm: its `benchmarks` and `sample` decide.

    Returns:
        The rows that are asked.
    """
    if vlm.benchmarks is not None:
        askable = askable.filter(pl.col("benchmark").is_in(vlm.benchmarks))
    if vlm.sample is None:
        return askable
    drawn = pl.col("query_id").map_elements(_draw, return_dtype=pl.String)
    return askable.sort(drawn).head(vlm.sample)


def refuse_unknown_benchmarks(vlms: Sequence[Vlm], known: set[str]) -> None:
    """Raise ConfigError where a VLM's block names a benchmark that the query set does not have."""
    for vlm in vlms:
        for benchmark in vlm.benchmarks or ():
            if benchmark not in known:
                raise ConfigError(
                    f"vlms: {vlm.name}: benchmarks: unknown benchmark '{benchmark}'; {nearest(benchmark, known)}"
                )


def _draw(query_id: str) -> str:
    return hashlib.sha256(query_id.encode()).hexdigest()


def _refuse_vlms_without_answers(outputs: pl.DataFrame, vlms: Sequence[Vlm], *, where: Path) -> None:
    answered = set(outputs["vlm"])
    missing = [vlm.name for vlm in vlms if vlm.name not in answered]
    if missing:
        raise DataError(
            f"{where}: no answer of {recorded.named(missing, len(missing))}. params.yaml names them in `vlms`: record "
            f"their answers, remove their blocks, or correct the name; '{missing[0]}': {nearest(missing[0], answered)}"
        )


def _refuse_block_that_asks_nothing(vlm: Vlm, answers: pl.DataFrame) -> None:
    there = sorted(set(answers.filter(pl.col("vlm") == vlm.name)["benchmark"]))
    raise ConfigError(
        f"vlms: {vlm.name}: benchmarks: none of its answers is of {', '.join(vlm.benchmarks or ())}; it has answers on "
        f"{', '.join(there)}. Name one of those, or remove the block."
    )


def _log_vlms_left_out(outputs: pl.DataFrame, vlms: Sequence[Vlm]) -> None:
    left_out = outputs.filter(~pl.col("vlm").is_in([vlm.name for vlm in vlms]))
    if left_out.height:
        log.info("left out: %d answers of %d VLMs that params do not name", left_out.height, left_out["vlm"].n_unique())


def body() -> None:
    """Read params and queries, gather the answers, write both pools' tables whole or not at all."""
    settings = load_section("collect", CollectSettings)
    vlms = load_vlms()
    queries = read_table(QUERIES, "queries")
    refuse_unknown_benchmarks(vlms, set(queries["benchmark"]))
    source = recorded.source_folder(settings.folder, where="collect.folder")
    answers = recorded_answers(source, queries=queries, vlms=vlms)
    with folder_written_whole(FOLDER) as folder:
        for pool in POOLS:
            names = [vlm.name for vlm in vlms if vlm.pool == pool]
            table = answers.filter(pl.col("vlm").is_in(names))
            write_table(folder / f"{pool}.parquet", table, "collect")
            log.info("pool %s: %d answers of %d VLMs", pool, table.height, len(names))


def main() -> int:
    """Run the stage; returns the exit code."""
    return run_stage("collect", body)


if __name__ == "__main__":
    sys.exit(main())
