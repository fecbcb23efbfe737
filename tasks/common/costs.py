"""What asking costs, for the accuracy-cost plane: what every answer did cost, and what a router can expect beforehand.

Costs come, per VLM, from the best that is known: `measured` (tokens counted by its endpoint, at today's prices of its
block), `list` (prices of its block, assumed token counts) or `assumed` (no price in its block: by its parameters). So a
price change moves this plane and retrains nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from arms_model.baselines.protocol import Queries
from arms_model.evaluation import MACRO, ORACLE, Method
from arms_model.intervals import cluster_bootstrap
from arms_model.metrics import choose, outcomes
from tasks.common.vlms import Vlm

MEASURED, LIST, ASSUMED = "measured", "list", "assumed"
ASKED_NEARLY_ALL = 0.95
_MTOK = 1_000_000


@dataclass(frozen=True, kw_only=True)
class AssumedPrices:
    """Section `cascade_eval.assumed_prices`: what stands in for what nobody measured.

    Attributes:
        prompt_tokens: of a question with its picture.
        completion_tokens: of an answer.
        usd_per_mtok_per_b: price of a million tokens for each billion of parameters, where a block has no price.
        usd_per_mtok: price of a million tokens where neither price nor parameters are known.
    """

    prompt_tokens: float = 700.0
    completion_tokens: float = 100.0
    usd_per_mtok_per_b: float = 0.02
    usd_per_mtok: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number of 0 or more, not {value}")


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of N queries for K VLMs, USD.

    Attributes:
        spent: (N, K) what the answer did cost, or `expected` where that is not known.
        expected: (K,) what one answer costs in the mean, known before asking.
        sources: K of `measured`, `list`, `assumed`.
    """

    spent: NDArray[np.float64]
    expected: NDArray[np.float64]
    sources: tuple[str, ...]

    def take(self, rows: NDArray[np.int64]) -> "Costs":
        """The costs of some queries."""
        return Costs(spent=self.spent[rows], expected=self.expected, sources=self.sources)


def costs_of(
    collected: pl.DataFrame,
    *,
    query_ids: Sequence[str],
    is_training: NDArray[np.bool_],
    vlms: Sequence[Vlm],
    assumed: AssumedPrices,
) -> Costs:
    """Costs by today's prices.

    Args:
        collected: table `collect` of both pools.
        query_ids: N names, the rows.
        is_training: (N,) the queries that expectations may be made from.
        vlms: K blocks, the columns.
        assumed: what stands in for what is not known.
    """
    row_of = {query_id: row for row, query_id in enumerate(query_ids)}
    counted = collected.drop_nulls(["prompt_tokens", "completion_tokens"]).partition_by("vlm", as_dict=True)
    spent, expected, sources = np.empty((len(query_ids), len(vlms))), np.empty(len(vlms)), []
    for column, vlm in enumerate(vlms):
        own = counted.get((vlm.name,))
        by_row = np.full(len(query_ids), np.nan)
        if own is not None and vlm.is_priced:
            for query_id, prompt, completion in own.select(
                "query_id", "prompt_tokens", "completion_tokens"
            ).iter_rows():
                by_row[row_of[query_id]] = vlm.cost_usd(prompt_tokens=prompt, completion_tokens=completion)
        known = ~np.isnan(by_row)
        if known.any():
            trained_on = known & is_training
            expected[column], source = by_row[trained_on if trained_on.any() else known].mean(), MEASURED
        else:
            expected[column], source = _unmeasured(vlm, assumed)
        spent[:, column] = np.where(known, by_row, expected[column])
        sources.append(source)
    return Costs(spent=spent, expected=expected, sources=tuple(sources))


def _unmeasured(vlm: Vlm, assumed: AssumedPrices) -> tuple[float, str]:
    listed = vlm.cost_usd(prompt_tokens=assumed.prompt_tokens, completion_tokens=assumed.completion_tokens)
    if listed is not None:
        return listed, LIST
    price = assumed.usd_per_mtok if vlm.params_b is None else assumed.usd_per_mtok_per_b * vlm.params_b
    return price * (assumed.prompt_tokens + assumed.completion_tokens) / _MTOK, ASSUMED


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """A point of the plane before it is scored.

    Attributes:
        kind: `single`, `router`, `curve`, `baseline` or `oracle`.
        name: as shown.
        column: (N,) int64 the VLM asked, -1 without a candidate.
        trade_off: of a `curve` point, EM given up for a USD per query, in 1/USD.
        single: of a `single` point, the VLM's column.
    """

    kind: str
    name: str
    column: NDArray[np.int64]
    trade_off: float | None = None
    single: int | None = None


def trade_off_curve(
    name: str, confidences: NDArray[np.floating], candidates: NDArray[np.bool_], costs: Costs, *, points: int = 24
) -> list[CostPoint]:
    """Choices of greatest confidence minus `trade_off` times expected cost, from no thought of cost to the cheapest.

    Args:
        name: of the router.
        confidences: (N, K).
        candidates: (N, K) bool.
        costs: of these queries.
        points: how many trade-offs beside 0, evenly spaced on a logarithmic scale.
    """
    spread = float(costs.expected.max() - costs.expected.min())
    if spread <= 0:
        return [CostPoint(kind="curve", name=name, column=choose(confidences, candidates), trade_off=0.0)]
    trade_offs = [0.0, *np.geomspace(0.01 / spread, 100 / spread, points)]
    return [
        CostPoint(
            kind="curve",
            name=name,
            column=choose(confidences - trade_off * costs.expected, candidates),
            trade_off=float(trade_off),
        )
        for trade_off in trade_offs
    ]


def cheapest_right(correct: NDArray[np.floating], costs: Costs) -> NDArray[np.int64]:
    """(N,) the oracle's choice: the cheapest VLM that is right; where none is, the cheapest candidate."""
    candidates = ~np.isnan(correct)
    right = correct == 1
    worth = np.where(right.any(axis=1, keepdims=True), right, candidates)
    return choose(-costs.spent, candidates & worth)


def cost_plane(
    routers: Sequence[Method], others: Sequence[Method], *, correct: NDArray[np.float32], costs: Costs
) -> list[CostPoint]:
    """The points of the accuracy-cost plane: all methods, the routers' curves, and the cheapest right VLM as the limit.

    A curve starts from the same confidences as the router's own row; of the cascade's rows, which differ in tau alone,
    the one that always compares both routers gives it.
    """
    curves = {str(method.settings.get("strategy", method.name)): method for method in routers}
    return [
        *(
            CostPoint(kind=method.kind, name=method.name, column=method.chosen[0], single=method.column)
            for method in (*others, *routers)
            if method.chosen is not None
        ),
        *(
            point
            for name, method in curves.items()
            if method.confidences is not None
            for point in trade_off_curve(name, method.confidences[0], ~np.isnan(correct), costs)
        ),
        CostPoint(kind="oracle", name=ORACLE, column=cheapest_right(correct, costs)),
    ]


def plane_rows(
    points: Sequence[CostPoint],
    *,
    correct: NDArray[np.float32],
    costs: Costs,
    queries: Queries,
    draws: int,
    seed: int,
) -> list[dict[str, float | str | None]]:
    """Score the points per benchmark and as the macro average: EM with its interval, and what 1,000 queries cost.

    A single VLM stands where it was asked nearly every query (`ASKED_NEARLY_ALL`); a gap is filled as its choices say.

    Args:
        points: choices for the same N queries.
        correct: (N, K) labels that count; every query has some.
        costs: of these queries.
        queries: their benchmarks and groups.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    names = [str(name) for name in np.unique(queries.benchmark)]
    rows = []
    for where in (*names, MACRO):
        inside = np.flatnonzero(np.isin(queries.benchmark, names if where == MACRO else [where]))
        shown = [point for point in points if _is_shown(point, correct, queries.benchmark, inside)]
        rows += [{"benchmark": where, **row} for row in _rows(shown, correct, costs, queries, inside, draws, seed)]
    return rows


def _is_shown(
    point: CostPoint, correct: NDArray[np.float32], benchmark: NDArray[np.str_], inside: NDArray[np.int64]
) -> bool:
    if (point.column[inside] < 0).any():
        return False
    if point.single is None:
        return True
    asked = ~np.isnan(correct[inside, point.single])
    return all(asked[benchmark[inside] == name].mean() >= ASKED_NEARLY_ALL for name in np.unique(benchmark[inside]))


def _rows(
    points: Sequence[CostPoint],
    correct: NDArray[np.float32],
    costs: Costs,
    queries: Queries,
    inside: NDArray[np.int64],
    draws: int,
    seed: int,
) -> list[dict[str, float | str | None]]:
    right = np.stack([outcomes(correct[inside], point.column[inside]) for point in points])
    benchmark = queries.benchmark[inside]
    bootstrap = cluster_bootstrap(right, groups=queries.group[inside], benchmarks=benchmark, draws=draws, seed=seed)
    rows: list[dict[str, float | str | None]] = []
    for number, point in enumerate(points):
        em, column = bootstrap.interval(number), point.column[inside]
        asked = costs.spent[inside, column]
        mean = np.mean([asked[benchmark == name].mean() for name in bootstrap.benchmarks])
        used = {costs.sources[vlm] for vlm in np.unique(column)}
        rows.append(
            {
                "kind": point.kind,
                "name": point.name,
                "trade_off": point.trade_off,
                "num_queries": float(len(column)),
                "em": em.mean,
                "em_low": em.low,
                "em_high": em.high,
                "cost_usd_per_1000": 1000 * float(mean),
                "prices": ", ".join(sorted(used, key=(MEASURED, LIST, ASSUMED).index)),
            }
        )
    return rows
