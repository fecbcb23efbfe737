"""Nearest neighbours: a VLM is as good on a question as it was on the most similar training questions.

Similarity is the cosine of question vectors. Each VLM has neighbours of its own, among the training queries it was
asked. A neighbour at cosine s weighs exp((s - 1) / temperature), so far neighbours count little, and the VLM's mean
is mixed in with the weight of `prior` exact copies. Number of neighbours, temperature and prior are chosen on inner
folds.

Queries with the same question have the same cosine. They are gathered first and all count alike (where they are more
than the number of neighbours, each counts in part), so the result does not depend on the order of queries.
"""

import dataclasses
import itertools

import numpy as np
from numpy.typing import NDArray

from arms_model.baselines.protocol import Queries, vlm_means
from arms_model.baselines.selection import Criterion, cheapest, cost, equal_columns, inner_parts

_ROWS_AT_ONCE = 2048
_TINY = 1e-9  # weight of the mean when all else is 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    """One setting.

    Attributes:
        count: neighbours looked at.
        temperature: of their weights; infinity weighs all alike.
        prior: the training mean's weight, in neighbours of cosine 1.
    """

    count: int
    temperature: float
    prior: float


GRID = tuple(
    Neighbours(count=count, temperature=temperature, prior=prior)
    for count, temperature, prior in itertools.product(
        (16, 64, 256), (0.05, 0.1, 0.2, float("inf")), (0.0, 0.25, 1.0, 4.0)
    )
)


class NearestNeighbours:
    """kNN on question vectors."""

    def __init__(
        self, *, grid: tuple[Neighbours, ...] = GRID, criterion: Criterion = "brier", num_inner_folds: int = 3
    ) -> None:
        self.grid = grid
        self.criterion = criterion
        self.num_inner_folds = num_inner_folds

    def fit(self, queries: Queries, correct: NDArray[np.floating]) -> None:
        """Keep the training part and choose the setting; see `protocol.Baseline`."""
        self._known = _Known.of(queries.question, correct)
        self.chosen = self.grid[0]
        if len(self.grid) > 1:
            parts = inner_parts(queries.group, correct, num_folds=self.num_inner_folds)
            self.chosen = cheapest((self._costs(queries.question, correct, held) for held in parts), self.grid[0])

    def predict(self, queries: Queries) -> NDArray[np.float64]:
        """The neighbours' weighted mean label (N, K)."""
        scores: NDArray[np.float64] = self._known.scores(queries.question, (self.chosen,))[0]
        return scores

    def _costs(
        self, question: NDArray[np.float32], correct: NDArray[np.floating], held: NDArray[np.bool_]
    ) -> dict[Neighbours, float]:
        """The cost of each setting on the held-out part when only the rest is known."""
        scores = _Known.of(question[~held], correct[~held]).scores(question[held], self.grid)
        return {
            setting: cost(found, correct[held], criterion=self.criterion)
            for setting, found in zip(self.grid, scores, strict=True)
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Known:
    """Training labels, gathered per distinct question."""

    vectors: NDArray[np.float32]  # (U, Dq) of length 1, in an order that does not depend on the queries' order
    counts: NDArray[np.float32]  # (U, K) labels
    rights: NDArray[np.float32]  # (U, K) of them right
    means: NDArray[np.float64]  # (K,)

    @classmethod
    def of(cls, question: NDArray[np.float32], correct: NDArray[np.floating]) -> "_Known":
        distinct, place = np.unique(question, axis=0, return_inverse=True)
        asked = ~np.isnan(correct)
        counts, rights = (np.zeros((len(distinct), correct.shape[1]), dtype=np.float32) for _ in range(2))
        np.add.at(counts, place, asked)
        np.add.at(rights, place, np.where(asked, correct, 0.0))
        return cls(vectors=_unit(distinct), counts=counts, rights=rights, means=vlm_means(correct))

    def scores(self, question: NDArray[np.float32], grid: tuple[Neighbours, ...]) -> NDArray[np.float64]:
        """Scores under each setting (settings, N, K)."""
        vectors = _unit(question)
        scores = np.empty((len(grid), len(vectors), len(self.means)))
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            cosines = vectors[rows] @ self.vectors.T  # (rows, U)
            for columns in equal_columns(self.counts):
                self._fill(scores[:, rows], cosines, columns, grid)
        return scores

    def _fill(
        self,
        scores: NDArray[np.float64],
        cosines: NDArray[np.float32],
        columns: NDArray[np.int64],
        grid: tuple[Neighbours, ...],
    ) -> None:
        """Write the scores of VLMs that were asked the same questions equally often."""
        asked = np.flatnonzero(self.counts[:, columns[0]])
        near, places = _nearest(cosines[:, asked], max(setting.count for setting in grid))
        counts = self.counts[asked, columns[0]][places]  # (N, neighbours)
        shares = (self.rights[np.ix_(asked, columns)] / self.counts[asked, columns[0], None])[places]
        before = np.cumsum(counts, axis=1) - counts
        sums: dict[tuple[int, float], tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        for place, setting in enumerate(grid):
            kind = setting.count, setting.temperature
            if kind not in sums:
                used = slice(setting.count)  # a question has one label at least
                taken = np.clip(setting.count - before[:, used], 0, counts[:, used])  # the last one counts in part
                weights = taken * np.exp((near[:, used] - 1) / setting.temperature)
                sums[kind] = np.matmul(weights[:, None, :], shares[:, used])[:, 0], weights.sum(axis=1, keepdims=True)
            right, weight = sums[kind]  # (N, columns), (N, 1)
            prior = setting.prior + _TINY
            scores[place][:, columns] = np.clip((right + prior * self.means[columns]) / (weight + prior), 0.0, 1.0)


def _nearest(cosines: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `count` highest cosines, falling, and their places, both (N, count)."""
    count = min(count, cosines.shape[1])
    places = np.argsort(-cosines, axis=1, kind="stable") if count == cosines.shape[1] else _partition(cosines, count)
    return np.take_along_axis(cosines, places, axis=1), places


def _partition(cosines: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    places = np.sort(np.argpartition(-cosines, count, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(cosines, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), dtype=np.float32)
