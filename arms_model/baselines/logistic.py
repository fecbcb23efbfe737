"""One logistic regression per VLM, right against wrong, on question and picture: what most routers compare with.

Question vectors and pictures are reduced to principal components, which makes a fit some ten times faster.

The shrinkage C is chosen on inner folds, one for all VLMs, by the Brier score centred over a query's VLMs: the plain
one chooses weights that tell easy queries from hard ones, and VLMs apart badly. A VLM whose labels are all the same
keeps their mean, kept off 0 and 1.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from arms_model.baselines.features import Features
from arms_model.baselines.protocol import Queries, vlm_means
from arms_model.baselines.selection import Criterion, cheapest, cost, inner_parts


class LogisticPerVlm:
    """Logistic regression per VLM.

    Args:
        inverse_shrinkages: values of C to choose from, the most shrinking first; with one there is no choice.
        num_question_components: principal components of the question vectors, for speed.
        num_components: principal components of the pictures.
        criterion: of the choice.
        num_inner_folds: for the choice.
    """

    def __init__(
        self,
        *,
        inverse_shrinkages: Sequence[float] = (0.03, 0.1, 0.3),
        num_question_components: int = 96,
        num_components: int = 64,
        criterion: Criterion = "centred",
        num_inner_folds: int = 3,
    ) -> None:
        self.inverse_shrinkages = tuple(inverse_shrinkages)
        self.num_question_components = num_question_components
        self.num_components = num_components
        self.criterion = criterion
        self.num_inner_folds = num_inner_folds

    def fit(self, queries: Queries, correct: NDArray[np.floating]) -> None:
        """Choose C and fit all VLMs; see `protocol.Baseline`."""
        self._features = Features(
            queries, num_components=self.num_components, num_question_components=self.num_question_components
        )
        x = self._features.apply(queries)
        self.chosen = self.inverse_shrinkages[0]
        if len(self.inverse_shrinkages) > 1:
            parts = inner_parts(queries.group, correct, num_folds=self.num_inner_folds)
            self.chosen = cheapest((self._costs(x, correct, held) for held in parts), self.chosen)
        self._weights = _fit(x, correct, self.chosen)

    def predict(self, queries: Queries) -> NDArray[np.float64]:
        """Confidences (N, K)."""
        return _confidence(self._features.apply(queries), self._weights)

    def _costs(
        self, x: NDArray[np.float32], correct: NDArray[np.floating], held: NDArray[np.bool_]
    ) -> dict[float, float]:
        return {
            inverse: cost(
                _confidence(x[held], _fit(x[~held], correct[~held], inverse)), correct[held], criterion=self.criterion
            )
            for inverse in self.inverse_shrinkages
        }


def _fit(x: NDArray[np.float32], correct: NDArray[np.floating], inverse_shrinkage: float) -> NDArray[np.float64]:
    """Weights with the intercept last (D + 1, K)."""
    means = np.clip(vlm_means(correct), 0.01, 0.99)
    weights = np.zeros((x.shape[1] + 1, correct.shape[1]))
    weights[-1] = np.log(means / (1 - means))
    for column, labels in enumerate(correct.T):
        asked = ~np.isnan(labels)
        if len(np.unique(labels[asked])) == 2:
            model = LogisticRegression(C=inverse_shrinkage, solver="newton-cholesky", max_iter=30)
            model.fit(x[asked].astype(np.float64), labels[asked])
            weights[:-1, column], weights[-1, column] = model.coef_[0], model.intercept_[0]
    return weights


def _confidence(x: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    logits = x @ weights[:-1] + weights[-1]
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))
