"""Stage `cascade_eval`: every strategy, baseline and single VLM on the same test queries.

Rows: the base router on the base pool; incremental training; base and independent router joined by Algorithm 1 at
every tau; base and incremental router likewise; all baselines; every single VLM; the oracle as the limit. Baselines are
fitted on the splits train and validation, which the routers used too. Scored against the reference labels where the
source gives them (column `em_own_labels` scores the same choices against our own).

Writes, under `cascade_eval/`:

    table.csv               everything
    tau.csv                 the sweep of tau
    cost.csv                the accuracy-cost plane: EM beside what asking costs by the prices in params
    confidences.parquet     every router's confidences on the queries of splits gate, test_id and test_ood
    selection.json          the ways to serve, and which of them the held-out training queries pick
    metrics.json            macro EM for `dvc metrics`

Source: arXiv 2606.08970, sections 4.4 and 5. Run: `python -m tasks.cascade_eval`, or `dvc repro`; with `--show` it
prints the stored table.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from arms_model.baselines.protocol import Queries
from arms_model.errors import DataError
from arms_model.evaluation import MACRO, Method, by_confidence, single_vlms
from arms_model.router import Router
from arms_model.storage import load_router
from tasks.common.comparison import (
    BEST_SINGLE,
    FIXED,
    KNN,
    LEARNED,
    fit_predict,
    make_queries,
    methods_of,
    pool_table,
    scored_labels,
)
from tasks.common.costs import (
    AssumedPrices,
    Costs,
    cost_plane,
    costs_of,
    plane_rows,
)
from tasks.common.dataset import Labels, label_matrix, load_labels, load_queries, load_splits
from tasks.common.files import folder_written_whole, write_json
from tasks.common.params import load_group_by, load_section, load_seed
from tasks.common.publishing import HELD_OUT, MODELS, NOTHING, confidence_rows
from tasks.common.results import print_tables, rows_frame, write_csv
from tasks.common.routers import router_vectors
from tasks.common.stage import run_command, run_stage
from tasks.common.strategies import STAGE_OF, HeldOut, Scores, Strategy, cascades, select
from tasks.common.tables import TEST_SPLITS, read_table, strategy_row, write_table
from tasks.common.vlms import load_vlms

STAGE = "cascade_eval"
OUTPUT = Path("cascade_eval")
COST_COLUMNS = {
    "benchmark": pl.String, "kind": pl.String, "name": pl.String, "trade_off": pl.Float64, "num_queries": pl.Float64,
    "em": pl.Float64, "em_low": pl.Float64, "em_high": pl.Float64, "cost_usd_per_1000": pl.Float64,
    "prices": pl.String,
}  # fmt: skip
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CascadeEvalSettings:
    """Section `cascade_eval`.

    Attributes:
        taus: thresholds of the sweep (the paper's Fig. 7b: 0.5 to 1.0 in steps of 0.1).
        draws: of the paired cluster bootstrap.
        baselines: which learned baselines stand beside the router; the fixed choices always do.
        assumed_prices: what stands in for prices and token counts that nobody knows.
    """

    taus: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    draws: int = 10_000
    baselines: tuple[str, ...] = tuple(LEARNED)
    assumed_prices: AssumedPrices = field(default_factory=AssumedPrices)

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not self.taus or not all(0 <= tau <= 1 for tau in self.taus):
            raise ValueError(f"taus must lie in [0, 1], at least one, got {list(self.taus)}")
        if len({f"{tau:g}" for tau in self.taus}) < len(self.taus):
            raise ValueError(f"taus names a threshold twice: {list(self.taus)}; keep one of each")
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, got {self.draws}")
        for name in self.baselines:
            if name not in LEARNED:
                raise ValueError(f"baselines: '{name}' is unknown; known are: {', '.join(LEARNED)}")


@dataclass(frozen=True, kw_only=True)
class View:
    """One test split.

    Attributes:
        queries: the baselines' view of its N queries.
        candidates: (N, K) bool, both pools.
        is_base: (K,) bool.
    """

    queries: Queries
    candidates: NDArray[np.bool_]
    is_base: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything that is the same for all splits: all queries, their splits, the routers' confidences and costs."""

    queries: Queries
    splits: NDArray[np.str_]
    scores: Scores
    costs: Costs


def known_scores(router: Router, queries: pl.DataFrame, vlms: tuple[str, ...]) -> NDArray[np.float32]:
    """Confidences (N, K) of `router` in the columns of `vlms`; NaN where it does not know the VLM."""
    confidences = np.full((queries.height, len(vlms)), np.nan, dtype=np.float32)
    confidences[:, [vlms.index(vlm) for vlm in router.config.vlms]] = router.confidences(
        *router_vectors(router, queries)
    )
    return confidences


def load_scores(queries: pl.DataFrame, vlms: tuple[str, ...]) -> Scores:
    """Score the queries with every router that there is; the base router always is."""

    def scores(stage: str) -> NDArray[np.float32]:
        return known_scores(load_router(MODELS / stage), queries, vlms)

    def scores_if_learnt(stage: str) -> NDArray[np.float32] | None:
        return None if (MODELS / stage / NOTHING).exists() else scores(stage)

    return Scores(
        base=scores("train_base"),
        incremental=scores_if_learnt("train_incremental"),
        independent=scores_if_learnt("train_independent"),
    )


def joined(strategy: Strategy, scores: Scores, view: View) -> Method:
    """A cascade's choices as a method over all VLMs.

    Args:
        strategy: two routers and tau.
        scores: their confidences.
        view: the queries, candidates and pools.

    Returns:
        The method; `strategy` and `tau` stand in its rows, and `share_new_run`: of queries that ran the other router.
    """
    choice = strategy.choose(scores, view.candidates, view.is_base)
    return Method(
        name=strategy_row(strategy.name, strategy.tau),
        kind="router",
        chosen=choice.column[None],
        confidences=choice.confidences[None],
        settings={"strategy": strategy_row(strategy.name, None), "tau": float(strategy.tau or 0)},
        per_query={"share_new_run": choice.is_new_run.astype(np.float64)},
    )


def router_methods(scores: Scores, view: View, taus: tuple[float, ...]) -> dict[str, list[Method]]:
    """The router's rows per pool."""
    base_candidates = view.candidates & view.is_base
    rows = {"base": [by_confidence("ARMS base", "router", [scores.base], base_candidates)], "extended": []}
    if scores.incremental is not None:
        rows["base"].append(by_confidence("ARMS incremental", "router", [scores.incremental], base_candidates))
        rows["extended"].append(by_confidence("ARMS incremental", "router", [scores.incremental], view.candidates))
    rows["extended"] += [joined(strategy, scores, view) for strategy in cascades(scores, taus)]
    return rows


@dataclass(frozen=True, kw_only=True)
class SplitTables:
    """What comes out of one test split.

    Attributes:
        table: rows of the base pool, then of the extended pool.
        cost: points of the accuracy-cost plane over the extended pool.
    """

    table: list[pl.DataFrame]
    cost: pl.DataFrame


def split_tables(
    settings: CascadeEvalSettings, *, labels: Labels, scored: NDArray[np.float32], table: Table, split: str, seed: int
) -> SplitTables | None:
    """The tables of one test split; None where it has no labelled query."""
    rows = np.flatnonzero((table.splits == split) & (~np.isnan(scored)).any(1))
    if not len(rows):
        logger.info("split %s has no labelled query: no table", split)
        return None
    train = np.flatnonzero(np.isin(table.splits, ["train", "validation"]) & (~np.isnan(labels.correct)).any(1))
    names = [*FIXED, *settings.baselines]
    baselines = fit_predict(names, table.queries, labels.correct, train=train, test=rows)
    is_base = np.asarray(labels.pools) == "base"
    view = View(queries=table.queries.take(rows), candidates=~np.isnan(scored[rows]), is_base=is_base)
    methods = router_methods(table.scores.take(rows), view, settings.taus)
    parts = []
    for pool, inside in (("base", is_base), ("extended", np.ones_like(is_base))):
        candidates = view.candidates & inside
        if not candidates.any() or (pool == "extended" and is_base.all()):
            logger.info("split %s: no %s VLM has a label: no table", split, "new" if pool == "extended" else "base")
            continue
        if not methods[pool]:
            logger.info("split %s, %s pool: no router has learnt the new VLMs; the rows are baselines", split, pool)
        evaluated, without = pool_table(
            methods[pool],
            baselines,
            labels=labels,
            scored=scored,
            rows=rows,
            inside=inside,
            benchmark=view.queries.benchmark,
            group=view.queries.group,
            references=[BEST_SINGLE, *(name for name in (KNN,) if name in names)],
            draws=settings.draws,
            seed=seed,
        )
        parts.append(rows_frame(evaluated, split=split, pool=pool, without_candidate=without))
    routers = methods["base"] if is_base.all() else methods["extended"]
    others = [
        *methods_of(baselines, view.candidates),
        *single_vlms(labels.vlms, baselines[BEST_SINGLE], view.candidates),
    ]
    plane = cost_plane(routers, others, correct=scored[rows], costs=table.costs.take(rows))
    points = plane_rows(
        plane,
        correct=scored[rows],
        costs=table.costs.take(rows),
        queries=view.queries,
        draws=settings.draws,
        seed=seed,
    )
    cost = pl.DataFrame(points, schema=COST_COLUMNS).select(pl.lit(split).alias("split"), pl.all())
    return SplitTables(table=parts, cost=cost)


def tau_sweep(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows that differ in tau alone, for the plot of the sweep, with the share of queries that ran a new router."""
    columns = ["split", "benchmark", "strategy", "tau", "em", "em_low", "em_high", "share_new_run"]
    if "tau" not in frame.columns:  # nothing was learnt from new VLMs
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.Float64()))
    return frame.filter(pl.col("tau").is_not_null()).select(columns)


def macro_metrics(frame: pl.DataFrame) -> dict[str, Any]:
    """Macro EM of routers and baselines, nested for `dvc metrics`: split, pool, method."""
    metrics: dict[str, Any] = {}
    for row in frame.filter((pl.col("benchmark") == MACRO) & (pl.col("kind") != "single")).iter_rows(named=True):
        cell = {name: row[name] for name in ("em", "em_low", "em_high", "em_filtered", "gap_recovered")}
        cell = {name: value for name, value in cell.items() if value is not None and value == value}
        metrics.setdefault(row["split"], {}).setdefault(row["pool"], {})[row["method"]] = cell
    return metrics


def load_held_out(queries: pl.DataFrame, vlms: tuple[str, ...]) -> Scores:
    """Confidences of networks that had not seen the query, by router; None of a router that learnt nothing."""

    def scores(stage: str) -> NDArray[np.float32]:
        rows = read_table(HELD_OUT / f"{stage}.parquet", "held_out")
        return label_matrix(queries, rows.select("query_id", "vlm", correct="confidence"), vlms)

    def scores_if_learnt(stage: str) -> NDArray[np.float32] | None:
        return None if (MODELS / stage / NOTHING).exists() else scores(stage)

    base, incremental, independent = STAGE_OF.values()
    return Scores(
        base=scores(base), incremental=scores_if_learnt(incremental), independent=scores_if_learnt(independent)
    )


def confidence_table(table: Table, *, query_ids: Sequence[str], vlms: Sequence[str]) -> pl.DataFrame:
    """Table `confidence`: what each router says of the queries that it was not trained on."""
    parts = []
    for split in ("gate", *TEST_SPLITS):
        rows = np.flatnonzero(table.splits == split)
        for router in STAGE_OF:
            confidences = table.scores.of(router)
            if confidences is not None:
                part = confidence_rows([query_ids[row] for row in rows.tolist()], vlms, confidences[rows])
                parts.append(part.with_columns(split=pl.lit(split), router=pl.lit(router)))
    return pl.concat(parts)


def body() -> None:
    """The stage's work, from files to files."""
    settings = load_section(STAGE, CascadeEvalSettings)
    seed = load_seed()
    table = load_queries()
    query_ids = table["query_id"].to_list()
    labels = load_labels(table, ["base", "new"])
    scored = scored_labels(table, labels.vlms, labels.correct)
    encoders = load_router(MODELS / "train_base").config
    splits = load_splits(table)
    everything = Table(
        queries=make_queries(
            table,
            question_encoders=tuple(encoders.question_encoders),
            picture_encoders=tuple(encoders.picture_encoders),
            group_by=load_group_by(),
        ),
        splits=splits,
        scores=load_scores(table, labels.vlms),
        costs=costs_of(
            pl.concat([read_table(Path(f"collect/{pool}.parquet"), "collect") for pool in ("base", "new")]),
            query_ids=query_ids,
            is_training=np.isin(splits, ["train", "validation"]),
            vlms=[vlm for vlm in load_vlms() if vlm.name in labels.vlms],
            assumed=settings.assumed_prices,
        ),
    )
    parts = [
        part
        for split in TEST_SPLITS
        if (part := split_tables(settings, labels=labels, scored=scored, table=everything, split=split, seed=seed))
    ]
    if not parts:
        raise DataError("no labelled query in test_id or test_ood: look at split.shares and at the label tables.")
    frame = pl.concat([rows for part in parts for rows in part.table], how="diagonal_relaxed")
    held_out = HeldOut(
        scores=load_held_out(table, labels.vlms),
        correct=np.where(np.isin(splits, ["train", "validation"])[:, None], scored, np.nan),
        is_base=np.asarray(labels.pools) == "base",
        benchmark=everything.queries.benchmark,
        group=everything.queries.group,
        vlms=labels.vlms,
    )
    selection = select(held_out, taus=settings.taus, draws=settings.draws, seed=seed)
    with folder_written_whole(OUTPUT) as folder:
        write_csv(folder / "table.csv", frame)
        write_csv(folder / "tau.csv", tau_sweep(frame))
        write_csv(folder / "cost.csv", pl.concat([part.cost for part in parts]))
        confidences = confidence_table(everything, query_ids=query_ids, vlms=labels.vlms)
        write_table(folder / "confidences.parquet", confidences, "confidence")
        write_json(folder / "selection.json", selection)
        write_json(folder / "metrics.json", macro_metrics(frame))


def show(*, with_pairs: bool) -> None:
    """Print the stored table; without differences and pair figures unless `with_pairs`."""
    path = OUTPUT / "table.csv"
    if not path.exists():
        raise DataError(f"{path} is missing; run `dvc repro` first.")
    frame = pl.read_csv(path)
    for (split, pool), part in frame.group_by("split", "pool", maintain_order=True):
        print_tables(part, f"{split}, {pool} pool", with_pairs=with_pairs)


def main() -> int:
    """Run the stage or show its table; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasks.cascade_eval", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--show",
        nargs="?",
        const="all",
        choices=("all", "em"),
        help="print the stored table instead of computing it; em: the share of right choices only",
    )
    shown = parser.parse_args().show
    if shown is not None:
        return run_command(STAGE, partial(show, with_pairs=shown == "all"))
    return run_stage(STAGE, body)


if __name__ == "__main__":
    sys.exit(main())
