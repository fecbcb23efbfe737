"""Hierarchical ridge regression: what all VLMs find hard, and what each one finds harder than the others.

    score_k(x) = mean_k + ease(x) + x . w_k

Labels are first split into a mean per VLM, an ease per query (what its VLMs have in common) and a rest. The ease is
regressed on x for all VLMs together; the rest, which alone decides the choice, is regressed per VLM and shrunk more, so
a VLM with few labels follows the pool's shape.

How much is chosen on inner folds by the Brier score of predictions centred over a query's VLMs (a query's ease,
however badly predicted, changes no choice), for each set of VLMs that were asked the same queries on its own: pools
differ in how far questions and pictures tell VLMs apart. Choosing by EM instead follows lucky draws.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from arms_model.baselines.features import Features
from arms_model.baselines.protocol import Queries, vlm_means
from arms_model.baselines.selection import equal_columns, inner_parts
from arms_model.metrics import centred_error

_ROUNDS = 20  # of means and ease in turn; they have settled by then
DEVIATIONS = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0)
_EDGE = 0.05  # values nearer than this to 0 or 1 are bent


class HierarchicalRidge:
    """Linear in question and picture.

    Args:
        shared: shrinkage of the ease.
        deviations: shrinkages of a VLM's deviation to choose from; of equal ones the first. Each part of a row has mean
            square 1, so they count in queries.
        num_components: principal components of the pictures.
        num_inner_folds: for the choice.
    """

    def __init__(
        self,
        *,
        shared: float = 1.0,
        deviations: Sequence[float] = DEVIATIONS,
        num_components: int = 128,
        num_inner_folds: int = 5,
    ) -> None:
        self.shared = shared
        self.deviations = tuple(deviations)
        self.num_components = num_components
        self.num_inner_folds = num_inner_folds

    def fit(self, queries: Queries, correct: NDArray[np.floating]) -> None:
        """Choose the shrinkages and fit all parts; see `protocol.Baseline`."""
        self._features = Features(queries, num_components=self.num_components)
        x = self._features.apply(queries)
        error = np.zeros((len(self.deviations), correct.shape[1]))
        for held in inner_parts(queries.group, correct, num_folds=self.num_inner_folds):
            models = self._fit_all(x[~held], correct[~held])
            error += np.stack([centred_error(model.apply(x[held]), correct[held]).sum(axis=0) for model in models])
        for columns in equal_columns(~np.isnan(correct)):
            error[:, columns] = error[:, columns].sum(axis=1, keepdims=True)
        best = error.argmin(axis=0)  # (K,)
        self.chosen = np.array(self.deviations)[best]
        models = self._fit_all(x, correct)
        self._model = _Linear(
            weights=np.stack([models[place].weights[:, k] for k, place in enumerate(best)], axis=1),
            intercepts=np.array([models[place].intercepts[k] for k, place in enumerate(best)]),
        )

    def predict(self, queries: Queries) -> NDArray[np.float64]:
        """The regression's values, brought into (0, 1) in their order: (N, K)."""
        return into_unit(self._model.apply(self._features.apply(queries)))

    def _fit_all(self, x: NDArray[np.float32], correct: NDArray[np.floating]) -> "list[_Linear]":
        """One model per setting of the grid."""
        asked = ~np.isnan(correct)
        means, ease = _two_way(correct)
        rest = np.where(asked, correct - means - ease[:, None], 0.0)
        (shared,) = _ridge(x, ease[:, None], asked.sum(axis=1), [self.shared])
        models = [
            _Linear(weights=np.repeat(shared.weights, len(means), axis=1), intercepts=means + shared.intercepts)
            for _ in self.deviations
        ]
        for columns in equal_columns(asked):
            rows = np.flatnonzero(asked[:, columns[0]])
            if len(rows):
                fits = _ridge(x[rows], rest[np.ix_(rows, columns)], np.ones(len(rows)), self.deviations)
                for model, own in zip(models, fits, strict=True):
                    model.weights[:, columns] += own.weights
                    model.intercepts[columns] += own.intercepts
        return models


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Linear:
    weights: NDArray[np.float64]  # (D, K)
    intercepts: NDArray[np.float64]  # (K,)

    def apply(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(x @ self.weights + self.intercepts)


def into_unit(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Bring a regression's values into (0, 1) and keep their order.

    Cutting them off at 0 and 1 would tie the VLMs that lie beyond, and a tie is decided by name. So values up to 0.05
    from either end stay as they are, and what lies further out is bent towards the end by a hyperbola that goes on with
    slope 1: 1 becomes 0.975, 1.05 becomes 0.983. It falls slowly enough for half precision to keep most of the order.

    Args:
        values: any real numbers, any shape.

    Returns:
        The same shape, float64, in (0, 1).
    """
    from_middle = np.asarray(values, dtype=np.float64) - 0.5
    beyond = np.maximum(np.abs(from_middle) - (0.5 - _EDGE), 0.0) / _EDGE
    bent = np.sign(from_middle) * (0.5 - _EDGE / (1 + beyond))
    return np.asarray(0.5 + np.where(beyond > 0, bent, from_middle), dtype=np.float64)


def _two_way(correct: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The VLMs' means (K,) and the queries' ease (N,), least squares, each fitted on what the other leaves, in turn."""
    asked = ~np.isnan(correct)
    count = asked.sum(axis=1)
    means, ease = vlm_means(correct), np.zeros(len(correct))
    for _ in range(_ROUNDS):
        ease = np.where(asked, correct - means, 0.0).sum(axis=1) / np.maximum(count, 1)
        ease -= np.average(ease, weights=count)
        means = vlm_means(correct - ease[:, None])
    return means, ease


def _ridge(
    x: NDArray[np.float32],
    targets: NDArray[np.float64],
    weight: NDArray[np.floating],
    shrinkages: Sequence[float],
) -> list[_Linear]:
    """Weighted ridge regression of targets (N, T) per shrinkage; the intercept is not shrunk."""
    root = np.sqrt(weight)[:, None]
    centre, mean = np.average(x, axis=0, weights=weight), np.average(targets, axis=0, weights=weight)
    scaled = np.asarray((x - centre) * root, dtype=np.float32)
    gram = np.asarray(scaled.T @ scaled, dtype=np.float64)
    moment = scaled.T @ ((targets - mean) * root)  # (D, T)
    found = (np.linalg.solve(gram + shrinkage * np.eye(len(gram)), moment) for shrinkage in shrinkages)
    return [_Linear(weights=weights, intercepts=mean - centre @ weights) for weights in found]
