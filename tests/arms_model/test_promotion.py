"""The three-way rule, worked by hand."""

import numpy as np
import pytest

from arms_model.errors import ConfigError, DataError
from arms_model.intervals import Interval
from arms_model.promotion import Verdict, compare, decide

NAN = np.nan


def verdict(low: float, mean: float, high: float, *, margin: float = 0.01, num_queries: int = 100) -> Verdict:
    return decide(
        Interval(mean=mean, low=low, high=high),
        champion_em=0.5,
        challenger_em=0.5 + mean,
        num_left_out=0,
        num_groups={"one": 50},
        num_queries_of={"one": num_queries},
        margin=margin,
        level=0.95,
    )


@pytest.mark.parametrize(
    ("low", "mean", "high", "decision"),
    [
        (0.01, 0.02, 0.03, "promote"),
        (-0.009, 0.0, 0.009, "promote"),  # not better, but surely not worse than the margin
        (-0.01, 0.0, 0.02, "inconclusive"),  # the lower end must lie above -margin, not on it
        (-0.05, -0.02, 0.0, "inconclusive"),  # the upper end must lie below 0, not on it
        (-0.05, -0.02, -0.001, "refuse"),
        (-0.006, -0.004, -0.002, "refuse"),  # both hold: inside the margin, but surely worse
    ],
)
def test_decision_by_where_the_interval_lies(low: float, mean: float, high: float, decision: str) -> None:
    assert verdict(low, mean, high).decision == decision


def test_needed_queries_by_hand_for_promotion() -> None:
    # half-width 0.04 must become less than 0.01 + 0.01 = 0.02: half of it, four times the queries, 300 further ones
    found = verdict(-0.03, 0.01, 0.05)
    assert (found.decision, found.needed, found.direction) == ("inconclusive", 300, "promote")


def test_needed_queries_by_hand_for_refusal() -> None:
    # the mean lies below -margin: only a refusal can come of it; 0.06 must become less than 0.03
    found = verdict(-0.09, -0.03, 0.03)
    assert (found.needed, found.direction) == (300, "refuse")


def test_nearer_of_two_decisions_counts() -> None:
    # -0.008: promotion needs the half below 0.002 (0.024 / 0.002 = 12, 144 times), refusal below 0.008 (3, 9 times)
    found = verdict(-0.032, -0.008, 0.016)
    assert (found.needed, found.direction) == (800, "refuse")


def test_mean_on_the_boundary_is_not_decidable_by_labels() -> None:
    found = verdict(-0.02, 0.0, 0.02, margin=0.0)
    assert (found.decision, found.needed, found.direction) == ("inconclusive", None, None)
    assert "not decidable by labels" in found.reason


def test_interval_without_width_on_the_boundary_needs_no_number() -> None:
    assert verdict(0.0, 0.0, 0.0, margin=0.0).needed is None


def make(champion: list[float], challenger: list[float], **more: float) -> Verdict:
    count = len(champion)
    return compare(
        np.array(champion),
        np.array(challenger),
        groups=np.array([f"g{number}" for number in range(count)]),
        benchmarks=np.array(["one", "two"] * (count // 2)),
        **{"margin": 0.01, "draws": 500, **more},
    )


def test_macro_average_takes_every_benchmark_alike() -> None:
    # benchmark one: challenger right on all of its queries, champion on half; benchmark two: both right on half
    found = make([1, 1, 0, 0] * 6, [1, 1, 1, 0] * 6)
    assert (found.champion_em, found.challenger_em, found.difference.mean) == (0.5, 0.75, 0.25)
    assert (found.num_queries, found.num_groups) == (24, 24)


def test_queries_that_one_of_the_two_cannot_answer_are_left_out_and_counted() -> None:
    found = make([1, 1, NAN, 0, 1, 1, 0, 0], [1, 1, 1, 0, 1, NAN, 0, 0])
    assert (found.num_queries, found.num_left_out) == (6, 2)
    assert found.difference.mean == 0


def test_equal_versions_are_promoted_and_worse_ones_refused() -> None:
    assert make([1, 0] * 20, [1, 0] * 20).decision == "promote"
    assert make([1, 1] * 20, [0, 0] * 20).decision == "refuse"


def test_same_groups_are_resampled_together() -> None:
    # opposite outcomes in 24 groups: ten queries a group tell no more than one, so the interval stays as wide
    def of(copies: int) -> Interval:
        champion, challenger = np.tile([1.0, 0.0], 12), np.tile([0.0, 1.0], 12)
        groups = np.array([f"g{number}" for number in range(24)])
        arrays = [np.repeat(array, copies) for array in (champion, challenger)]
        return compare(
            *arrays, groups=np.repeat(groups, copies), benchmarks=np.full(24 * copies, "one"), margin=0.01, draws=500
        ).difference

    assert of(10) == of(1)


def test_nothing_to_compare_is_said() -> None:
    with pytest.raises(DataError, match="none of the 4 queries has a labelled candidate of both"):
        make([NAN, NAN, 1, 1], [1, 1, NAN, NAN])


def test_too_few_groups_are_inconclusive_whatever_the_interval_says() -> None:
    found = make([1, 0] * 5, [1, 0] * 5)  # never different: an interval without width
    assert (found.decision, found.needed, found.direction) == ("inconclusive", 10, None)
    assert found.reason == "10 groups of queries are too few for an interval, expected at least 20"


def test_benchmark_of_one_group_is_inconclusive() -> None:
    found = make([1, 1] * 15, [1, 1] + [1, NAN] * 14)
    assert (found.decision, found.num_groups) == ("inconclusive", 16)
    found = make([1, 1] * 30, [1, 1] + [1, NAN] * 29)
    assert found.reason == "one group of queries says nothing of the spread on benchmark two"
    assert (found.needed, found.direction) == (1, None)  # each group is one query: a second one


@pytest.mark.parametrize(
    ("num_groups", "num_queries_of", "needed"),
    [
        ({"one": 10, "two": 5}, {"one": 40, "two": 20}, 20),  # five groups of four queries
        ({"one": 30, "two": 1}, {"one": 30, "two": 7}, 7),  # enough in all, but a second group of seven for `two`
        ({"one": 30, "two": 1, "three": 1}, {"one": 30, "two": 7, "three": 2}, 9),
        ({"one": 10, "two": 1}, {"one": 20, "two": 13}, 37),  # 13 for `two`, and eight groups of three
    ],
)
def test_needed_until_an_interval_is_counted_by_benchmark(
    num_groups: dict[str, int], num_queries_of: dict[str, int], needed: int
) -> None:
    found = decide(
        Interval(mean=0, low=0, high=0),
        champion_em=0.5,
        challenger_em=0.5,
        num_left_out=0,
        num_groups=num_groups,
        num_queries_of=num_queries_of,
        margin=0.01,
        level=0.95,
    )
    assert (found.decision, found.needed, found.direction) == ("inconclusive", needed, None)


@pytest.mark.parametrize(("name", "value"), [("margin", -0.1), ("margin", NAN), ("level", 1.0), ("level", 0.0)])
def test_settings_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"register.{name}"):
        make([1, 0, 1, 0], [1, 0, 1, 0], **{name: value})
