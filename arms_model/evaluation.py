"""One table for all methods on the same queries: EM with intervals, differences, gap recovered, and pair figures.

A method is a choice per query and seed, with confidences where it has them. Everything is computed per benchmark and as
the macro average over benchmarks, over one pool's candidates (a query's candidates are the VLMs with a label for it).

Headline is unfiltered EM; filtered EM (the paper's view: queries that some VLM of the extended pool answers) stands
beside it with its number of queries. Pair figures are always unfiltered.

Source: arXiv 2606.08970, section 5.1.2 (EM, Accuracy, Precision, Recall, F1); intervals and calibration are ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from arms_model.errors import DataError
from arms_model.intervals import Bootstrap, cluster_bootstrap
from arms_model.metrics import (
    choose,
    exact_match,
    expected_calibration_error,
    gap_recovered,
    oracle_outcomes,
    outcomes,
    pair_metrics,
    random_outcomes,
)

MACRO = "macro"
RANDOM, ORACLE = "random", "oracle"
Kind = Literal["router", "baseline", "single", "limit"]
Row = dict[str, float | str]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The queries and labels that one table is about.

    Attributes:
        correct: (N, K) labels that are scored; NaN where the VLM is no candidate of this pool.
        answered: (N,) bool, the fixed filter: some VLM of the extended pool answers the query.
        benchmark: (N,) str.
        group: (N,) str, what the bootstrap resamples.
        own: (N, K) our own labels where `correct` comes from elsewhere; None where they are the same.
    """

    correct: NDArray[np.float32]
    answered: NDArray[np.bool_]
    benchmark: NDArray[np.str_]
    group: NDArray[np.str_]
    own: NDArray[np.float32] | None = None

    @property
    def candidates(self) -> NDArray[np.bool_]:
        """(N, K) bool."""
        return ~np.isnan(self.correct)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row's choices.

    Attributes:
        name: as shown.
        kind: what it is.
        chosen: (S, N) int64 columns, one line per seed, -1 without a candidate; None for `random` and `oracle`.
        column: of a single VLM, the column it is.
        confidences: (S, N, K) float in [0, 1]; None where the method has none.
        settings: columns that stand in each of its rows as they are, such as a threshold.
        per_query: further figures (N,) by column, averaged over the queries as EM is.
    """

    name: str
    kind: Kind
    chosen: NDArray[np.int64] | None = None
    column: int | None = None
    confidences: NDArray[np.float32] | None = None
    settings: Mapping[str, float | str] = field(default_factory=dict)
    per_query: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)


def by_confidence(
    name: str, kind: Kind, confidences: Sequence[NDArray[np.floating]], candidates: NDArray[np.bool_]
) -> Method:
    """A method that chooses the most confident candidate.

    Args:
        name: as shown.
        kind: what it is.
        confidences: per seed (N, K) in [0, 1].
        candidates: (N, K) bool.
    """
    return Method(
        name=name,
        kind=kind,
        chosen=np.stack([choose(part, candidates) for part in confidences]),
        confidences=np.stack([np.asarray(part, dtype=np.float32) for part in confidences]),
    )


def single_vlms(vlms: Sequence[str], order: NDArray[np.floating], candidates: NDArray[np.bool_]) -> list[Method]:
    """Always the same VLM; without a label for a query it passes to the next in the training order.

    Args:
        vlms: K names.
        order: (N, K) training means, as of `BestSingle`.
        candidates: (N, K) bool.
    """
    methods = []
    for column, vlm in enumerate(vlms):
        scores = np.array(order, dtype=np.float64)
        scores[:, column] = 2.0
        methods.append(Method(name=vlm, kind="single", chosen=choose(scores, candidates)[None], column=column))
    return methods


def evaluate(
    methods: Sequence[Method], pool: Pool, *, references: Sequence[str], draws: int = 10_000, seed: int = 0
) -> list[Row]:
    """The table of one pool.

    Args:
        methods: the methods; `random` and `oracle` are added here.
        pool: what they are scored on.
        references: names of methods that all are compared with (paired differences); `references[0]` is the best
            single that the gap recovered starts from.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Rows per benchmark and macro, in the methods' order. A single VLM has rows for the benchmarks that asked it.

    Raises:
        DataError: no query has a candidate, or a reference is not among the methods.
    """
    if not pool.candidates.any():
        raise DataError("no query of this pool has a labelled candidate; nothing to evaluate.")
    extremes = [Method(name=RANDOM, kind="baseline"), Method(name=ORACLE, kind="limit")]
    methods = [*methods, *extremes]
    names = [method.name for method in methods]
    for reference in references:
        if reference not in names:
            raise DataError(f"reference '{reference}' is not among the methods: {', '.join(names)}.")
    per_seed = [_right(method, pool, pool.correct) for method in methods]
    right = np.stack([part.mean(0) for part in per_seed])  # (M, N)
    unfiltered, filtered = (
        cluster_bootstrap(part, groups=pool.group, benchmarks=pool.benchmark, draws=draws, seed=seed)
        for part in (right, np.where(pool.answered, right, np.nan))
    )
    own = None if pool.own is None else np.stack([_right(m, pool, pool.own).mean(0) for m in methods])
    rows: list[Row] = []
    for where in (*unfiltered.benchmarks, None):
        parts = [pool.benchmark == name for name in ((where,) if where else unfiltered.benchmarks)]
        inside = np.logical_or.reduce(parts)
        for number, method in enumerate(methods):
            if method.column is not None and not (where and pool.candidates[inside, method.column].any()):
                continue  # a single VLM stands in the benchmarks that asked it, and has no macro average
            row: Row = {"benchmark": where or MACRO, "method": method.name, "kind": method.kind}
            row |= _em_columns(unfiltered, filtered, number, names, references, where)
            seeds = [_mean_over(exact_match(outcome[part]) for part in parts) for outcome in per_seed[number]]
            row["em_seed_sd"] = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else float("nan")
            if own is not None:
                row["em_own_labels"] = _mean_over(exact_match(own[number][part]) for part in parts)
            row |= _pair_columns(method, per_seed[number], pool, parts)
            row |= method.settings
            some = pool.candidates.any(1)
            for name, figure in method.per_query.items():
                row[name] = _mean_over(exact_match(figure[part & some]) for part in parts)
            rows.append(row)
    return rows


def _right(method: Method, pool: Pool, correct: NDArray[np.float32]) -> NDArray[np.float64]:
    """(S, N) outcomes."""
    if method.chosen is None:
        extreme = oracle_outcomes if method.kind == "limit" else random_outcomes
        return extreme(correct, pool.candidates)[None]
    return np.stack([outcomes(correct, chosen) for chosen in method.chosen])


def _em_columns(
    unfiltered: Bootstrap,
    filtered: Bootstrap,
    number: int,
    names: Sequence[str],
    references: Sequence[str],
    where: str | None,
) -> Row:
    em = unfiltered.interval(number, benchmark=where)
    best, oracle = (unfiltered.interval(names.index(name), benchmark=where).mean for name in (references[0], ORACLE))
    row: Row = {
        "num_queries": _count(unfiltered, where),
        "em": em.mean,
        "em_low": em.low,
        "em_high": em.high,
        "gap_recovered": gap_recovered(em.mean, best_single=best, oracle=oracle),
    }
    for reference in references:
        difference = unfiltered.difference(number, names.index(reference), benchmark=where)
        label = f"minus_{reference.replace(' ', '_')}"
        row |= {label: difference.mean, f"{label}_low": difference.low, f"{label}_high": difference.high}
    if where is None or where in filtered.benchmarks:
        em = filtered.interval(number, benchmark=where)
        row["num_queries_filtered"] = _count(filtered, where)
        row |= {"em_filtered": em.mean, "em_filtered_low": em.low, "em_filtered_high": em.high}
    return row


def _pair_columns(
    method: Method, right: NDArray[np.float64], pool: Pool, parts: Sequence[NDArray[np.bool_]]
) -> dict[str, float]:
    """Pair figures averaged over seeds and benchmarks, and the calibration of the chosen VLM's confidence."""
    if method.confidences is None or method.chosen is None:
        return {}
    figures: dict[str, list[float]] = {}
    for part in parts:
        pairs = pool.candidates & part[:, None]
        for confidence, chosen, outcome in zip(method.confidences, method.chosen, right, strict=True):
            for name, value in pair_metrics(pool.correct[pairs], confidence[pairs]).items():
                figures.setdefault(name, []).append(value)
            some = part & (chosen >= 0)
            chosen_confidence = confidence[some, chosen[some]]
            figures.setdefault("ece_chosen", []).append(expected_calibration_error(outcome[some], chosen_confidence))
    num_pairs = sum(figures.pop("num_pairs")) / len(method.confidences)
    return {"num_pairs": num_pairs, **{name: _mean_over(values) for name, values in figures.items()}}


def _count(bootstrap: Bootstrap, where: str | None) -> float:
    counts = bootstrap.num_queries if where is None else bootstrap.num_queries[[bootstrap.benchmarks.index(where)]]
    return float(counts.sum())


def _mean_over(values: Iterable[float]) -> float:
    """The mean of what is defined; NaN where nothing is."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
