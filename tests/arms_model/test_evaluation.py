"""The result table on a case small enough to work by hand."""

import numpy as np
import pytest

from arms_model.errors import DataError
from arms_model.evaluation import Pool, by_confidence, evaluate, single_vlms

NAN = np.nan
# Two benchmarks; VLM c is asked in the second only.
CORRECT = np.array([[1, 0, NAN], [0, 1, NAN], [0, 0, NAN], [1, 0, 1], [0, 0, 1]], dtype=np.float32)
BENCHMARK = np.array(["one", "one", "one", "two", "two"])
CANDIDATES = ~np.isnan(CORRECT)
BEST = np.tile([0.5, 0.4, 0.3], (5, 1))
ROUTER = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.3, 0.0], [0.7, 0.1, 0.6], [0.3, 0.2, 0.1]])


def rows(**pool_changes: object) -> dict[tuple[str, str], dict[str, float | str]]:
    values = {
        "correct": CORRECT,
        "answered": (CORRECT == 1).any(1),
        "benchmark": BENCHMARK,
        "group": np.array(list("abcde")),
    }
    methods = [
        by_confidence("router", "router", [ROUTER, ROUTER[:, ::-1]], CANDIDATES),
        by_confidence("best single", "baseline", [BEST], CANDIDATES),
        *single_vlms(["a", "b", "c"], BEST, CANDIDATES),
    ]
    table = evaluate(methods, Pool(**(values | pool_changes)), references=["best single"], draws=200)
    return {(row["benchmark"], row["method"]): row for row in table}


def test_em_by_hand_per_benchmark_and_macro() -> None:
    table = rows()
    # Seed 1 chooses a, b, a | a, a: right 1, 1, 0 | 1, 0. Seed 2 (columns reversed) chooses b, a... by hand:
    # scores 0 .1 | 0 .8 | 0 .3 -> b, b, b: right 0, 1, 0; [.6 .1 .7] -> c: 1; [.1 .2 .3] -> c: 1.
    assert table["one", "router"]["em"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert table["two", "router"]["em"] == pytest.approx((1 / 2 + 1) / 2)
    assert table["macro", "router"]["em"] == pytest.approx((0.5 + 0.75) / 2)
    # Per seed the macro average is (2/3 + 1/2) / 2 and (1/3 + 1) / 2.
    seeds = [(2 / 3 + 1 / 2) / 2, (1 / 3 + 1) / 2]
    assert table["macro", "router"]["em_seed_sd"] == pytest.approx(np.std(seeds, ddof=1))


def test_filtered_em_leaves_out_what_nobody_answers() -> None:
    table = rows()
    assert table["one", "best single"]["em"] == pytest.approx(1 / 3)
    assert table["one", "best single"]["em_filtered"] == pytest.approx(1 / 2)
    assert (table["one", "best single"]["num_queries"], table["one", "best single"]["num_queries_filtered"]) == (3, 2)


def test_random_and_oracle_stand_beside_and_the_gap_is_between() -> None:
    table = rows()
    assert table["one", "random"]["em"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert table["macro", "oracle"]["em"] == pytest.approx((2 / 3 + 1) / 2)
    best, oracle, router = (table["macro", name]["em"] for name in ("best single", "oracle", "router"))
    assert table["macro", "router"]["gap_recovered"] == pytest.approx((router - best) / (oracle - best))
    assert table["macro", "oracle"]["gap_recovered"] == pytest.approx(1)


def test_single_vlm_passes_to_the_next_without_a_label_and_has_no_macro_row() -> None:
    table = rows()
    assert table["one", "a"]["em"] == pytest.approx(1 / 3)
    assert table["two", "c"]["em"] == pytest.approx(1)
    assert ("one", "c") not in table and ("macro", "a") not in table


def test_difference_to_the_reference_is_zero_for_itself() -> None:
    row = rows()["macro", "best single"]
    assert (row["minus_best_single"], row["minus_best_single_low"], row["minus_best_single_high"]) == (0, 0, 0)


def test_pair_figures_use_asked_pairs_only() -> None:
    table = rows()
    assert table["one", "best single"]["num_pairs"] == 6
    # Confidences 0.5 and 0.4 against labels: none above 0.5, so accuracy is the share of wrong labels, 4 of 6.
    assert table["one", "best single"]["accuracy"] == pytest.approx(4 / 6)
    assert table["one", "best single"]["brier"] == pytest.approx(
        np.mean([0.5**2, 0.4**2, 0.5**2, 0.6**2, 0.5**2, 0.4**2])
    )


def test_own_labels_score_the_same_choices_again() -> None:
    own = CORRECT.copy()
    own[0, 0] = 0
    assert rows(own=own)["one", "best single"]["em_own_labels"] == pytest.approx(0)


def test_pool_without_any_label_is_refused() -> None:
    with pytest.raises(DataError, match="no query of this pool has a labelled candidate"):
        rows(correct=np.full_like(CORRECT, NAN))


def test_unknown_reference_is_refused() -> None:
    pool = Pool(correct=CORRECT, answered=CANDIDATES[:, 0], benchmark=BENCHMARK, group=BENCHMARK)
    with pytest.raises(DataError, match="reference 'kNN' is not among the methods"):
        evaluate([by_confidence("router", "router", [ROUTER], CANDIDATES)], pool, references=["kNN"], draws=10)
