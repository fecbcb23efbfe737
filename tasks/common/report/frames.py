"""The frames behind the figures and tables: each is computed here once, drawn on the page and written for `dvc plots`.

A figure that has nothing to show gives an empty frame with the same columns, so that its file is there always.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from arms_model.evaluation import MACRO, RANDOM
from arms_model.metrics import oracle_outcomes, outcomes, random_outcomes
from tasks.common.report.inputs import Inputs
from tasks.common.strategies import Choice
from tasks.common.tables import SPLITS, TEST_SPLITS

POOL_NAMES = {"base": "base pool", "extended": "extended pool"}
SPLIT_NAMES = {"test_id": "In distribution", "test_ood": "Out of distribution"}
BINS = 15  # as the expected calibration error of the tables
NEARLY_ALL = 0.9  # of a task's queries, for a VLM to be called its best
_WILSON_Z = 1.959964  # 95 %


def main_results(inputs: Inputs) -> pl.DataFrame:
    """Macro EM of every method (Fig. 5): split, pool, method, kind, em, em_low, em_high, num_queries.

    `kind` is `picked` for what the held-out queries picked, else as in the table. Of cascades that differ in tau alone
    only the one whose tau the held-out queries picked is here; all others stand in the sweep.
    """
    shown = [served.row for served in inputs.served]
    return (
        inputs.table.filter(pl.col("benchmark") == MACRO)
        .filter((pl.col("kind") != "router") | ~pl.col("method").str.contains(", tau ") | pl.col("method").is_in(shown))
        .with_columns(kind=pl.when(pl.col("method") == inputs.picked.row).then(pl.lit("picked")).otherwise("kind"))
        .select("split", "pool", "method", "kind", "em", "em_low", "em_high", "num_queries", "without_candidate")
        .sort("em", descending=True, maintain_order=True)
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How our router stands in one table, said plainly.

    Attributes:
        split: of the table.
        pool: of the table.
        ours: our row: what was picked, or the base router where that does not stand in this table.
        better: baselines with a higher EM, the best first.
        other_routers_better: other strategies of ours with a higher EM.
        num_baselines: compared with.
    """

    split: str
    pool: str
    ours: dict[str, float | str]
    better: list[dict[str, float | str]]
    other_routers_better: list[dict[str, float | str]]
    num_baselines: int


def comparisons(inputs: Inputs) -> list[Comparison]:
    """One per table that has a row of ours."""
    found = []
    macro = inputs.table.filter(pl.col("benchmark") == MACRO)
    shown = set(main_results(inputs)["method"].to_list())
    for (split, pool), part in macro.group_by("split", "pool", maintain_order=True):
        rows = [row for row in part.iter_rows(named=True) if row["method"] in shown]
        routers = {row["method"]: row for row in rows if row["kind"] == "router"}
        ours = routers.get(inputs.picked.row) or routers.get("ARMS base")
        if ours is None:
            continue
        baselines = [row for row in rows if row["kind"] == "baseline" and row["method"] != RANDOM]
        better, others = (
            sorted((row for row in group if row["em"] > ours["em"]), key=lambda row: -row["em"])
            for group in (baselines, routers.values())
        )
        found.append(
            Comparison(
                split=str(split),
                pool=str(pool),
                ours=ours,
                better=better,
                other_routers_better=others,
                num_baselines=len(baselines),
            )
        )
    return found


def complementarity(inputs: Inputs) -> pl.DataFrame:
    """Fig. 1: among the queries that one VLM answers wrongly, the share that another answers rightly.

    Columns vlm_wrong, vlm_right, share, num_queries (wrong and asked both); only pairs with such queries. VLMs stand in
    the order of the heat map: pool base first, then by the benchmarks they were asked, the most often right first.
    """
    columns = _heat_order(inputs)
    order, scored = [inputs.names[column] for column in columns], inputs.scored[:, columns]
    wrong, right, asked = ((part).astype(np.float32) for part in (scored == 0, scored == 1, ~np.isnan(scored)))
    both, answered = wrong.T @ asked, wrong.T @ right
    rows = [
        (one, other, float(answered[i, j] / both[i, j]), int(both[i, j]))
        for i, one in enumerate(order)
        for j, other in enumerate(order)
        if i != j and both[i, j] > 0
    ]
    schema = {"vlm_wrong": pl.String, "vlm_right": pl.String, "share": pl.Float64, "num_queries": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _heat_order(inputs: Inputs) -> list[int]:
    """Columns of the VLMs that have labels: base first, then those that were asked the same benchmarks side by side."""
    asked = ~np.isnan(inputs.scored)
    right = (inputs.scored == 1).sum(axis=0) / np.maximum(asked.sum(axis=0), 1)
    benchmark = inputs.queries["benchmark"].to_numpy()
    of_vlm = [tuple(sorted(set(benchmark[asked[:, column]]))) for column in range(len(inputs.vlms))]
    labelled = [column for column, benchmarks in enumerate(of_vlm) if benchmarks]
    return sorted(labelled, key=lambda c: (not inputs.is_base[c], -len(of_vlm[c]), of_vlm[c], -right[c], c))


def unlabelled(inputs: Inputs) -> list[str]:
    """VLMs without a label."""
    num_labels = (~np.isnan(inputs.scored)).sum(axis=0)
    return [vlm.display_name for vlm, num in zip(inputs.vlms, num_labels, strict=True) if not num]


def tau_sweep(inputs: Inputs) -> pl.DataFrame:
    """Fig. 7b, macro: split, strategy, tau, em, em_low, em_high, share_new_run (of queries that ran the new router)."""
    if not inputs.tau.height:
        numbers = ("tau", "em", "em_low", "em_high", "share_new_run")
        return pl.DataFrame(schema={"split": pl.String, "strategy": pl.String, **dict.fromkeys(numbers, pl.Float64)})
    return inputs.tau.filter(pl.col("benchmark") == MACRO).drop("benchmark")


def training_curves(inputs: Inputs) -> pl.DataFrame:
    """router, member, epoch, train_loss, validation_loss, learning_rate of the routers that learnt."""
    parts = [curve.select(pl.lit(router).alias("router"), pl.all()) for router, curve in inputs.curves.items()]
    return pl.concat(parts).with_columns(pl.col("member", "epoch").cast(pl.Int64))


def reliability(inputs: Inputs) -> pl.DataFrame:
    """How often a confidence is right, in bins that hold equally many pairs; split by split and router by router.

    Columns split, router, bin, mean_confidence, share_right, low, high (Wilson's 95 % interval, pairs taken as
    independent), num_pairs. Pairs of equal confidence share a bin, as in the expected calibration error.
    """
    parts = []
    for split in TEST_SPLITS:
        rows = inputs.rows_of(split)
        for router in inputs.curves:
            confidence, label = pairs_of(inputs, router, rows)
            if len(label):
                named = (pl.lit(split).alias("split"), pl.lit(router).alias("router"), pl.all())
                parts.append(equal_mass_bins(confidence, label).select(*named))
    numbers = ("mean_confidence", "share_right", "low", "high")
    schema = {"split": pl.String, "router": pl.String, "bin": pl.Int64, **dict.fromkeys(numbers, pl.Float64)}
    return pl.concat([pl.DataFrame(schema={**schema, "num_pairs": pl.Int64}), *parts])


def pairs_of(inputs: Inputs, router: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Confidences (P,) and labels (P,) of the labelled pairs that a router scores."""
    scores = inputs.scores.of(router)
    if scores is None:
        return np.zeros(0), np.zeros(0)
    confidence, label = scores[rows], inputs.scored[rows]
    known = ~np.isnan(confidence) & ~np.isnan(label)
    return confidence[known].astype(np.float64), label[known].astype(np.float64)


def equal_mass_bins(confidence: NDArray[np.float64], label: NDArray[np.float64]) -> pl.DataFrame:
    """Bins of pairs (P,) by confidence; see `reliability`."""
    values, inverse, count = np.unique(confidence, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - count / 2
    of_value = np.minimum((middle * BINS / len(confidence)).astype(np.int64), BINS - 1)
    frame = pl.DataFrame({"bin": of_value[inverse], "confidence": values[inverse], "label": label})
    share, count_ = pl.col("share_right"), pl.col("num_pairs")
    centre = (share + _WILSON_Z**2 / (2 * count_)) / (1 + _WILSON_Z**2 / count_)
    half = (share * (1 - share) / count_ + _WILSON_Z**2 / (4 * count_**2)).sqrt() * _WILSON_Z
    return (
        frame.group_by("bin")
        .agg(
            mean_confidence=pl.col("confidence").mean(),
            share_right=pl.col("label").mean(),
            num_pairs=pl.len().cast(pl.Int64),
        )
        .sort("bin")
        .with_columns(low=centre - half / (1 + _WILSON_Z**2 / count_), high=centre + half / (1 + _WILSON_Z**2 / count_))
        .select("bin", "mean_confidence", "share_right", "low", "high", "num_pairs")
    )


def calibration_error(bins: pl.DataFrame) -> float:
    """The expected calibration error of one router's bins."""
    distance = (bins["mean_confidence"] - bins["share_right"]).abs() * bins["num_pairs"]
    return float(distance.sum()) / int(bins["num_pairs"].sum())


def accuracy_cost(inputs: Inputs) -> pl.DataFrame:
    """`cascade_eval/cost.csv`, cut down to what is drawn.

    Of our router: what the held-out queries picked (kind `router`), and the curve that starts from the same
    confidences. Of the planes: the macro average; where no single VLM stands in it, because each benchmark asked VLMs
    of its own, every benchmark too.
    """
    picked = inputs.picked.row
    kind, name, benchmark = pl.col("kind"), pl.col("name"), pl.col("benchmark")
    ours = (name == picked) | ((kind == "curve") & (name == picked.split(", tau ")[0]))
    has_single = ((kind == "single") & (benchmark == MACRO)).any().over("split")
    return inputs.cost.filter((benchmark == MACRO) | ~has_single).filter(~kind.is_in(["router", "curve"]) | ours)


def picked_choice(inputs: Inputs, rows: NDArray[np.int64]) -> Choice:
    """What the picked strategy does with the queries of some rows, over their labelled VLMs."""
    candidates = ~np.isnan(inputs.scored[rows])
    return inputs.picked.strategy.choose(inputs.scores.take(rows), candidates, inputs.is_base)


def per_task(inputs: Inputs, split: str) -> pl.DataFrame:
    """EM per task of a test split: benchmark, task, num_queries, picked, hindsight, hindsight_vlm, random, oracle.

    `hindsight` is the VLM that was right most often on this very task, among those asked nearly all its queries: known
    only afterwards, so stricter than any baseline. Null where no VLM was asked so many.
    """
    rows = inputs.rows_of(split)
    scored, choice = inputs.scored[rows], picked_choice(inputs, rows)
    candidates = ~np.isnan(scored)
    right = outcomes(scored, choice.column)
    figures = (
        inputs.queries[rows]
        .select("benchmark", "task")
        .with_columns(
            picked=pl.Series(right).fill_nan(None),
            random=pl.Series(random_outcomes(scored, candidates)).fill_nan(None),
            oracle=pl.Series(oracle_outcomes(scored, candidates)).fill_nan(None),
            row=pl.Series(np.arange(len(rows))),
        )
    )
    grouped = figures.group_by("benchmark", "task").agg(
        pl.len().alias("num_queries"), pl.col("picked", "random", "oracle").mean(), "row"
    )
    best = [_hindsight(scored[members]) for members in grouped["row"].to_list()]
    return (
        grouped.with_columns(
            hindsight=pl.Series([em for em, _ in best], dtype=pl.Float64),
            hindsight_vlm=pl.Series([None if c is None else inputs.names[c] for _, c in best], dtype=pl.String),
        )
        .select("benchmark", "task", "num_queries", "picked", "hindsight", "hindsight_vlm", "random", "oracle")
        .sort("benchmark", "task")
    )


def _hindsight(scored: NDArray[np.float32]) -> tuple[float | None, int | None]:
    asked = ~np.isnan(scored)
    means = np.where(asked, scored, 0).sum(axis=0) / np.maximum(asked.sum(axis=0), 1)
    eligible = asked.mean(axis=0) >= NEARLY_ALL
    if not eligible.any():
        return None, None
    column = int(np.where(eligible, means, -1).argmax())
    return float(means[column]), column


@dataclass(frozen=True, kw_only=True)
class DatasetRow:
    """A line of the paper's Table 2: a test scenario and pool, and how many queries it holds in each split."""

    scenario: str
    pool: str
    num_vlms: int
    counts: dict[str, int]


def dataset_table(inputs: Inputs) -> list[DatasetRow]:
    """Queries with a label of the pool, by scenario, pool and split; then all distinct queries."""
    labelled = ~np.isnan(inputs.scored)
    split = inputs.queries["split"].to_numpy()
    pools = [("base", inputs.is_base)] + ([] if inputs.is_base.all() else [("new", ~inputs.is_base)])
    rows = []
    for scenario, splits in (("ID", SPLITS[:-1]), ("OOD", SPLITS[-1:])):
        for pool, inside in pools:
            has_label = labelled[:, inside].any(axis=1)
            counts = {name: int((has_label & (split == name)).sum()) for name in splits}
            rows.append(DatasetRow(scenario=scenario, pool=pool, num_vlms=int(inside.sum()), counts=counts))
    every = {name: int((split == name).sum()) for name in SPLITS}
    rows.append(DatasetRow(scenario="Total", pool="all queries", num_vlms=len(inputs.vlms), counts=every))
    return rows


def benchmark_table(inputs: Inputs) -> pl.DataFrame:
    """What each benchmark holds: queries, pictures, templates, tasks, languages, answer types, licences."""

    def listed(column: str) -> pl.Expr:
        return pl.col(column).drop_nulls().unique().sort().alias(column)

    return (
        inputs.queries.group_by("benchmark")
        .agg(
            pl.len().alias("num_queries"),
            pl.col("image_sha256").n_unique().alias("num_pictures"),
            pl.col("template").n_unique().alias("num_templates"),
            pl.col("task").n_unique().alias("num_tasks"),
            *(listed(column) for column in ("language", "answer_type", "licence")),
        )
        .sort("benchmark")
    )
