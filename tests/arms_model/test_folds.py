"""Folds and splits: whole groups, stable, about the shares asked for. Expected folds: `printf a | sha256sum`."""

import numpy as np
import pytest

from arms_model.errors import ConfigError
from arms_model.folds import assign_split, fold_of, inner_folds, outer_folds, validation_mask

SHARES = {"train": 0.55, "validation": 0.15, "gate": 0.10, "test_id": 0.20}
NAMES = [f"picture-{number}" for number in range(4000)]


def test_fold_of_is_the_first_eight_hex_digits_modulo_five() -> None:
    # printf a | sha256sum -> ca978112..., 0xca978112 = 3398926610, modulo 5 = 0; b -> 0x3e23e816 = 1042540566 -> 1.
    assert fold_of("a") == 0
    assert fold_of("b") == 1


def test_outer_folds_do_not_depend_on_the_other_queries() -> None:
    folds = outer_folds(NAMES)
    assert (outer_folds(NAMES[::-1])[::-1] == folds).all()
    assert np.abs(np.bincount(folds, minlength=5) / len(NAMES) - 0.2).max() < 0.03


def test_inner_folds_are_even_inside_a_training_part() -> None:
    kept = [name for name in NAMES if fold_of(name) != 0]
    folds = inner_folds(kept, num_folds=5)
    assert np.abs(np.bincount(folds, minlength=5) / len(kept) - 0.2).max() < 0.03
    assert (folds != inner_folds(kept, num_folds=5, salt="another")).mean() > 0.7


def test_groups_never_stand_on_both_sides() -> None:
    groups = np.repeat(NAMES[:500], 3)
    for side in (outer_folds(groups), inner_folds(groups), validation_mask(groups)):
        assert (side.reshape(-1, 3) == side.reshape(-1, 3)[:, :1]).all()


def test_validation_mask_takes_about_the_share() -> None:
    assert validation_mask(NAMES, share=0.15).mean() == pytest.approx(0.15, abs=0.02)
    with pytest.raises(ConfigError, match=r"expected a number in \(0, 1\), got 1.5"):
        validation_mask(NAMES, share=1.5)


def test_assign_split_follows_the_shares() -> None:
    sides = [assign_split(name, SHARES) for name in NAMES]
    for name, share in SHARES.items():
        assert sides.count(name) / len(sides) == pytest.approx(share, abs=0.02)
    assert {assign_split(name, {"train": 1.0, "gate": 0.0}) for name in NAMES} == {"train"}


def test_assign_split_keeps_a_group_when_a_later_share_is_divided() -> None:
    finer = {"train": 0.55, "validation": 0.15, "gate": 0.05, "other": 0.05, "test_id": 0.20}
    for name in NAMES[:500]:
        before, after = assign_split(name, SHARES), assign_split(name, finer)
        assert before == after or (before == "gate" and after == "other")


@pytest.mark.parametrize("shares", [{}, {"train": 0.5}, {"train": 1.2, "gate": -0.2}])
def test_assign_split_refuses_shares_that_are_none(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="add up to 1"):
        assign_split("a", shares)
