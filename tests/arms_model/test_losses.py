"""The masked loss by hand; what is not asked never counts as wrong."""

import math

import pytest
import torch

from arms_model.losses import contrast, load_balance, masked_bce, query_averaged_bce

NAN = float("nan")


def test_masked_bce_by_hand() -> None:
    # Logits 0 and ln 3: right with p = 1/2 gives ln 2; wrong with p = 3/4 gives -ln(1/4) = ln 4. Mean over two pairs.
    loss = masked_bce(torch.tensor([[0.0, math.log(3), 9.0]]), torch.tensor([[1.0, 0.0, NAN]]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2, abs=1e-6)


def test_masked_pairs_get_no_gradient() -> None:
    logits = torch.tensor([[0.3, -0.2]], requires_grad=True)
    masked_bce(logits, torch.tensor([[NAN, 1.0]])).backward()
    assert logits.grad[0, 0] == 0 and logits.grad[0, 1] < 0


def test_loss_without_any_label_is_zero_and_finite() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = masked_bce(logits, torch.full((2, 2), NAN))
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(logits.grad).all()


def test_query_average_weighs_queries_alike() -> None:
    # Query 1 has one label (loss ln 2), query 2 two (losses ln 2 and ln 4), query 3 none and does not count.
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [5.0, 5.0]])
    correct = torch.tensor([[1.0, NAN], [1.0, 0.0], [NAN, NAN]])
    expected = (math.log(2) + (math.log(2) + math.log(4)) / 2) / 2
    assert query_averaged_bce(logits, correct).item() == pytest.approx(expected, abs=1e-6)


def test_load_balance_runs_from_one_to_the_number_of_experts() -> None:
    assert load_balance(torch.full((5, 4), 0.25)).item() == pytest.approx(1.0)
    assert load_balance(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).item() == pytest.approx(4.0)


def test_contrast_by_hand() -> None:
    # Confidences 1/2 and 3/4, labels 1 and 0: centred (-1/8, 1/8) against (1/2, -1/2), so (5/8)^2 on both pairs.
    loss = contrast(torch.tensor([[0.0, math.log(3), 7.0]]), torch.tensor([[1.0, 0.0, NAN]]))
    assert loss.item() == pytest.approx((5 / 8) ** 2, abs=1e-6)


def test_contrast_does_not_see_what_all_vlms_share() -> None:
    correct = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, NAN]])
    assert contrast(torch.full((2, 3), -2.0), correct).item() == pytest.approx(0, abs=1e-9)
