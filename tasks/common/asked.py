"""Which queries a VLM is asked, by its block: alike for every source of answers."""

import hashlib
from collections.abc import Collection, Sequence

import polars as pl

from arms_model.errors import ConfigError
from arms_model.settings import nearest
from tasks.common.vlms import Vlm


def asked(askable: pl.DataFrame, vlm: Vlm, *, answered_by_base: Collection[str] = ()) -> pl.DataFrame:
    """The queries that a VLM is asked, of those it can be asked.

    The sample is drawn by the hash of query_id, so a larger one keeps the smaller one's queries, and two VLMs with the
    same number are asked the same ones.

    Args:
        askable: rows with `query_id` and `benchmark`, one a query.
        vlm: its `benchmarks`, `sample`, `sample_from` and `whole_benchmarks` decide.
        answered_by_base: queries that a base VLM answered rightly; read where `sample_from` says so.

    Returns:
        The rows that are asked, in the order of the draw: those of a run that stops midway are a sample, too.
    """
    drawn = pl.col("query_id").map_elements(_draw, return_dtype=pl.String)
    askable = askable.sort(drawn)
    if vlm.benchmarks is not None:
        askable = askable.filter(pl.col("benchmark").is_in(vlm.benchmarks))
    is_whole = pl.col("benchmark").is_in(vlm.whole_benchmarks)
    sampled = askable.filter(~is_whole)
    if vlm.sample_from == "answered_by_base":
        sampled = sampled.filter(pl.col("query_id").is_in(list(answered_by_base)))
    if vlm.sample is not None:
        sampled = sampled.head(vlm.sample)
    return pl.concat([sampled, askable.filter(is_whole)])


def first_asked(vlms: Sequence[Vlm]) -> list[Vlm]:
    """The VLMs that can be asked before any answer of the base pool is known; all of pool base are among them."""
    return [vlm for vlm in vlms if vlm.sample_from == "all"]


def refuse_unknown_benchmarks(vlms: Sequence[Vlm], known: set[str]) -> None:
    """Raise ConfigError where a VLM's block names a benchmark that the query set does not have."""
    for vlm in vlms:
        for setting in ("benchmarks", "whole_benchmarks"):
            for benchmark in getattr(vlm, setting) or ():
                if benchmark not in known:
                    raise ConfigError(
                        f"vlms: {vlm.name}: {setting}: unknown benchmark '{benchmark}'; {nearest(benchmark, known)}"
                    )


def _draw(query_id: str) -> str:
    return hashlib.sha256(query_id.encode()).hexdigest()
