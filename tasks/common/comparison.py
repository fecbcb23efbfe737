"""What stands beside the router: baselines by name, fitted on the same training queries, and the labels that count."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from arms_model.baselines.fixed import BestPerTask, BestPerTaskAndAnswerType, BestSingle
from arms_model.baselines.knn import NearestNeighbours
from arms_model.baselines.logistic import LogisticPerVlm
from arms_model.baselines.mean import MeanOfBaselines
from arms_model.baselines.protocol import Baseline, Queries
from arms_model.baselines.ridge import HierarchicalRidge
from arms_model.evaluation import Method, Pool, Row, by_confidence, evaluate, single_vlms
from arms_model.metrics import filtered_mask
from tasks.common.dataset import Labels, label_matrix, load_encoders, load_vectors
from tasks.common.results import without_candidate
from tasks.common.tables import read_table

BEST_SINGLE, BEST_PER_TASK, KNN, RIDGE = "best single", "best per task", "kNN", "ridge"
KNN_AND_RIDGE = "mean of kNN and ridge"
FIXED: dict[str, Callable[[], Baseline]] = {
    BEST_SINGLE: BestSingle,
    BEST_PER_TASK: BestPerTask,
    "best per task and answer type": BestPerTaskAndAnswerType,
}
LEARNED: dict[str, Callable[[], Baseline]] = {
    KNN: NearestNeighbours,
    "logistic regression": LogisticPerVlm,
    RIDGE: HierarchicalRidge,
    KNN_AND_RIDGE: lambda: MeanOfBaselines([NearestNeighbours(), HierarchicalRidge()]),
}
BASELINES = {**FIXED, **LEARNED}


def make_queries(
    queries: pl.DataFrame, *, question_encoders: Sequence[str], picture_encoders: Sequence[str], group_by: str
) -> Queries:
    """The queries as baselines see them, in the table's order, with the kept vectors of the router's encoders.

    Surface numbers stand apart, so that kNN's cosines stay those of the text encoder; where they are all there is, they
    are the question's vector.

    Args:
        queries: N rows.
        question_encoders: names of encoders of section `embed`.
        picture_encoders: likewise.
        group_by: column that the groups come from.
    """
    kinds = {name: settings.kind for name, settings in load_encoders(question_encoders, "question").items()}
    surface = [name for name, kind in kinds.items() if kind == "surface"]
    text = [name for name, kind in kinds.items() if kind != "surface"]

    def column(name: str) -> NDArray[np.str_]:
        return np.asarray(queries[name].to_list(), dtype=np.str_)

    return Queries(
        question=load_vectors(queries, "question", text or surface),
        picture=load_vectors(queries, "picture", picture_encoders),
        surface=load_vectors(queries, "question", surface) if text and surface else None,
        benchmark=column("benchmark"),
        task=column("task"),
        answer_type=column("answer_type"),
        group=column(group_by),
    )


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


def methods_of(scores: Mapping[str, NDArray[np.floating]], candidates: NDArray[np.bool_]) -> list[Method]:
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


def pool_table(
    routers: Sequence[Method],
    baselines: Mapping[str, NDArray[np.floating]],
    *,
    labels: Labels,
    scored: NDArray[np.float32],
    rows: NDArray[np.int64],
    inside: NDArray[np.bool_],
    benchmark: NDArray[np.str_],
    group: NDArray[np.str_],
    references: Sequence[str],
    draws: int,
    seed: int = 0,
) -> tuple[list[Row], str]:
    """Routers, baselines and single VLMs of one pool on the same queries.

    Args:
        routers: the routers' rows over this pool's candidates.
        baselines: confidences (R, K) by name; the order of `best single` is what a single VLM passes on by.
        labels: our labels (N, K), the VLMs' names.
        scored: (N, K) the labels that count.
        rows: (R,) the queries of this table, rows of both.
        inside: (K,) bool, the pool's VLMs.
        benchmark: (R,) str.
        group: (R,) str, what the bootstrap resamples.
        references: see `evaluate`.
        draws: see `evaluate`.
        seed: see `evaluate`.

    Returns:
        The rows, and which queries have no candidate, in words.
    """
    correct = np.where(inside, scored[rows], np.nan).astype(np.float32)
    candidates = ~np.isnan(correct)
    methods = [*routers, *methods_of(baselines, candidates)]
    methods += single_vlms(labels.vlms, baselines[BEST_SINGLE], candidates)
    pool = Pool(
        correct=correct,
        answered=filtered_mask(scored[rows]),
        benchmark=benchmark,
        group=group,
        own=labels.correct[rows],
    )
    evaluated = evaluate(methods, pool, references=references, draws=draws, seed=seed)
    return evaluated, without_candidate(benchmark, candidates)
