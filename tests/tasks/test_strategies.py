"""Which way to serve is put forward, on hand-made held-out confidences."""

import numpy as np
import pytest

from tasks.common.strategies import HeldOut, Scores, Strategy, cascades, select

NAN = np.nan
IS_BASE = np.array([True, False])
# Four queries of one benchmark; VLM a is base, b is new; each is right on two of them.
CORRECT = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
BASE = np.array([[0.9, NAN], [0.8, NAN], [0.7, NAN], [0.2, NAN]], dtype=np.float32)
NEW = np.array([[NAN, 0.1], [NAN, 0.2], [NAN, 0.9], [NAN, 0.9]], dtype=np.float32)


def held_out(**changed: object) -> HeldOut:
    parts: dict[str, object] = {
        "scores": Scores(base=BASE, incremental=None, independent=NEW),
        "correct": CORRECT,
        "is_base": IS_BASE,
        "benchmark": np.array(["one"] * 4),
        "group": np.array(["g0", "g1", "g2", "g3"]),
        "vlms": ("a", "b"),
    }
    return HeldOut(**(parts | changed))  # type: ignore[arg-type]


def test_cascade_stands_with_its_best_tau_the_lowest_of_equals() -> None:
    # At .5 the third query stays with a (.7 is above .5), wrong; from .75 up all four are right.
    selection = select(held_out(), taus=(0.5, 0.75, 1.0), draws=50, seed=0)
    base, cascade = selection["strategies"]
    assert (base["strategy"], base["routers"], base["tau"], base["vlms"]) == ("base", ["train_base"], None, ["a"])
    assert (cascade["strategy"], cascade["routers"]) == ("base + independent", ["train_base", "train_independent"])
    assert (cascade["tau"], cascade["em"], cascade["vlms"]) == (0.75, 1.0, ["a", "b"])
    assert base["em"] == 0.5
    assert selection["challenger"] == "base + independent"
    assert selection["num_queries"] == 4


def test_base_alone_is_never_put_forward_where_new_vlms_were_learnt() -> None:
    useless = Scores(
        base=BASE, incremental=None, independent=np.float32([[NAN, 0.95], [NAN, 0.95], [NAN, 0.1], [NAN, 0.1]])
    )
    selection = select(held_out(scores=useless), taus=(1.0,), draws=50, seed=0)
    em = {entry["strategy"]: entry["em"] for entry in selection["strategies"]}
    assert em["base"] > em["base + independent"]
    assert selection["challenger"] == "base + independent"  # it alone knows the new selection space


def test_incremental_router_wins_where_it_is_best_and_runs_alone_among_equals() -> None:
    incremental = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.9], [0.2, 0.9]], dtype=np.float32)
    scores = Scores(base=BASE, incremental=incremental, independent=NEW)
    selection = select(held_out(scores=scores), taus=(0.75,), draws=50, seed=0)
    assert {entry["strategy"]: entry["em"] for entry in selection["strategies"]} == {
        "base": 0.5, "incremental": 1.0, "base + independent": 1.0, "base + incremental": 1.0,
    }  # fmt: skip
    assert selection["challenger"] == "incremental"


def test_query_that_some_router_was_trained_on_does_not_count() -> None:
    seen = NEW.copy()
    seen[3] = NAN  # the independent router's networks had all seen the last query
    scores = Scores(base=BASE, incremental=None, independent=seen)
    assert select(held_out(scores=scores), taus=(1.0,), draws=50, seed=0)["num_queries"] == 3


def test_query_without_a_label_of_a_new_vlm_tells_the_strategies_not_apart() -> None:
    correct = CORRECT.copy()
    correct[0, 1] = NAN
    assert select(held_out(correct=correct), taus=(1.0,), draws=50, seed=0)["num_queries"] == 3


def test_query_that_asked_new_vlms_only_counts_as_wrong_for_the_base_router() -> None:
    correct = np.array([[1, 0], [NAN, 1], [NAN, 1], [NAN, 1]], dtype=np.float32)
    selection = select(held_out(correct=correct), taus=(1.0,), draws=50, seed=0)
    em = {entry["strategy"]: entry["em"] for entry in selection["strategies"]}
    assert em == {"base": 0.25, "base + independent": 1.0}


def test_without_new_vlms_the_base_router_is_put_forward() -> None:
    scores = Scores(base=np.nan_to_num(BASE, nan=0.5), incremental=None, independent=None)
    selection = select(held_out(scores=scores, is_base=np.array([True, True])), taus=(0.5,), draws=50, seed=0)
    assert [entry["strategy"] for entry in selection["strategies"]] == ["base"]
    assert selection["strategies"][0]["vlms"] == ["a", "b"]
    assert selection["challenger"] == "base"


def test_without_held_out_queries_what_can_be_served_is_named_all_the_same() -> None:
    selection = select(held_out(correct=np.full_like(CORRECT, NAN)), taus=(0.5, 1.0), draws=50, seed=0)
    assert [(entry["strategy"], entry["em"]) for entry in selection["strategies"]] == [
        ("base", None),
        ("base + independent", None),
    ]
    assert selection["challenger"] == "base + independent"


def test_cascades_come_per_second_router_and_tau() -> None:
    scores = Scores(base=BASE, incremental=NEW, independent=NEW)
    assert cascades(scores, (0.5, 1.0)) == [
        Strategy(routers=("base", second), tau=tau) for second in ("independent", "incremental") for tau in (0.5, 1.0)
    ]


@pytest.mark.parametrize("tau", [None, 0.5])
def test_strategy_passes_over_vlms_that_it_does_not_know(tau: float | None) -> None:
    scores = Scores(base=BASE, incremental=None, independent=np.full_like(NEW, NAN))
    strategy = Strategy(routers=("base",) if tau is None else ("base", "independent"), tau=tau)
    choice = strategy.choose(scores, np.array([[True, True], [False, True]] * 2), IS_BASE)
    assert choice.column.tolist() == [0, -1, 0, -1]
