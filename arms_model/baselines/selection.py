"""Choosing a baseline's settings on inner folds of its training part.

`brier` is the squared error, `centred` the same after taking away each query's mean error over its VLMs (what it leaves
is what decides the choice), `em` the share answered wrongly. Choosing by EM follows lucky draws, since most settings
choose the same VLM for most queries. All are sums over queries, so a query asked of many VLMs weighs no more than one
asked of few.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from arms_model import metrics
from arms_model.folds import inner_folds

Criterion = Literal["brier", "centred", "em"]
Setting = TypeVar("Setting", bound=Hashable)


def cost(scores: NDArray[np.floating], correct: NDArray[np.floating], *, criterion: Criterion) -> float:
    """How bad scores are, summed over queries; lower is better.

    Args:
        scores: (N, K) in [0, 1].
        correct: (N, K) in {0, 1, NaN}; queries without any label count nothing.
        criterion: `brier`, `centred` or `em`.

    Returns:
        The sum over queries of the mean squared error over candidates, or the number of queries answered wrongly.
    """
    asked = ~np.isnan(correct)
    if criterion == "em":
        return float(np.nansum(1 - metrics.outcomes(correct, metrics.choose(scores, asked))))
    squared = (
        metrics.centred_error(scores, correct)
        if criterion == "centred"
        else np.where(asked, scores - correct, 0.0) ** 2
    )
    return float((squared.sum(axis=1) / np.maximum(asked.sum(axis=1), 1)).sum())


def inner_parts(
    groups: NDArray[np.str_], correct: NDArray[np.floating], *, num_folds: int = 3
) -> Iterator[NDArray[np.bool_]]:
    """The held-out side (N,) bool of each inner fold; folds that leave no label on one side are passed over."""
    folds, has_label = inner_folds(groups, num_folds=num_folds), ~np.isnan(correct).all(axis=1)
    for fold in range(num_folds):
        held = folds == fold
        if has_label[held].any() and has_label[~held].any():
            yield held


def cheapest(costs: Iterable[Mapping[Setting, float]], default: Setting) -> Setting:
    """The setting with the lowest cost summed over inner folds; of equal ones the first.

    Args:
        costs: one mapping from setting to cost per inner fold, with the same settings in the same order.
        default: taken when there is no inner fold at all (all queries in one group).

    Returns:
        The setting.
    """
    total: dict[Setting, float] = {}
    for fold in costs:
        for setting, value in fold.items():
            total[setting] = total.get(setting, 0.0) + value
    return min(total, key=lambda setting: total[setting], default=default)


def equal_columns(counts: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Columns that are equal, together: VLMs that were asked the same queries share much of the work.

    Args:
        counts: (N, K), a mask or numbers of labels.

    Returns:
        Column numbers, one array per distinct column; every column stands in exactly one.
    """
    together: dict[bytes, list[int]] = {}
    for number, column in enumerate(np.ascontiguousarray(counts.T)):
        together.setdefault(column.tobytes(), []).append(number)
    return [np.array(columns, dtype=np.int64) for columns in together.values()]
