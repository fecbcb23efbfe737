"""The cascade against a literal transcription of Algorithm 1, and case by case."""

import numpy as np
import pytest
from numpy.typing import NDArray

from arms_model.cascade import BASE, NEW, NO_POOL, CascadeChoice, cascade
from arms_model.errors import ConfigError


def route(base: list[float], new: list[float], tau: float) -> CascadeChoice:
    """One query; NaN = no candidate."""
    base_row, new_row = np.array([base]).reshape(1, -1), np.array([new]).reshape(1, -1)
    return cascade(
        np.nan_to_num(base_row),
        base_candidates=~np.isnan(base_row),
        new_confidence=np.nan_to_num(new_row),
        new_candidates=~np.isnan(new_row),
        tau=tau,
    )


def algorithm_1(
    base: NDArray[np.float64], new: NDArray[np.float64], asked_base: list[int], asked_new: list[int], tau: float
) -> tuple[int, int, bool]:
    """The paper's algorithm, line by line: pool, column, whether R_n was run."""
    if not asked_base and not asked_new:
        return NO_POOL, -1, False
    if asked_base:
        m_b = max(asked_base, key=lambda k: (base[k], -k))
        c_b = base[m_b]
        if c_b > tau or not asked_new:
            return BASE, m_b, False
    m_n = max(asked_new, key=lambda k: (new[k], -k))
    if not asked_base:
        return NEW, m_n, True
    return (BASE, m_b, True) if c_b >= new[m_n] else (NEW, m_n, True)


NONE = float("nan")


@pytest.mark.parametrize(
    ("base", "new", "tau", "pool", "column", "is_new_run"),
    [
        ([0.2, 0.7], [0.9], 0.6, BASE, 1, False),  # sure enough: R_n is not run, though it would win
        ([0.2, 0.6], [0.9], 0.6, NEW, 0, True),  # exactly tau is not above tau
        ([0.2, 0.5], [0.4, 0.3], 0.6, BASE, 1, True),  # unsure, yet the better of the two
        ([0.5], [0.5], 0.6, BASE, 0, True),  # c_b >= c_n: a tie stays in the base pool
        ([0.99], [1.0], 1.0, NEW, 0, True),  # tau = 1 always compares
        ([1.0], [1.0], 1.0, BASE, 0, True),  # ... even at confidence 1, which is not above 1
        ([NONE, NONE], [0.1, 0.2], 0.5, NEW, 1, True),  # no base candidate
        ([], [0.1], 0.0, NEW, 0, True),  # no base pool at all, lowest tau
        ([0.1, 0.3], [NONE], 1.0, BASE, 1, False),  # no new candidate: nothing to run
        ([0.1], [], 1.0, BASE, 0, False),  # an empty new pool
        ([NONE], [NONE], 0.5, NO_POOL, -1, False),
        ([0.4, 0.4], [0.1], 0.5, BASE, 0, True),  # equal VLMs: the lower column
        ([0.0], [NONE, 0.0], 0.0, BASE, 0, True),
    ],
)
def test_cascade_case(
    base: list[float], new: list[float], tau: float, pool: int, column: int, is_new_run: bool
) -> None:
    choice = route(base, new, tau)
    assert (choice.pool[0], choice.column[0], choice.is_new_run[0]) == (pool, column, is_new_run)


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
def test_cascade_equals_algorithm_1_line_by_line(tau: float) -> None:
    random = np.random.default_rng(0)
    base, new = random.integers(0, 11, (400, 3)) / 10, random.integers(0, 11, (400, 2)) / 10  # many ties
    asked_base, asked_new = random.random((400, 3)) < 0.6, random.random((400, 2)) < 0.6
    choice = cascade(base, base_candidates=asked_base, new_confidence=new, new_candidates=asked_new, tau=tau)
    for row in range(400):
        expected = algorithm_1(
            base[row], new[row], list(np.flatnonzero(asked_base[row])), list(np.flatnonzero(asked_new[row])), tau
        )
        assert (choice.pool[row], choice.column[row], bool(choice.is_new_run[row])) == expected


def test_cascade_confidence_is_that_of_the_chosen_vlm() -> None:
    assert route([0.2, 0.7], [0.9], 0.6).confidence[0] == 0.7
    assert route([0.2, 0.6], [0.9], 0.6).confidence[0] == 0.9
    assert np.isnan(route([NONE], [NONE], 0.6).confidence[0])


def test_cascade_does_not_look_at_the_new_router_where_it_is_not_run() -> None:
    choice = cascade(
        np.array([[0.9]]),
        base_candidates=np.array([[True]]),
        new_confidence=np.array([[np.nan]]),
        new_candidates=np.array([[True]]),
        tau=0.5,
    )
    assert choice.pool[0] == BASE


def test_joint_column_maps_both_pools_into_one_table() -> None:
    base, new = np.array([[0.9, 0.1], [0.1, 0.2], [0.1, 0.2]]), np.array([[0.3], [0.3], [0.3]])
    asked = np.array([[True, True], [True, True], [False, False]])
    choice = cascade(
        base,
        base_candidates=asked,
        new_confidence=new,
        new_candidates=np.array([[True], [True], [False]]),
        tau=0.5,
    )
    assert choice.joint_column(np.array([0, 2]), np.array([1])).tolist() == [0, 1, -1]


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_cascade_refuses_a_tau_that_is_no_confidence(tau: float) -> None:
    with pytest.raises(ConfigError, match=r"expected a confidence in \[0, 1\]"):
        route([0.5], [0.5], tau)
