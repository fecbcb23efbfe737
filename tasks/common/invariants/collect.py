"""What must hold of the collected answers, both pools together. `tasks.common.gates` says how it is held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from arms_model.errors import ConfigError
from arms_model.settings import nearest
from tasks.common.asked import asked
from tasks.common.gates import Check, Invariant, none_of_them, table_view, unique, within
from tasks.common.labelling import answered_rightly
from tasks.common.vlms import Pool, Vlm

UNIQUE = Invariant(
    name="collect_pair_unique",
    sentence="A VLM has one answer to a query.",
    remedy="Drop one of the answers from the source.",
)
PRESENT = Invariant(
    name="collect_pair_present",
    sentence="Every query that a VLM's block asks has a row of that VLM: an answer or an error.",
    bounds="but those named in `gates.collect.missing_pairs`",
    remedy=(
        "Add the answers to the source. Where a VLM was never asked them, say so: `benchmarks` or `sample` in its "
        "block, or their query_ids under gates.collect.missing_pairs."
    ),
)
COST = Invariant(
    name="collect_cost_not_negative",
    sentence="No answer cost less than nothing.",
    bounds="0 or more, where known",
    remedy="Correct cost_usd in the source; null where it is not known.",
)
SPENT = Invariant(
    name="collect_spent_not_negative",
    sentence="Nobody was paid less than nothing for all tries at an answer.",
    bounds="0 or more, where known",
    remedy="Correct spent_usd in the source; null where it is not known.",
)
LATENCY = Invariant(
    name="collect_latency_not_negative",
    sentence="No answer came before its question.",
    bounds="0 or more, where known",
    remedy="Correct latency_s in the source; null where it is not known.",
)
INVARIANTS = (UNIQUE, PRESENT, COST, SPENT, LATENCY)


@dataclass(frozen=True, kw_only=True)
class CollectGate:
    """Section `gates.collect`.

    Attributes:
        missing_pairs: VLM -> query_ids that its block asks for and that are known to have no answer in the source.
    """

    missing_pairs: dict[str, list[str]] = field(default_factory=dict)


def checks(
    tables: Mapping[Pool, pl.DataFrame], *, queries: pl.DataFrame, vlms: Sequence[Vlm], gate: CollectGate
) -> list[Check]:
    """The checks of stage `collect`.

    Args:
        tables: table `collect` by pool.
        queries: table `queries`.
        vlms: the VLMs of params.
        gate: section `gates.collect`.

    Raises:
        ConfigError: `missing_pairs` names a VLM or a query that there is not.
    """
    answers = pl.concat(list(tables.values()))
    view = table_view("collect", answers, key=["query_id", "vlm"])
    return [
        unique(UNIQUE, answers, key=["query_id", "vlm"]),
        _pairs_present(tables, queries, vlms, gate),
        Check(invariant=COST, rule=within("cost_usd", least=0), view=view),
        Check(invariant=SPENT, rule=within("spent_usd", least=0), view=view),
        Check(invariant=LATENCY, rule=within("latency_s", least=0), view=view),
    ]


def _pairs_present(
    tables: Mapping[Pool, pl.DataFrame], queries: pl.DataFrame, vlms: Sequence[Vlm], gate: CollectGate
) -> Check:
    _refuse_unknown(gate, {vlm.name for vlm in vlms}, set(queries["query_id"]))
    right: set[str] = set()
    if any(vlm.sample_from == "answered_by_base" for vlm in vlms):
        right = answered_rightly(tables["base"], queries=queries, where="collect/base.parquet")
    askable = queries.select("query_id", "benchmark")
    rows, missing, num_declared = [], [], 0
    for vlm in vlms:
        known = gate.missing_pairs.get(vlm.name, [])
        there = tables[vlm.pool].filter(pl.col("vlm") == vlm.name).select("query_id")
        # a sample of recorded answers is drawn from those that there are, so what is known to be missing is not in it
        own = asked(askable.filter(~pl.col("query_id").is_in(known)), vlm, answered_by_base=right)
        lacking = own.join(there, on="query_id", how="anti")
        missing.append(lacking.select("query_id", pl.lit(vlm.name).alias("vlm"), "benchmark"))
        num_declared += len(set(known) - set(there["query_id"]))
        rows.append({"vlm": vlm.name, "num_asked": own.height, "num_missing": lacking.height})
    summary = pl.DataFrame(rows)
    return Check(
        invariant=PRESENT,
        rule=none_of_them("num_missing"),
        view=table_view("pairs that each VLM is asked", summary, key=["vlm"]),
        checked=int(summary["num_asked"].sum()),
        rows=lambda: pl.concat(missing).sort("vlm", "query_id"),
        key=("query_id", "vlm", "benchmark"),
        declared=num_declared,
    )


def _refuse_unknown(gate: CollectGate, vlms: set[str], query_ids: set[str]) -> None:
    for vlm, known in gate.missing_pairs.items():
        if vlm not in vlms:
            raise ConfigError(f"gates.collect.missing_pairs: no VLM is called '{vlm}'; {nearest(vlm, vlms)}")
        if unknown := sorted(set(known) - query_ids):
            raise ConfigError(f"gates.collect.missing_pairs.{vlm}: no query has the id '{unknown[0]}'; remove it.")
