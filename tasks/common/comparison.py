"""What stands beside the router: baselines by name, fitted on the same training queries, and the labels that count."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from arms_model.baselines.logistic import LogisticPerVlm
from numpy.typing import NDArray

from arms_model.baselines.fixed import BestPerTask, BestPerTaskAndAnswerType, BestSingle
from arms_model.baselines.knn import NearestNeighbours
from arms_model.baselines.protocol import Baseline, Queries
from arms_model.baselines.ridge import HierarchicalRidge
from arms_model.evaluation import Method, by_confidence
from tasks.common.dataset import label_matrix
from tasks.common.tables import read_table

BEST_SINGLE, BEST_PER_TASK, KNN, RIDGE = "best single", "best per task", "kNN", "ridge"
FIXED: dict[str, Callable[[], Baseline]] = {
    BEST_SINGLE: BestSingle,
    BEST_PER_TASK: BestPerTask,
    "best per task and answer type": BestPerTaskAndAnswerType,
}
LEARNED: dict[str, Callable[[], Baseline]] = {
    KNN: NearestNeighbours,
    "logistic regression": LogisticPerVlm,
    RIDGE: HierarchicalRidge,
}
BASELINES = {**FIXED, **LEARNED}


def make_queries(
    queries: pl.DataFrame, *, question: NDArray[np.float32], picture: NDArray[np.float32], group_by: str
) -> Queries:
    """The queries as baselines see them, in the table's order.

    Args:
        queries: N rows.
        question: (N, D_q) vectors.
        picture: (N, D_v) vectors.
        group_by: column that the groups come from.
    """
    names = {"benchmark": "benchmark", "task": "task", "answer_type": "answer_type", "group": group_by}
    columns = {name: np.asarray(queries[column].to_list(), dtype=np.str_) for name, column in names.items()}
    return Queries(question=question, picture=picture, **columns)


def fit_predict(
    names: Sequence[str],
    queries: Queries,
    correct: NDArray[np.float32],
    *,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """Fit the named baselines on rows `train` and give the confidences (T, K) of rows `test`, by name."""
    scores = {}
    for name in names:
        baseline = BASELINES[name]()
        baseline.fit(queries.take(train), correct[train])
        scores[name] = baseline.predict(queries.take(test))
    return scores


def methods_of(scores: dict[str, NDArray[np.float64]], candidates: NDArray[np.bool_]) -> list[Method]:
    """Baselines' confidences as methods over these candidates."""
    return [by_confidence(name, "baseline", [part], candidates) for name, part in scores.items()]


def scored_labels(queries: pl.DataFrame, vlms: Sequence[str], own: NDArray[np.float32]) -> NDArray[np.float32]:
    """The labels that a table is scored against: the source's own where it gives one, else ours.

    Args:
        queries: N rows.
        vlms: K names.
        own: (N, K) our labels.

    Returns:
        (N, K); NaN exactly where `own` is.
    """
    collected = pl.concat([read_table(Path(f"collect/{pool}.parquet"), "collect") for pool in ("base", "new")])
    given = label_matrix(queries, collected.select("query_id", "vlm", correct="imported_correct"), vlms)
    return np.where(np.isnan(own) | np.isnan(given), own, given)
