"""Ways to serve the trained routers: one alone, or two joined by Algorithm 1; and which of them to put forward.

A strategy is picked on queries that no test split holds: the held-out confidences of the train stages, that is, of
networks that had not seen the query. Split `gate` stays untouched for the promotion, test splits for the report.

**Decision**: tau and strategy have the highest macro EM there; among equals the one that runs fewer routers wins. The
paper sweeps tau on its test set (Fig. 7b), which says nothing of how to choose it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arms_model.cascade import cascade
from arms_model.intervals import cluster_bootstrap
from arms_model.metrics import choose, outcomes

BASE, INCREMENTAL, INDEPENDENT = "base", "incremental", "independent"
STAGE_OF = {BASE: "train_base", INCREMENTAL: "train_incremental", INDEPENDENT: "train_independent"}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Confidences of the three routers on some queries, (N, K) over all VLMs; NaN in columns a router does not know.

    Attributes:
        base: the base router.
        incremental: None where there was nothing to learn.
        independent: likewise.
    """

    base: NDArray[np.float32]
    incremental: NDArray[np.float32] | None
    independent: NDArray[np.float32] | None

    def take(self, rows: NDArray[np.int64]) -> "Scores":
        """The scores of some rows."""
        taken = {name: None if part is None else part[rows] for name, part in vars(self).items()}
        return Scores(**taken)  # type: ignore[arg-type]

    def of(self, router: str) -> NDArray[np.float32] | None:
        """The confidences of the router of that name."""
        found: NDArray[np.float32] | None = getattr(self, router)
        return found


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a strategy does with some queries.

    Attributes:
        column: (N,) int64 chosen VLM, -1 without a candidate.
        confidences: (N, K) float32 of the router that scores each VLM; NaN where none does.
        is_new_run: (N,) bool, whether the second router was run.
    """

    column: NDArray[np.int64]
    confidences: NDArray[np.float32]
    is_new_run: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to serve.

    Attributes:
        routers: one router's name, or the base router's and another's.
        tau: threshold of the cascade; None for one router.
    """

    routers: tuple[str, ...]
    tau: float | None = None

    @property
    def name(self) -> str:
        """As people call it, without tau."""
        return " + ".join(self.routers)

    def choose(self, scores: Scores, candidates: NDArray[np.bool_], is_base: NDArray[np.bool_]) -> Choice:
        """Choose a VLM for each query.

        Args:
            scores: of every router that the strategy runs.
            candidates: (N, K) bool; those that no router of the strategy scores are passed over.
            is_base: (K,) bool, the VLMs of pool base.
        """
        parts = [part for router in self.routers if (part := scores.of(router)) is not None]
        if self.tau is None:
            known = candidates & ~np.isnan(parts[0])
            return Choice(
                column=choose(parts[0], known), confidences=parts[0], is_new_run=np.zeros(len(known), dtype=np.bool_)
            )
        base, new = parts
        confidences = np.where(is_base, base, new)
        known = candidates & ~np.isnan(confidences)
        columns_base, columns_new = np.flatnonzero(is_base), np.flatnonzero(~is_base)
        choice = cascade(
            base[:, columns_base],
            base_candidates=known[:, columns_base],
            new_confidence=new[:, columns_new],
            new_candidates=known[:, columns_new],
            tau=self.tau,
        )
        column = choice.joint_column(columns_base, columns_new)
        return Choice(column=column, confidences=confidences, is_new_run=choice.is_new_run)


def cascades(scores: Scores, taus: Sequence[float]) -> list[Strategy]:
    """Base and a second router joined, for each second router that there is and each tau, in this order."""
    return [
        Strategy(routers=(BASE, second), tau=tau)
        for second in (INDEPENDENT, INCREMENTAL)
        if scores.of(second) is not None
        for tau in taus
    ]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Queries that the routers' networks had not seen, with their labels.

    Attributes:
        scores: confidences of such networks; NaN where a query was not held out, or the VLM is unknown to the router.
        correct: (N, K) labels that count; NaN where not asked.
        is_base: (K,) bool.
        benchmark: (N,) str.
        group: (N,) str, what the bootstrap resamples.
        vlms: K names.
    """

    scores: Scores
    correct: NDArray[np.float32]
    is_base: NDArray[np.bool_]
    benchmark: NDArray[np.str_]
    group: NDArray[np.str_]
    vlms: tuple[str, ...]


def select(held_out: HeldOut, *, taus: Sequence[float], draws: int, seed: int) -> dict[str, Any]:
    """Score all strategies on the same held-out queries and pick the one to put forward.

    Those are the queries with a label of a new VLM on which every router was held out (all with a base label where no
    new VLM was learnt). A query for which a strategy knows no labelled VLM counts as wrong.

    Args:
        held_out: the queries.
        taus: thresholds that a cascade may have; each cascade stands in the result with its best one.
        draws: of the bootstrap, for the intervals.
        seed: of the bootstrap.

    Returns:
        `challenger` (a strategy's name), `num_queries`, and `strategies`: name, routers (folders under models/), tau,
        vlms, em, em_low, em_high.
    """
    scores, candidates = held_out.scores, ~np.isnan(held_out.correct)
    alone = [Strategy(routers=(name,)) for name in (BASE, INCREMENTAL) if scores.of(name) is not None]
    everything = [*alone, *cascades(scores, taus)]
    rows = _common_rows(scores, candidates, held_out.is_base)
    part, right = scores.take(rows), np.zeros((len(everything), len(rows)))
    for number, strategy in enumerate(everything):
        column = strategy.choose(part, candidates[rows], held_out.is_base).column
        right[number] = np.nan_to_num(outcomes(held_out.correct[rows], column), nan=0.0)
    entries = []
    if len(rows):
        bootstrap = cluster_bootstrap(
            right, groups=held_out.group[rows], benchmarks=held_out.benchmark[rows], draws=draws, seed=seed
        )
        em = [bootstrap.interval(number) for number in range(len(everything))]
        for name in dict.fromkeys(strategy.name for strategy in everything):
            own = [number for number, strategy in enumerate(everything) if strategy.name == name]
            best = max(own, key=lambda number: em[number].mean)  # the first of equals: the lowest tau runs fewest
            entries.append(_entry(everything[best], held_out, em[best].mean, em[best].low, em[best].high))
    else:  # nothing was held out: no validation labels; what can be served is still named
        for name in dict.fromkeys(strategy.name for strategy in everything):
            last = [strategy for strategy in everything if strategy.name == name][-1]
            entries.append(_entry(last, held_out, None, None, None))
    offered = [entry for entry in entries if len(entries) == 1 or entry["strategy"] != BASE]
    challenger = max(offered, key=lambda entry: entry["em"] or 0.0)
    return {"challenger": challenger["strategy"], "num_queries": len(rows), "strategies": entries}


def _common_rows(scores: Scores, candidates: NDArray[np.bool_], is_base: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows on which each router was held out from every labelled VLM that it knows, and that tell strategies apart."""
    learnt = [router for router in (INCREMENTAL, INDEPENDENT) if scores.of(router) is not None]
    keep = (candidates & (~is_base if learnt else is_base)).any(axis=1)
    for router in (BASE, *learnt):
        confidences = scores.of(router)
        if confidences is not None:
            known = ~np.isnan(confidences)
            keep &= ~(candidates & known.any(axis=0) & ~known).any(axis=1)
    return np.flatnonzero(keep)


def _entry(
    strategy: Strategy, held_out: HeldOut, em: float | None, low: float | None, high: float | None
) -> dict[str, Any]:
    vlms = [vlm for vlm, known in zip(held_out.vlms, _known(strategy, held_out), strict=True) if known]
    return {
        "strategy": strategy.name,
        "routers": [STAGE_OF[router] for router in strategy.routers],
        "tau": strategy.tau,
        "vlms": vlms,
        "em": em,
        "em_low": low,
        "em_high": high,
    }


def _known(strategy: Strategy, held_out: HeldOut) -> NDArray[np.bool_]:
    """(K,) the VLMs that the strategy can choose."""
    if strategy.routers == (BASE,):
        return held_out.is_base
    return np.ones_like(held_out.is_base)
