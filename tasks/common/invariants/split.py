"""What must hold of the splits. `tasks.common.gates` says how it is held."""

import dataclasses
from dataclasses import dataclass, field

import polars as pl

from tasks.common.gates import Check, Invariant, at_least, none_of_them, one_of, table_view
from tasks.common.tables import SPLITS

ONCE = Invariant(
    name="split_query_once",
    sentence="Every query stands in exactly one split, and nothing else does.",
    remedy="Report it: stage split lost or doubled a query.",
)
KNOWN = Invariant(
    name="split_name_known",
    sentence="Every split is one that later stages know.",
    bounds=", ".join(SPLITS),
    remedy="Report it: stage split made up a name.",
)
GROUP = Invariant(
    name="split_group_in_one",
    sentence="Near-copies, which share a group, stand in one split: none is trained on and tested on.",
    remedy="Report it: stage split parted a group.",
)
ENOUGH = Invariant(
    name="split_enough_queries",
    sentence="Every split has enough queries for what it is used for.",
    bounds="`gates.split.min_queries`; test_ood only where `split.ood` names something",
    remedy="Bring more queries in, change split.shares, or lower gates.split.min_queries.",
)
INVARIANTS = (ONCE, KNOWN, GROUP, ENOUGH)


@dataclass(frozen=True, kw_only=True)
class MinQueries:
    """The least number of queries per split."""

    train: int = 100
    validation: int = 20
    gate: int = 20
    test_id: int = 20
    test_ood: int = 20

    def __post_init__(self) -> None:
        if min(dataclasses.asdict(self).values()) < 0:
            raise ValueError(f"numbers of queries must be 0 or more, not {dataclasses.asdict(self)}")


@dataclass(frozen=True, kw_only=True)
class SplitGate:
    """Section `gates.split`."""

    min_queries: MinQueries = field(default_factory=MinQueries)


def checks(split: pl.DataFrame, groups: pl.DataFrame, *, gate: SplitGate, has_ood: bool) -> list[Check]:
    """The checks of stage `split`.

    Args:
        split: table `split`.
        groups: query_id and group, a row per query of the query set.
        gate: section `gates.split`.
        has_ood: whether params hold anything out as test_ood.
    """
    return [
        _once(split, groups),
        Check(
            invariant=KNOWN,
            rule=one_of("split", SPLITS),
            view=table_view("split", split, key=["query_id"]),
        ),
        _group_in_one(split, groups),
        _enough(split, gate, has_ood=has_ood),
    ]


def _once(split: pl.DataFrame, groups: pl.DataFrame) -> Check:
    counts = split.group_by("query_id").len("num_splits")
    both = groups.select("query_id", pl.lit(1).alias("is_query")).join(counts, on="query_id", how="full", coalesce=True)
    both = both.with_columns(pl.col("num_splits", "is_query").fill_null(0))
    faults = both.filter((pl.col("num_splits") != 1) | (pl.col("is_query") != 1))
    summary = pl.DataFrame({"num_queries": [groups.height], "num_not_once": [faults.height]})
    return Check(
        invariant=ONCE,
        rule=none_of_them("num_not_once"),
        view=table_view("queries and their splits", summary, key=["num_queries"]),
        checked=both.height,
        rows=lambda: faults.select("query_id", "num_splits", "is_query").sort("query_id"),
        key=("query_id", "num_splits"),
    )


def _group_in_one(split: pl.DataFrame, groups: pl.DataFrame) -> Check:
    placed = groups.select("query_id", "group").join(split, on="query_id")
    is_parted = pl.col("split").n_unique().over("group") > 1
    faults = placed.filter(is_parted)
    num_groups = groups["group"].n_unique()
    summary = pl.DataFrame({"num_groups": [num_groups], "num_parted": [faults["group"].n_unique()]})
    return Check(
        invariant=GROUP,
        rule=none_of_them("num_parted"),
        view=table_view("groups and their splits", summary, key=["num_groups"]),
        checked=placed.height,
        rows=lambda: faults.sort("group", "query_id"),
        key=("group", "query_id", "split"),
    )


def _enough(split: pl.DataFrame, gate: SplitGate, *, has_ood: bool) -> Check:
    least = dataclasses.asdict(gate.min_queries)
    if not has_ood:
        del least["test_ood"]
    count = dict(split.group_by("split").len().iter_rows())
    rows = [{"split": name, "num_queries": count.get(name, 0), "least": number} for name, number in least.items()]
    return Check(
        invariant=ENOUGH,
        rule=at_least("num_queries", "least", bounds=least),
        view=table_view("queries per split", pl.DataFrame(rows), key=["split"]),
        observed={row["split"]: row["num_queries"] for row in rows},
    )
