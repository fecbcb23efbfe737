"""The cluster bootstrap against a plain loop, and what an interval promises."""

import numpy as np
import pytest
from numpy.typing import NDArray

from arms_model.errors import ConfigError, DataError
from arms_model.intervals import _generator, cluster_bootstrap

NONE = float("nan")


def small() -> tuple[NDArray[np.float64], NDArray[np.str_], NDArray[np.str_]]:
    """Three methods, 40 queries in 12 groups of two benchmarks."""
    random = np.random.default_rng(1)
    groups = np.array([f"g{number}" for number in random.integers(0, 12, 40)])
    benchmarks = np.where(np.char.str_len(groups) > 2, "two", "one")
    return random.integers(0, 4, (3, 40)) / 3, groups, benchmarks


def test_means_by_hand_and_macro_weighs_benchmarks_alike() -> None:
    outcomes = np.array([[1.0, 1.0, 0.0, 1.0, NONE]])
    result = cluster_bootstrap(
        outcomes, groups=np.array(list("abcde")), benchmarks=np.array(["x", "x", "x", "y", "y"]), draws=10
    )
    assert result.benchmarks == ("x", "y")
    assert result.num_queries.tolist() == [3, 1]
    assert result.means[0] == pytest.approx([2 / 3, 1])
    assert result.interval(0).mean == pytest.approx((2 / 3 + 1) / 2)


def test_draws_equal_a_plain_loop_over_drawn_groups() -> None:
    outcomes, groups, benchmarks = small()
    result = cluster_bootstrap(outcomes, groups=groups, benchmarks=benchmarks, draws=25, seed=7)
    for place, benchmark in enumerate(result.benchmarks):
        names = sorted(set(groups[benchmarks == benchmark]))
        random = _generator(7, benchmark)
        for draw in range(25):
            rows: list[int] = []
            for name in random.integers(0, len(names), len(names)):
                rows += np.flatnonzero((groups == names[name]) & (benchmarks == benchmark)).tolist()
            np.testing.assert_allclose(result.draws[:, place, draw], outcomes[:, rows].mean(axis=1))


def test_difference_is_paired_and_comes_from_the_same_draws() -> None:
    outcomes, groups, benchmarks = small()
    shifted = np.stack([outcomes[0], outcomes[0] - 0.25])
    found = cluster_bootstrap(shifted, groups=groups, benchmarks=benchmarks, draws=200).difference(0, 1)
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_difference_changes_sign_with_its_sides() -> None:
    outcomes, groups, benchmarks = small()
    result = cluster_bootstrap(outcomes, groups=groups, benchmarks=benchmarks, draws=200)
    one, other = result.difference(0, 1, benchmark="one"), result.difference(1, 0, benchmark="one")
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert one.low < one.mean < one.high


def test_bootstrap_does_not_depend_on_the_order_of_queries_or_methods() -> None:
    outcomes, groups, benchmarks = small()
    order = np.random.default_rng(2).permutation(40)
    plain = cluster_bootstrap(outcomes, groups=groups, benchmarks=benchmarks, draws=50)
    mixed = cluster_bootstrap(outcomes[::-1, order], groups=groups[order], benchmarks=benchmarks[order], draws=50)
    np.testing.assert_allclose(mixed.draws[::-1], plain.draws)


def test_draws_of_a_benchmark_do_not_depend_on_the_others() -> None:
    outcomes, groups, benchmarks = small()
    mine = benchmarks == "two"
    alone = cluster_bootstrap(outcomes[:, mine], groups=groups[mine], benchmarks=benchmarks[mine], draws=50)
    both = cluster_bootstrap(outcomes, groups=groups, benchmarks=benchmarks, draws=50)
    np.testing.assert_array_equal(alone.draws[:, 0], both.draws[:, 1])


def test_queries_in_one_group_widen_the_interval() -> None:
    random = np.random.default_rng(3)
    right = np.repeat((random.random(60) < 0.5).astype(float), 10)[None]  # ten copies of 60 independent outcomes
    benchmark = np.full(600, "x")
    clustered = cluster_bootstrap(right, groups=np.repeat(np.arange(60).astype(str), 10), benchmarks=benchmark)
    pretended = cluster_bootstrap(right, groups=np.arange(600).astype(str), benchmarks=benchmark)
    wide, narrow = clustered.interval(0), pretended.interval(0)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(np.sqrt(10), rel=0.15)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(4), 0
    groups = np.repeat(np.arange(80).astype(str), 3)
    for _ in range(300):
        rate = np.repeat(random.beta(2, 2, 80), 3)  # mean 1/2, queries of a group alike
        right = (random.random(240) < rate).astype(float)[None]
        found = cluster_bootstrap(right, groups=groups, benchmarks=np.full(240, "x"), draws=400).interval(0)
        covered += found.low <= 0.5 <= found.high
    assert covered / 300 == pytest.approx(0.95, abs=0.035)


def test_bootstrap_refuses_queries_scored_for_some_methods_only() -> None:
    with pytest.raises(DataError, match="1 queries have an outcome for some methods only"):
        cluster_bootstrap(np.array([[1.0], [NONE]]), groups=np.array(["a"]), benchmarks=np.array(["x"]))


def test_bootstrap_refuses_nothing_to_resample_and_unequal_shapes() -> None:
    with pytest.raises(DataError, match="nothing to resample"):
        cluster_bootstrap(np.array([[NONE]]), groups=np.array(["a"]), benchmarks=np.array(["x"]))
    with pytest.raises(DataError, match=r"got \(1, 1\), 2 groups"):
        cluster_bootstrap(np.array([[1.0]]), groups=np.array(["a", "b"]), benchmarks=np.array(["x"]))


def test_interval_refuses_an_unknown_benchmark_by_name() -> None:
    outcomes, groups, benchmarks = small()
    result = cluster_bootstrap(outcomes, groups=groups, benchmarks=benchmarks, draws=5)
    with pytest.raises(ConfigError, match="no benchmark 'three' in this bootstrap; there are one, two"):
        result.interval(0, benchmark="three")
