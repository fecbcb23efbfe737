"""Calibration: repairs a known distortion, shrinks where labels are few, leaves the order of a VLM's queries alone."""

import numpy as np
import pytest
from numpy.typing import NDArray

from arms_model.calibration import CalibrationSettings, fit_calibration
from arms_model.errors import DataError

NONE = float("nan")


def distorted(
    num_queries: int, scales: list[float], biases: list[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits z whose labels were drawn from sigmoid(scale * z + bias)."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (num_queries, len(scales)))
    truth = 1 / (1 + np.exp(-(logits * scales + biases)))
    return logits, (random.random(truth.shape) < truth).astype(np.float64)


def test_platt_finds_the_scale_and_bias_that_the_labels_were_drawn_with() -> None:
    logits, correct = distorted(20_000, [0.5, 1.5], [-1.0, 0.5])
    found = fit_calibration(logits, correct, settings=CalibrationSettings(kind="platt"))
    np.testing.assert_allclose(found.scale, [0.5, 1.5], atol=0.05)
    np.testing.assert_allclose(found.bias, [-1.0, 0.5], atol=0.06)
    assert found.log_loss_after < found.log_loss_before - 0.1
    np.testing.assert_allclose(found.apply(logits), logits * found.scale + found.bias)


def test_platt_is_a_minimum() -> None:
    # At the minimum with (nearly) no prior the gradient of the log loss is 0: sum(p - y) = 0 and sum((p - y) z) = 0.
    logits, correct = distorted(300, [0.7], [0.3])
    found = fit_calibration(logits, correct, settings=CalibrationSettings(spread=1e4))
    rest = 1 / (1 + np.exp(-found.apply(logits))) - correct
    assert abs(rest.sum()) < 1e-4
    assert abs((rest * logits).sum()) < 1e-4


def test_temperature_leaves_the_bias_at_zero() -> None:
    logits, correct = distorted(5_000, [0.5, 0.5], [0.0, 0.0])
    settings = CalibrationSettings(kind="temperature")
    found = fit_calibration(logits.astype(np.float32), correct.astype(np.float32), settings=settings)
    assert (found.bias == 0).all()
    np.testing.assert_allclose(found.scale, 0.5, atol=0.06)


def test_none_changes_nothing() -> None:
    logits, correct = distorted(100, [0.5], [1.0])
    found = fit_calibration(logits, correct, settings=CalibrationSettings(kind="none"))
    np.testing.assert_array_equal(found.apply(logits), logits)
    assert found.log_loss_after == found.log_loss_before


def test_vlm_with_few_labels_takes_the_pool() -> None:
    logits, correct = distorted(2_000, [0.5, 0.5, 2.0], [-1.0, -1.0, 2.0])
    correct[49:, 2] = NONE
    settings = CalibrationSettings(min_labels=50)
    found = fit_calibration(logits, correct, settings=settings)
    assert found.is_own.tolist() == [True, True, False]
    assert found.scale[2] == pytest.approx(0.5, abs=0.06)
    correct[49, 2] = 1.0
    assert fit_calibration(logits, correct, settings=settings).is_own.tolist() == [True, True, True]


def test_smaller_spread_shrinks_more() -> None:
    logits, correct = distorted(100, [0.4, 0.4, 2.0], [-1.0, -1.0, 1.0])
    tight, loose = (
        fit_calibration(logits, correct, settings=CalibrationSettings(spread=spread)) for spread in (0.05, 5.0)
    )
    assert np.ptp(tight.bias) < 0.3 * np.ptp(loose.bias)
    assert np.ptp(tight.scale) < 0.3 * np.ptp(loose.scale)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_all_the_same_give_finite_values(label: float) -> None:
    found = fit_calibration(np.zeros((200, 2)), np.full((200, 2), label), settings=CalibrationSettings())
    assert np.isfinite(found.scale).all()
    assert np.isfinite(found.bias).all()


def test_wrong_order_shrinks_a_scale_but_never_below_zero() -> None:
    logits, correct = distorted(500, [-1.0], [0.0])
    assert 0 < fit_calibration(logits, correct, settings=CalibrationSettings()).scale[0] < 0.5


def test_calibration_does_not_depend_on_the_order_of_vlms_or_queries() -> None:
    logits, correct = distorted(200, [0.5, 1.0, 2.0], [0.5, 0.0, -1.0])
    correct[np.random.default_rng(1).random(correct.shape) < 0.4] = NONE
    rows, columns = np.random.default_rng(2).permutation(200), [2, 0, 1]
    plain = fit_calibration(logits, correct, settings=CalibrationSettings())
    mixed = fit_calibration(logits[rows][:, columns], correct[rows][:, columns], settings=CalibrationSettings())
    np.testing.assert_allclose(mixed.scale, plain.scale[columns], atol=1e-5)
    np.testing.assert_allclose(mixed.bias, plain.bias[columns], atol=1e-5)


def test_without_labels_nothing_changes() -> None:
    found = fit_calibration(np.ones((3, 2)), np.full((3, 2), NONE), settings=CalibrationSettings())
    assert (found.scale == 1).all()
    assert (found.bias == 0).all()
    assert np.isnan(found.log_loss_before)


def test_calibration_refuses_logits_that_are_not_finite_and_other_vlms() -> None:
    with pytest.raises(DataError, match="1 not finite"):
        fit_calibration(np.array([[NONE]]), np.array([[1.0]]), settings=CalibrationSettings())
    found = fit_calibration(np.ones((60, 2)), np.ones((60, 2)), settings=CalibrationSettings())
    with pytest.raises(DataError, match="calibration of 2 VLMs got logits of 3"):
        found.apply(np.ones((4, 3)))


def test_settings_refuse_values_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="spread must be above 0, got 0"):
        CalibrationSettings(spread=0)
    with pytest.raises(ValueError, match="min_labels must be at least 1, got 0"):
        CalibrationSettings(min_labels=0)
