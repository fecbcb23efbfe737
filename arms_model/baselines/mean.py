"""The plain mean of other baselines' confidences: nothing is learned beyond the parts.

Two sound models that err in different places gain from it; it is the simplest ensemble that a router must beat.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from arms_model.baselines.protocol import Baseline, Queries


class MeanOfBaselines:
    """The mean of the parts' confidences."""

    def __init__(self, parts: Sequence[Baseline]) -> None:
        self.parts = list(parts)

    def fit(self, queries: Queries, correct: NDArray[np.floating]) -> None:
        """Fit every part; see `protocol.Baseline`."""
        for part in self.parts:
            part.fit(queries, correct)

    def predict(self, queries: Queries) -> NDArray[np.float64]:
        """The mean over parts (N, K)."""
        return np.asarray(np.mean([part.predict(queries) for part in self.parts], axis=0))
