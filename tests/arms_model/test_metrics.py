"""Figures of merit, with values worked by hand."""

import math

import numpy as np
import pytest

from arms_model import metrics
from arms_model.errors import DataError

NONE = float("nan")
CORRECT = np.array([[1, 0, NONE], [0, 0, 1], [NONE, NONE, NONE], [0, 0, 0]])
ASKED = ~np.isnan(CORRECT)


def test_choose_takes_the_best_candidate_only() -> None:
    scores = np.array([[0.1, 0.2, 0.9], [0.1, 0.2, 0.9], [0.1, 0.2, 0.9], [0.3, 0.3, 0.3]])
    assert metrics.choose(scores, ASKED).tolist() == [1, 2, -1, 0]


def test_choose_finds_a_candidate_whose_score_is_minus_infinity() -> None:
    scores = np.array([[0.5, -np.inf, -np.inf]])
    assert metrics.choose(scores, np.array([[False, True, True]])).tolist() == [1]


def test_choose_without_any_vlm_chooses_none() -> None:
    assert metrics.choose(np.zeros((2, 0)), np.zeros((2, 0), dtype=bool)).tolist() == [-1, -1]


def test_choose_refuses_a_candidate_without_score_and_unequal_shapes() -> None:
    with pytest.raises(DataError, match="1 candidates have the score NaN"):
        metrics.choose(np.array([[NONE, NONE]]), np.array([[True, False]]))
    with pytest.raises(DataError, match="one shape"):
        metrics.choose(np.zeros((2, 3)), np.zeros((2, 2), dtype=bool))


def test_choose_follows_a_permutation_of_vlms() -> None:
    random = np.random.default_rng(0)
    scores, asked, order = random.random((50, 6)), random.random((50, 6)) < 0.5, random.permutation(6)
    chosen, permuted = metrics.choose(scores, asked), metrics.choose(scores[:, order], asked[:, order])
    assert (np.where(permuted >= 0, order[permuted], -1) == chosen).all()


def test_outcomes_of_no_choice_are_missing_not_wrong() -> None:
    right = metrics.outcomes(CORRECT, np.array([0, 2, -1, 1]))
    np.testing.assert_array_equal(right, [1, 1, NONE, 0])
    assert metrics.exact_match(right) == pytest.approx(2 / 3)
    assert math.isnan(metrics.exact_match(np.array([NONE])))


def test_outcomes_refuses_a_vlm_that_was_not_asked() -> None:
    with pytest.raises(DataError, match="1 queries chose a VLM without a label"):
        metrics.outcomes(CORRECT, np.array([2, 0, -1, 0]))


def test_oracle_and_random_by_hand() -> None:
    np.testing.assert_array_equal(metrics.oracle_outcomes(CORRECT, ASKED), [1, 1, NONE, 0])
    np.testing.assert_allclose(metrics.random_outcomes(CORRECT, ASKED), [1 / 2, 1 / 3, NONE, 0])
    for limit in (metrics.oracle_outcomes, metrics.random_outcomes):
        with pytest.raises(DataError, match="no candidate"):
            limit(CORRECT, np.ones_like(ASKED))


def test_filtered_mask_keeps_queries_that_some_vlm_answers() -> None:
    assert metrics.filtered_mask(CORRECT).tolist() == [True, True, False, False]


def test_gap_recovered_by_hand() -> None:
    assert metrics.gap_recovered(0.6, best_single=0.5, oracle=0.9) == pytest.approx(0.25)
    assert math.isnan(metrics.gap_recovered(0.6, best_single=0.6, oracle=0.6))


def test_pair_metrics_by_hand() -> None:
    # Predicted right: .9 and .6; really right: .9 and .4. Pairs right > wrong: .9 over .6 and .1, .4 over .1: 3 of 4.
    found = metrics.pair_metrics(np.array([1, 0, 1, 0]), np.array([0.9, 0.6, 0.4, 0.1]))
    expected = {"num_pairs": 4, "accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "auroc": 0.75}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.01) / 4)
    assert found["log_loss"] == pytest.approx(-(2 * math.log(0.9) + 2 * math.log(0.4)) / 4)
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.6 + 0.1) / 4)  # 4 pairs, 15 bins: each pair its own bin


def test_pair_metrics_exactly_one_half_is_not_predicted_right() -> None:
    assert metrics.pair_metrics(np.array([0.0]), np.array([0.5]))["accuracy"] == 1.0


@pytest.mark.parametrize("label", [0, 1])
def test_pair_metrics_of_one_kind_of_label_are_missing_where_undefined(label: int) -> None:
    found = metrics.pair_metrics(np.full(3, label), np.array([0.1, 0.2, 0.3]))
    assert math.isnan(found["auroc"]) and math.isnan(found["precision"])
    assert math.isnan(found["recall"]) is (label == 0)
    assert found["accuracy"] == 1.0 - label


def test_pair_metrics_without_pairs_are_all_missing() -> None:
    found = metrics.pair_metrics(np.array([]), np.array([]))
    assert found.pop("num_pairs") == 0
    assert all(math.isnan(value) for value in found.values())


def test_pair_metrics_refuse_what_is_no_label_or_no_confidence() -> None:
    with pytest.raises(DataError, match="must be 0 or 1"):
        metrics.pair_metrics(np.array([NONE]), np.array([0.5]))
    with pytest.raises(DataError, match="sigmoid"):
        metrics.pair_metrics(np.array([1.0]), np.array([1.5]))
    with pytest.raises(DataError, match="one shape"):
        metrics.pair_metrics(np.array([1.0]), np.array([0.5, 0.5]))


def test_log_loss_of_a_sure_mistake_is_finite() -> None:
    assert metrics.log_loss(np.array([1.0]), np.array([0.0])) == pytest.approx(-math.log(1e-7))


def test_calibration_error_by_hand_with_equal_mass_bins() -> None:
    # Sorted by confidence, two bins of two: (.1, .2) with one right, (.6, .8) with one right.
    correct, confidence = np.array([0, 1, 0, 1]), np.array([0.8, 0.1, 0.2, 0.6])
    expected = (abs(0.3 - 1) + abs(1.4 - 1)) / 4
    assert metrics.expected_calibration_error(correct, confidence, bins=2) == pytest.approx(expected)


def test_calibration_error_bins_hold_equal_mass() -> None:
    # All confidences below .01 would share one equal-width bin and their errors cancel; equal mass keeps them apart.
    confidence = np.linspace(0, 0.01, 300)
    correct = (np.arange(300) < 150).astype(float)
    assert metrics.expected_calibration_error(correct, confidence) > 0.45


def test_calibration_error_does_not_depend_on_the_order_of_equal_confidences() -> None:
    correct, confidence = np.array([1] * 10 + [0] * 30), np.full(40, 0.25)
    assert metrics.expected_calibration_error(correct, confidence) == pytest.approx(0)
    assert metrics.expected_calibration_error(correct[::-1], confidence) == pytest.approx(0)


def test_calibration_error_of_a_calibrated_forecast_is_small() -> None:
    random = np.random.default_rng(0)
    confidence = random.random(20_000)
    correct = (random.random(20_000) < confidence).astype(float)
    assert metrics.expected_calibration_error(correct, confidence) < 0.02
    assert metrics.expected_calibration_error(correct, confidence**3) > 0.2
