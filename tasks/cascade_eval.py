"""Stage `cascade_eval`: every strategy, baseline and single VLM on the same test queries.

Rows: the base router on the base pool; incremental training; base and independent router joined by Algorithm 1 at
every tau; base and incremental router likewise; all baselines; every single VLM; the oracle as the limit. Baselines are
fitted on the splits train and validation, which the routers used too. Scored against the reference labels where the
source gives them (column `em_own_labels` scores the same choices against our own).

Writes `cascade_eval/table.csv` (everything), `cascade_eval/tau.csv` (the sweep), `cascade_eval/metrics.json`.

Source: arXiv 2606.08970, sections 4.4 and 5. Run: `python -m tasks.cascade_eval`, or `dvc repro`; with `--show` it
prints the stored table.
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from arms_model.baselines.protocol import Queries
from arms_model.cascade import cascade
from arms_model.errors import DataError
from arms_model.evaluation import MACRO, Method, by_confidence
from arms_model.router import Router
from arms_model.storage import load_router
from tasks.common.comparison import (
    BEST_SINGLE,
    FIXED,
    KNN,
    LEARNED,
    fit_predict,
    make_queries,
    pool_table,
    scored_labels,
)
from tasks.common.dataset import Labels, load_labels, load_queries, load_splits
from tasks.common.files import folder_written_whole, write_json
from tasks.common.params import load_group_by, load_section, load_seed
from tasks.common.results import print_tables, rows_frame, write_csv
from tasks.common.routers import NOTHING, router_vectors
from tasks.common.stage import run_stage

STAGE = "cascade_eval"
OUTPUT = Path("cascade_eval")
MODELS = Path("models")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CascadeEvalSettings:
    """Section `cascade_eval`.

    Attributes:
        taus: thresholds of the sweep (the paper's Fig. 7b: 0.5 to 1.0 in steps of 0.1).
        draws: of the paired cluster bootstrap.
        baselines: which learned baselines stand beside the router; the fixed choices always do.
    """

    taus: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    draws: int = 10_000
    baselines: tuple[str, ...] = tuple(LEARNED)

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
    """Everything that is the same for all splits: all queries, their splits and the routers' confidences."""

    queries: Queries
    splits: NDArray[np.str_]
    scores: Scores


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


def joined(strategy: str, base: NDArray[np.float32], new: NDArray[np.float32], view: View, tau: float) -> Method:
    """Algorithm 1 over the base router's and another router's confidences, as a method over all VLMs.

    Args:
        strategy: the row's name without tau.
        base: (N, K) the base router's confidences.
        new: (N, K) the other router's, whose new columns count.
        view: the queries, candidates and pools.
        tau: the threshold.

    Returns:
        The method; `strategy` and `tau` stand in its rows, and `share_new_run`: of queries that ran the other router.
    """
    columns_base, columns_new = np.flatnonzero(view.is_base), np.flatnonzero(~view.is_base)
    choice = cascade(
        base[:, columns_base],
        base_candidates=view.candidates[:, columns_base],
        new_confidence=new[:, columns_new],
        new_candidates=view.candidates[:, columns_new],
        tau=tau,
    )
    return Method(
        name=f"{strategy}, tau {tau:g}",
        kind="router",
        chosen=choice.joint_column(columns_base, columns_new)[None],
        confidences=np.where(view.is_base, base, new)[None],
        settings={"strategy": strategy, "tau": tau},
        per_query={"share_new_run": choice.is_new_run.astype(np.float64)},
    )


def router_methods(scores: Scores, view: View, taus: tuple[float, ...]) -> dict[str, list[Method]]:
    """The router's rows per pool."""
    base_candidates = view.candidates & view.is_base
    rows = {"base": [by_confidence("ARMS base", "router", [scores.base], base_candidates)], "extended": []}
    if scores.incremental is not None:
        rows["base"].append(by_confidence("ARMS incremental", "router", [scores.incremental], base_candidates))
        rows["extended"].append(by_confidence("ARMS incremental", "router", [scores.incremental], view.candidates))
    for label, new in (("independent", scores.independent), ("incremental", scores.incremental)):
        if new is not None:
            rows["extended"] += [joined(f"ARMS base + {label}", scores.base, new, view, tau) for tau in taus]
    return rows


def split_rows(
    settings: CascadeEvalSettings, *, labels: Labels, scored: NDArray[np.float32], table: Table, split: str, seed: int
) -> Iterator[pl.DataFrame]:
    """The tables of one test split: base pool, then extended pool."""
    rows = np.flatnonzero((table.splits == split) & (~np.isnan(scored)).any(1))
    if not len(rows):
        logger.info("split %s has no labelled query: no table", split)
        return
    train = np.flatnonzero(np.isin(table.splits, ["train", "validation"]) & (~np.isnan(labels.correct)).any(1))
    names = [*FIXED, *settings.baselines]
    baselines = fit_predict(names, table.queries, labels.correct, train=train, test=rows)
    is_base = np.asarray(labels.pools) == "base"
    view = View(queries=table.queries.take(rows), candidates=~np.isnan(scored[rows]), is_base=is_base)
    methods = router_methods(table.scores.take(rows), view, settings.taus)
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
        yield rows_frame(evaluated, split=split, pool=pool, without_candidate=without)


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


def body() -> None:
    """The stage's work, from files to files."""
    settings = load_section(STAGE, CascadeEvalSettings)
    seed = load_seed()
    table = load_queries()
    labels = load_labels(table, ["base", "new"])
    scored = scored_labels(table, labels.vlms, labels.correct)
    encoders = load_router(MODELS / "train_base").config
    everything = Table(
        queries=make_queries(
            table,
            question_encoders=tuple(encoders.question_encoders),
            picture_encoders=tuple(encoders.picture_encoders),
            group_by=load_group_by(),
        ),
        splits=load_splits(table),
        scores=load_scores(table, labels.vlms),
    )
    parts = [
        part
        for split in ("test_id", "test_ood")
        for part in split_rows(settings, labels=labels, scored=scored, table=everything, split=split, seed=seed)
    ]
    if not parts:
        raise DataError("no labelled query in test_id or test_ood: look at split.shares and at the label tables.")
    frame = pl.concat(parts, how="diagonal_relaxed")
    with folder_written_whole(OUTPUT) as folder:
        write_csv(folder / "table.csv", frame)
        write_csv(folder / "tau.csv", tau_sweep(frame))
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
    return run_stage(STAGE, body if shown is None else partial(show, with_pairs=shown == "all"))


if __name__ == "__main__":
    sys.exit(main())
