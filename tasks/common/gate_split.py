"""Challenger against champion on the queries of split `gate`: scored anew, with today's labels and the kept vectors.

Each chooses among all VLMs that it knows, where a query has a label: what a version gains by knowing more VLMs counts,
and so does what it loses by knowing fewer. The rule and its numbers are `arms_model.promotion`; what is said about them
is here.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from arms_model.answering import ServedRouter
from arms_model.errors import DataError
from arms_model.metrics import outcomes
from arms_model.promotion import Verdict, compare
from tasks.common.comparison import scored_labels
from tasks.common.dataset import groups_of, load_labels, load_queries, load_splits
from tasks.common.routers import router_vectors

SPLIT = "gate"


@dataclass(frozen=True, kw_only=True)
class GateSplit:
    """The labelled queries of split `gate`.

    Attributes:
        queries: N rows.
        vlms: K names, sorted.
        correct: (N, K) the labels that count; NaN where not asked.
        groups: (N,) str, what the bootstrap resamples.
    """

    queries: pl.DataFrame
    vlms: tuple[str, ...]
    correct: NDArray[np.float32]
    groups: NDArray[np.str_]


def load_gate_split(group_by: str) -> GateSplit:
    """The queries with their labels of both pools.

    Args:
        group_by: column that the groups come from.

    Raises:
        DataError: no query of the split has a label.
    """
    queries = load_queries()
    labels = load_labels(queries, ["base", "new"])
    correct = scored_labels(queries, labels.vlms, labels.correct)
    rows = np.flatnonzero((load_splits(queries) == SPLIT) & (~np.isnan(correct)).any(1))
    if not len(rows):
        raise DataError(f"no query of split {SPLIT} has a label; look at split.shares and at the label tables.")
    return GateSplit(
        queries=queries[rows.tolist()],
        vlms=labels.vlms,
        correct=correct[rows],
        groups=groups_of(queries, group_by)[rows],
    )


def outcomes_on(gate: GateSplit, served: ServedRouter) -> NDArray[np.float64]:
    """Whether the VLM that a served router chooses is right.

    Args:
        gate: the queries.
        served: the router; it chooses among the VLMs that it knows, where they are labelled.

    Returns:
        (N,) float64 in {0, 1}; NaN without a candidate.
    """
    confidences = served.confidences([router_vectors(router, gate.queries) for router in served.routers])
    correct = np.full(confidences.shape, np.nan, dtype=np.float32)
    for column, vlm in enumerate(served.vlms):
        if vlm in gate.vlms:
            correct[:, column] = gate.correct[:, gate.vlms.index(vlm)]
    return outcomes(correct, served.choose(confidences, ~np.isnan(correct)).column)


def judge(
    gate: GateSplit,
    *,
    champion: ServedRouter,
    challenger: ServedRouter,
    margin: float,
    level: float,
    draws: int,
    seed: int,
) -> Verdict:
    """Hold the challenger against the champion; see `arms_model.promotion.compare`."""
    return compare(
        outcomes_on(gate, champion),
        outcomes_on(gate, challenger),
        groups=gate.groups,
        benchmarks=np.asarray(gate.queries["benchmark"].to_list(), dtype=np.str_),
        margin=margin,
        level=level,
        draws=draws,
        seed=seed,
    )


def verdict_lines(verdict: Verdict, *, num_vlms: int) -> list[str]:
    """The verdict for people.

    Args:
        verdict: of `judge`.
        num_vlms: of the two together: what a further query costs in labels.
    """
    difference = verdict.difference
    lines = [
        f"split {SPLIT}: {verdict.num_queries:,} queries in {verdict.num_groups:,} groups compared, "
        f"{verdict.num_left_out:,} left out (one of the two has no labelled candidate)",
        f"macro EM: challenger {verdict.challenger_em:.4f}, champion {verdict.champion_em:.4f}",
        f"difference {difference.mean:+.4f}, {verdict.level * 100:g} % interval "
        f"[{difference.low:+.4f}, {difference.high:+.4f}]",
        f"rule: refuse where the upper end is below 0, promote where the lower end is above {-verdict.margin:g}",
        f"decision: {verdict.decision}",
    ]
    if verdict.reason:
        lines.append(verdict.reason)
    if verdict.needed is not None:
        labels = f"{verdict.needed * num_vlms:,} labels for {num_vlms} VLMs"
        outcome = "before an interval can be given"
        if verdict.direction:
            outcome = f"would {verdict.direction} it, if the difference stays as it is"
        lines.append(f"about {verdict.needed:,} further labelled queries ({labels}) {outcome}")
    return lines
