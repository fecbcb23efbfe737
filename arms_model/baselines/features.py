"""What linear baselines see of a query: question vector, surface numbers and picture vector in one standardised row.

Pictures are reduced to their first principal components, since picture vectors are wide and few of their directions
tell VLMs apart. Each of the three parts is scaled to mean square 1 per row, so none outweighs another by its width.
Everything is fitted on the training part; labels are not looked at.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from arms_model.baselines.protocol import Queries
from arms_model.errors import DataError

_SMALLEST_DEVIATION = 1e-6  # a column that varies less is constant


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scaler:
    """(x - mean) * factor per column; a constant column becomes 0."""

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[np.floating]) -> "_Scaler":
        mean, deviation = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        varies = deviation > _SMALLEST_DEVIATION
        return cls(mean=mean, factor=np.where(varies, 1 / np.where(varies, deviation, 1.0), 0.0))

    def apply(self, x: NDArray[np.floating]) -> NDArray[np.float32]:
        if x.shape[1] != len(self.mean):
            raise DataError(f"vectors are {x.shape[1]} wide, but those of the training part were {len(self.mean)}.")
        return np.asarray((x - self.mean) * self.factor, dtype=np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Principal:
    """Standardised columns, their first principal components, each of variance 1."""

    scaler: _Scaler
    directions: NDArray[np.float32]  # (D, components)
    components: _Scaler

    @classmethod
    def of(cls, x: NDArray[np.floating], num_components: int) -> "_Principal":
        scaler = _Scaler.of(x)
        scaled = scaler.apply(x)
        rank = min(num_components, *x.shape)
        directions = np.zeros((x.shape[1], 0), dtype=np.float32)
        if rank > 0:
            _, _, rows = randomized_svd(scaled, rank, n_iter=3, random_state=0, transpose=False)
            directions = np.asarray(rows.T, dtype=np.float32)
        return cls(scaler=scaler, directions=directions, components=_Scaler.of(scaled @ directions))

    def apply(self, x: NDArray[np.floating]) -> NDArray[np.float32]:
        return self.components.apply(self.scaler.apply(x) @ self.directions)


class Features:
    """Fitted on a training part, applied to any queries.

    Args:
        queries: the training part.
        num_components: principal components of the pictures.
        num_question_components: of the questions; None keeps the whole vectors.
    """

    def __init__(self, queries: Queries, *, num_components: int, num_question_components: int | None = None) -> None:
        question, surface, picture = _parts(queries)
        self._question = (
            _Scaler.of(question)
            if num_question_components is None
            else _Principal.of(question, num_question_components)
        )
        self._surface = _Scaler.of(surface)
        self._picture = _Principal.of(picture, num_components)
        self.num_components = self._picture.directions.shape[1]

    def apply(self, queries: Queries) -> NDArray[np.float32]:
        """The rows of these queries (N, D); the last `num_components` columns are the picture's.

        Raises:
            DataError: vectors of another width than the training part's.
        """
        question, surface, picture = _parts(queries)
        parts = [self._question.apply(question), self._surface.apply(surface), self._picture.apply(picture)]
        return np.hstack([part / max(1.0, part.shape[1]) ** 0.5 for part in parts])


def _parts(queries: Queries) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    surface = np.zeros((len(queries), 0), dtype=np.float32) if queries.surface is None else queries.surface
    return queries.question, surface, queries.picture
