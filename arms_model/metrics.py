"""Figures of merit of a router, on plain arrays.

Two views. *Choices*: which VLM is chosen for a query, and was it right (exact match, EM). *Pairs*: how well the
confidence of every (query, VLM) pair tells right from wrong. A label is 1, 0, or NaN for "not asked", which is never
"wrong": a VLM without a label is no candidate for that query.

Source: "Evaluation" of arXiv 2606.08970 (EM, Accuracy, Precision, Recall, F1); the calibration figures are ours.
"""

import numpy as np
from numpy.typing import NDArray

from arms_model.errors import DataError

THRESHOLD = 0.5
EPSILON = 1e-7  # confidences are kept inside [EPSILON, 1 - EPSILON] before a logarithm


def choose(scores: NDArray[np.floating], candidates: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The candidate with the highest score.

    Columns are sorted by VLM name, so that a tie, which the lowest column wins, does not depend on the order of VLMs in
    a parameter file.

    Args:
        scores: (N, K), any real numbers.
        candidates: (N, K) bool.

    Returns:
        (N,) int64 columns; -1 where a query has no candidate.

    Raises:
        DataError: shapes differ, or a candidate's score is NaN.
    """
    if scores.shape != candidates.shape:
        raise DataError(f"scores {scores.shape} and candidates {candidates.shape} must have one shape (N, K).")
    if np.isnan(scores[candidates]).any():
        count = int(np.isnan(scores[candidates]).sum())
        raise DataError(f"{count} candidates have the score NaN; every candidate needs a number.")
    if scores.shape[1] == 0:
        return np.full(len(scores), -1, dtype=np.int64)
    column = np.where(candidates, scores, -np.inf).argmax(axis=1)
    # A candidate's score of -inf ties with the columns that are none: take the first candidate there.
    column = np.where(np.take_along_axis(candidates, column[:, None], 1)[:, 0], column, candidates.argmax(axis=1))
    return np.where(candidates.any(axis=1), column, -1).astype(np.int64)


def outcomes(correct: NDArray[np.floating], chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Whether the chosen VLM was right.

    Args:
        correct: (N, K) in {0, 1, NaN}.
        chosen: (N,) columns, -1 = none.

    Returns:
        (N,) float64 in {0, 1}; NaN where nothing was chosen.

    Raises:
        DataError: a VLM was chosen that was not asked.
    """
    right = np.full(len(chosen), np.nan)
    some = chosen >= 0
    right[some] = correct[some, chosen[some]]
    if np.isnan(right[some]).any():
        count = int(np.isnan(right[some]).sum())
        raise DataError(f"{count} queries chose a VLM without a label; choose among the labelled candidates only.")
    return right


def oracle_outcomes(correct: NDArray[np.floating], candidates: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1 where some candidate is right, else 0, NaN without candidates: the limit, not a baseline. (N,) float64.

    Raises:
        DataError: a candidate was not asked.
    """
    _refuse_unlabelled(correct, candidates)
    right = (np.where(candidates, correct, 0.0) > 0).any(axis=1).astype(np.float64)
    return np.where(candidates.any(axis=1), right, np.nan)


def random_outcomes(correct: NDArray[np.floating], candidates: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The chance that a candidate drawn at random is right: the mean over candidates, NaN without. (N,) float64.

    Raises:
        DataError: a candidate was not asked.
    """
    _refuse_unlabelled(correct, candidates)
    count = candidates.sum(axis=1)
    right = np.where(candidates, correct, 0.0).sum(axis=1, dtype=np.float64)
    return np.where(count > 0, right / np.maximum(count, 1), np.nan)


def filtered_mask(correct: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The paper's view: queries that some VLM of the extended pool answers right.

    Args:
        correct: (N, K) in {0, 1, NaN} of the *extended* pool, whichever pool the table's row is about: all rows of a
            table share one filter.

    Returns:
        (N,) bool.
    """
    return np.asarray((correct == 1).any(axis=1))


def exact_match(right: NDArray[np.floating]) -> float:
    """EM: the mean outcome over the queries that had a candidate; NaN where none had."""
    kept = right[~np.isnan(right)]
    return float(kept.mean()) if len(kept) else float("nan")


def gap_recovered(em: float, *, best_single: float, oracle: float) -> float:
    """(EM - best single) / (oracle - best single); NaN where there is no gap to recover."""
    gap = oracle - best_single
    return float((em - best_single) / gap) if gap > 0 else float("nan")


def pair_metrics(correct: NDArray[np.floating], confidence: NDArray[np.floating]) -> dict[str, float]:
    """How well confidences tell right answers from wrong ones.

    Args:
        correct: (P,) in {0, 1}.
        confidence: (P,) in [0, 1]; more than 0.5 predicts "right".

    Returns:
        num_pairs, accuracy, precision, recall, f1, auroc, log_loss, brier, ece. A figure that the pairs do not define
        is NaN (precision where nothing is predicted right, AUROC where all labels are the same).

    Raises:
        DataError: shapes differ, a label is not 0 or 1, or a confidence lies outside [0, 1].
    """
    y, p = _checked_pairs(correct, confidence)
    predicted, positive = p > THRESHOLD, y == 1
    hits = float((predicted & positive).sum())
    precision, recall = _ratio(hits, predicted.sum()), _ratio(hits, positive.sum())
    both_kinds = len(y) > 0 and 0 < y.mean() < 1
    return {
        "num_pairs": float(len(y)),
        "accuracy": _ratio((predicted == positive).sum(), len(y)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * hits, predicted.sum() + positive.sum()),
        "auroc": _auroc(y, p) if both_kinds else float("nan"),
        "log_loss": log_loss(y, p),
        "brier": _ratio(((p - y) ** 2).sum(), len(y)),
        "ece": expected_calibration_error(y, p),
    }


def _auroc(y: NDArray[np.floating], p: NDArray[np.floating]) -> float:
    from sklearn.metrics import roc_auc_score  # takes a second to import, and routers are served without it

    return float(roc_auc_score(y, p))


def centred_error(scores: NDArray[np.floating], correct: NDArray[np.floating]) -> NDArray[np.float64]:
    """Squared error of each pair (N, K) after taking away its query's mean error; 0 where a VLM was not asked."""
    asked = ~np.isnan(correct)
    error = np.where(asked, scores - correct, 0.0)
    common = error.sum(axis=1) / np.maximum(asked.sum(axis=1), 1)
    return np.asarray(np.where(asked, error - common[:, None], 0.0) ** 2, dtype=np.float64)


def log_loss(correct: NDArray[np.floating], confidence: NDArray[np.floating]) -> float:
    """Mean negative log likelihood in nats of labels (P,) under confidences (P,); NaN without pairs."""
    y, p = _checked_pairs(correct, confidence)
    p = np.clip(p, EPSILON, 1 - EPSILON)
    return _ratio(-(y * np.log(p) + (1 - y) * np.log1p(-p)).sum(), len(y))


def expected_calibration_error(
    correct: NDArray[np.floating], confidence: NDArray[np.floating], *, bins: int = 15
) -> float:
    """Mean distance between confidence and frequency, over bins that hold equally many pairs.

    Pairs of equal confidence share one bin (a bin's edge never cuts through them), so the figure does not depend on the
    order of the pairs.

    Args:
        correct: (P,) in {0, 1}.
        confidence: (P,) in [0, 1].
        bins: how many bins; fewer are used where there are fewer pairs.

    Returns:
        In [0, 1]; NaN without pairs.

    Raises:
        DataError: as `pair_metrics`.
    """
    y, p = _checked_pairs(correct, confidence)
    if len(y) == 0:
        return float("nan")
    values, inverse, count = np.unique(p, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - count / 2  # the middle rank of each distinct confidence
    bin_of = np.minimum((middle * bins / len(p)).astype(np.int64), bins - 1)
    right = np.bincount(inverse, weights=y, minlength=len(values))
    distance = np.bincount(bin_of, weights=values * count - right, minlength=bins)
    return float(np.abs(distance).sum() / len(p))


def _refuse_unlabelled(correct: NDArray[np.floating], candidates: NDArray[np.bool_]) -> None:
    unlabelled = int((candidates & np.isnan(correct)).sum())
    if unlabelled:
        raise DataError(f"{unlabelled} candidates have no label (NaN); a VLM that was not asked is no candidate.")


def _checked_pairs(
    correct: NDArray[np.floating], confidence: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and confidences as float64 (P,), refused where they are none."""
    y, p = np.asarray(correct, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    if y.ndim != 1 or y.shape != p.shape:
        raise DataError(f"labels {y.shape} and confidences {p.shape} must have one shape (P,).")
    if not np.isin(y, (0.0, 1.0)).all():
        raise DataError("labels of pairs must be 0 or 1; drop the pairs that were not asked (NaN) first.")
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("confidences must lie in [0, 1] and not be NaN; pass logits through a sigmoid first.")
    return y, p


def _ratio(part: float, whole: float) -> float:
    """Part / whole; NaN where the whole is 0."""
    return float(part) / float(whole) if whole else float("nan")
