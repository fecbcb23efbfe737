"""What every baseline takes and gives.

A baseline is fitted on a training part and says for other queries how likely each VLM is to be right. Only the fixed
choices (`fixed.py`) may look at benchmark, task and answer type; learned baselines see the vectors alone, as a router
in use would. Whatever a baseline fits (means, scalers, PCA), it fits on the training part it is given.
"""

import dataclasses
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arms_model.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Queries:
    """Queries as baselines see them, one row each.

    Attributes:
        question: (N, Dq) float32 vectors of the questions.
        picture: (N, Dv) float32 vectors of the pictures; Dv may be 0.
        benchmark: (N,) str.
        task: (N,) str.
        answer_type: (N,) str.
        group: (N,) str, what folds are made from.
        surface: (N, Ds) float32 surface numbers of the questions, or None. They stand beside the question vectors so
            that cosines stay those of the text encoder.
    """

    question: NDArray[np.float32]
    picture: NDArray[np.float32]
    benchmark: NDArray[np.str_]
    task: NDArray[np.str_]
    answer_type: NDArray[np.str_]
    group: NDArray[np.str_]
    surface: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        counts = {name: len(part) for name, part in self._parts().items()}
        if len(set(counts.values())) > 1:
            raise DataError(f"the parts of the queries differ in their number of rows: {counts}.")

    def __len__(self) -> int:
        return len(self.group)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Queries":
        """The queries at `rows`, a mask (N,) or row numbers."""
        return Queries(**{name: part[rows] for name, part in self._parts().items()})

    def _parts(self) -> dict[str, NDArray[Any]]:
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: part for name, part in parts.items() if part is not None}


class Baseline(Protocol):
    """A way to choose a VLM."""

    def fit(self, queries: Queries, correct: NDArray[np.floating]) -> None:
        """Learn from a training part.

        Args:
            queries: N training queries.
            correct: (N, K) in {0, 1, NaN}; NaN = not asked. Columns are sorted by VLM name.
        """
        ...

    def predict(self, queries: Queries) -> NDArray[np.float64]:
        """How likely each VLM is to be right.

        Args:
            queries: N queries.

        Returns:
            (N, K) in [0, 1], never NaN.
        """
        ...


def vlm_means(correct: NDArray[np.floating]) -> NDArray[np.float64]:
    """The training mean of each VLM over the queries it was asked.

    Args:
        correct: (N, K) in {0, 1, NaN}.

    Returns:
        (K,) float64; a VLM that was never asked gets the mean of all labels.

    Raises:
        DataError: no label at all.
    """
    asked = ~np.isnan(correct)
    if not asked.any():
        raise DataError("a baseline needs labels to learn from, and the training part has none; look at the split.")
    count = asked.sum(axis=0)
    right = np.where(asked, correct, 0.0).sum(axis=0, dtype=np.float64)
    return np.asarray(np.where(count > 0, right / np.maximum(count, 1), right.sum() / count.sum()))
