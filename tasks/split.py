"""Stage `split`: which queries train, validate, gate promotions, and test, by the hash of their group.

A group (near-copies of one picture, or draws of one template) stands on one side only, and keeps it when queries or
VLMs are added. Nothing is filtered here: the filter 'no VLM right' is applied when a training set or a table is built.

**Decision**: where a group stands both in an out-of-distribution benchmark or task and outside, the whole group goes to
test_ood. So nothing that resembles an out-of-distribution query is ever trained on; the number is logged.

Run: `python -m tasks.split`; reads `queries/queries.parquet`, writes `split/split.parquet` and `gates/split.json`.
"""

import dataclasses
import logging
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from arms_model.errors import ConfigError
from arms_model.folds import assign_split
from arms_model.settings import nearest
from tasks.common.gates import hold
from tasks.common.invariants.split import SplitGate, checks
from tasks.common.params import load_gate, load_section
from tasks.common.stage import run_stage
from tasks.common.tables import SCHEMAS, read_table, write_table

log = logging.getLogger(__name__)
QUERIES = Path("queries/queries.parquet")
SPLIT = Path("split/split.parquet")


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the groups that are not out of distribution; they sum to 1."""

    train: float = 0.55
    validation: float = 0.15
    gate: float = 0.10
    test_id: float = 0.20

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        if min(values.values()) < 0 or not math.isclose(sum(values.values()), 1, abs_tol=1e-9):
            raise ValueError(f"shares must be 0 or more and sum to 1, not {values} (sum {sum(values.values()):g})")


@dataclass(frozen=True, kw_only=True)
class OutOfDistribution:
    """Benchmarks and tasks held out whole, as `test_ood`."""

    benchmarks: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Section `split`.

    Attributes:
        group_by: `image_group` (known templates, new pictures) or `template` (unknown templates).
        shares: how large the splits are.
        ood: what is held out whole.
    """

    group_by: Literal["image_group", "template"] = "image_group"
    shares: Shares = field(default_factory=Shares)
    ood: OutOfDistribution = field(default_factory=OutOfDistribution)


def split_queries(queries: pl.DataFrame, settings: SplitSettings) -> pl.DataFrame:
    """Give every query its split.

    Args:
        queries: table `queries`.
        settings: section `split`.

    Returns:
        Table `split`, a row per query.

    Raises:
        ConfigError: an out-of-distribution benchmark or task that no query has.
    """
    for column, names in (("benchmark", settings.ood.benchmarks), ("task", settings.ood.tasks)):
        _refuse_unknown(names, set(queries[column]), where=f"split.ood.{column}s")
    is_ood = pl.col("benchmark").is_in(settings.ood.benchmarks) | pl.col("task").is_in(settings.ood.tasks)
    frame = queries.select("query_id", _group(settings), is_ood.alias("is_ood"))
    frame = frame.with_columns(pl.col("is_ood").any().over("group").alias("group_is_ood"))
    drawn_along = frame.filter(pl.col("group_is_ood") & ~pl.col("is_ood")).height
    if drawn_along:
        log.info("%d queries go to test_ood because their group also holds out-of-distribution queries", drawn_along)
    shares = dataclasses.asdict(settings.shares)
    side = {name: assign_split(name, shares) for name in frame["group"].unique()}
    split = pl.when("group_is_ood").then(pl.lit("test_ood")).otherwise(pl.col("group").replace_strict(side, default=""))
    return frame.with_columns(split.alias("split")).select(*SCHEMAS["split"])


def _group(settings: SplitSettings) -> pl.Expr:
    """What a query shares with its near-copies; its picture's own hash where no group is given."""
    group = pl.col(settings.group_by)
    return pl.when(group == "").then(pl.col("image_sha256")).otherwise(group).alias("group")


def _refuse_unknown(names: list[str], known: set[str], *, where: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{where}: no query has '{name}'; {nearest(name, known)}")


def body() -> None:
    """Read params and queries, split, hold the gate, write the splits."""
    settings = load_section("split", SplitSettings)
    gate = load_gate("split", SplitGate)
    queries = read_table(QUERIES, "queries")
    split = split_queries(queries, settings)
    has_ood = bool(settings.ood.benchmarks or settings.ood.tasks)
    groups = queries.select("query_id", _group(settings))
    findings = hold("split", checks(split, groups, gate=gate, has_ood=has_ood))
    write_table(SPLIT, split, "split")
    findings.write()
    counts = split.group_by("split").len().sort("split").iter_rows()
    log.info("%s", ", ".join(f"{count} {name}" for name, count in counts))


def main() -> int:
    """Run the stage; returns the exit code."""
    return run_stage("split", body)


if __name__ == "__main__":
    sys.exit(main())
