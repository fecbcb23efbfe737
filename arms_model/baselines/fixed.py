"""Fixed choices: always the VLM with the highest training mean, per benchmark or finer.

    BestSingle               the mean over the benchmark's training queries ("best single")
    BestPerTask              over the task's
    BestPerTaskAndAnswerType over the task's queries of one answer type

The scores are those means, so a VLM without a label for a query passes to the next in the training order. A VLM that
was never asked in a cell takes its mean in the benchmark, and where it has none there, over all its labels. Nothing is
shrunk.
"""

import numpy as np
from numpy.typing import NDArray

from arms_model.baselines.protocol import Queries, vlm_means


class FixedChoice:
    """Training means per cell, a cell being a combination of benchmark, task and answer type."""

    levels: tuple[tuple[str, ...], ...] = ()  # from the finest to the widest

    def fit(self, queries: Queries, correct: NDArray[np.floating]) -> None:
        """Take the means; see `protocol.Baseline`."""
        self._overall = vlm_means(correct)
        self._means = [_cell_means(_cells(queries, level), correct) for level in self.levels]

    def predict(self, queries: Queries) -> NDArray[np.float64]:
        """The means of each query's cell (N, K)."""
        scores = np.full((len(queries), len(self._overall)), np.nan)
        nothing = np.full(len(self._overall), np.nan)
        for level, means in zip(self.levels, self._means, strict=True):
            wider = np.array([means.get(cell, nothing) for cell in _cells(queries, level)]).reshape(scores.shape)
            scores = np.where(np.isnan(scores), wider, scores)
        return np.where(np.isnan(scores), self._overall, scores)


class BestSingle(FixedChoice):
    """The VLM that is best on the benchmark."""

    levels = (("benchmark",),)


class BestPerTask(FixedChoice):
    """The VLM that is best on the benchmark's task."""

    levels = (("benchmark", "task"), ("benchmark",))


class BestPerTaskAndAnswerType(FixedChoice):
    """The VLM that is best on the task's queries of one answer type."""

    levels = (("benchmark", "task", "answer_type"), ("benchmark",))


def _cells(queries: Queries, level: tuple[str, ...]) -> list[tuple[str, ...]]:
    return list(zip(*(getattr(queries, name).tolist() for name in level), strict=True))


def _cell_means(
    cells: list[tuple[str, ...]], correct: NDArray[np.floating]
) -> dict[tuple[str, ...], NDArray[np.float64]]:
    """The mean per VLM (K,) in each cell; NaN where a VLM was not asked there."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, cell in enumerate(cells):
        rows.setdefault(cell, []).append(row)
    means = {}
    for cell, members in rows.items():
        labels = correct[members].astype(np.float64)
        count = (~np.isnan(labels)).sum(axis=0)
        means[cell] = np.where(count > 0, np.nansum(labels, axis=0) / np.maximum(count, 1), np.nan)
    return means
