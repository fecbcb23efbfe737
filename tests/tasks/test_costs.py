"""Costs and the accuracy-cost plane by hand."""

import numpy as np
import polars as pl
import pytest

from arms_model.baselines.protocol import Queries
from arms_model.evaluation import MACRO, by_confidence, single_vlms
from tasks.common.costs import AssumedPrices, Costs, cheapest_right, cost_plane, costs_of, plane_rows, trade_off_curve
from tasks.common.tables import SCHEMAS
from tasks.common.vlms import Vlm

NAN = np.nan
COSTS = Costs(
    spent=np.array([[0.001, 0.010], [0.003, 0.010]]),
    expected=np.array([0.002, 0.010]),
    sources=("measured", "assumed"),
)


def vlm(name: str, **settings: object) -> Vlm:
    return Vlm(name=name, display_name=name, provider="Toy", pool="base", **settings)  # type: ignore[arg-type]


def collected(*rows: tuple[str, str, int | None, int | None]) -> pl.DataFrame:
    records = [dict(zip(("query_id", "vlm", "prompt_tokens", "completion_tokens"), row, strict=True)) for row in rows]
    return pl.DataFrame(records, schema=SCHEMAS["collect"])


def test_costs_come_from_the_best_that_is_known() -> None:
    vlms = [
        vlm("counted", usd_per_mtok_in=1.0, usd_per_mtok_out=10.0),
        vlm("listed", usd_per_mtok_in=2.0),
        vlm("sized", params_b=7.0),
        vlm("unknown"),
    ]
    costs = costs_of(
        collected(("q0", "counted", 1000, 100), ("q1", "counted", 3000, 100), ("q2", "counted", 9000, 100)),
        query_ids=["q0", "q1", "q2", "q3"],
        is_training=np.array([True, True, False, False]),
        vlms=vlms,
        assumed=AssumedPrices(prompt_tokens=500, completion_tokens=100, usd_per_mtok_per_b=0.1, usd_per_mtok=5.0),
    )
    assert costs.sources == ("measured", "list", "assumed", "assumed")
    # expected: the mean of the training queries, (.002 + .004) / 2; the test query's own cost is none of it
    assert costs.expected == pytest.approx([0.003, 0.001, 600 * 0.7e-6, 600 * 5e-6])
    assert costs.spent[:, 0] == pytest.approx([0.002, 0.004, 0.010, 0.003])


def test_counted_tokens_without_a_price_are_assumed() -> None:
    costs = costs_of(
        collected(("q0", "a", 1000, 100)),
        query_ids=["q0"],
        is_training=np.array([True]),
        vlms=[vlm("a", params_b=1.0)],
        assumed=AssumedPrices(),
    )
    assert costs.sources == ("assumed",)


def test_curve_goes_from_the_most_confident_to_the_cheapest() -> None:
    confidences, candidates = np.array([[0.5, 0.6], [0.5, 0.6]]), np.ones((2, 2), dtype=bool)
    curve = trade_off_curve("r", confidences, candidates, COSTS)
    assert curve[0].trade_off == 0
    assert curve[0].column.tolist() == [1, 1]
    assert curve[-1].column.tolist() == [0, 0]


def test_curve_of_equal_costs_is_a_point() -> None:
    equal = Costs(spent=np.ones((2, 2)), expected=np.ones(2), sources=("assumed", "assumed"))
    (point,) = trade_off_curve("r", np.array([[0.5, 0.6], [0.7, 0.6]]), np.ones((2, 2), dtype=bool), equal)
    assert point.column.tolist() == [1, 0]


def test_oracle_takes_the_cheapest_that_is_right_else_the_cheapest() -> None:
    correct = np.array([[0, 1], [0, 0]], dtype=np.float32)
    assert cheapest_right(correct, COSTS).tolist() == [1, 0]


def test_plane_by_hand() -> None:
    correct = np.array([[0, 1], [1, NAN]], dtype=np.float32)  # benchmark two did not ask the second VLM
    candidates = ~np.isnan(correct)
    queries = Queries(
        question=np.zeros((2, 1), dtype=np.float32), picture=np.zeros((2, 0), dtype=np.float32),
        benchmark=np.array(["one", "two"]), task=np.array(["t", "t"]), answer_type=np.array(["free", "free"]),
        group=np.array(["g0", "g1"]),
    )  # fmt: skip
    router = by_confidence("r", "router", [np.array([[0.4, 0.9], [0.5, 0.1]])], candidates)
    singles = single_vlms(("a", "b"), np.array([[0.5, 0.4]] * 2), candidates)
    plane = cost_plane([router], singles, correct=correct, costs=COSTS)
    rows = plane_rows(plane, correct=correct, costs=COSTS, queries=queries, draws=20, seed=0)
    found = {(str(row["benchmark"]), str(row["name"])): row for row in rows if row["kind"] != "curve"}
    assert set(found) == {
        ("one", "a"), ("one", "b"), ("one", "r"), ("one", "oracle"),
        ("two", "a"), ("two", "r"), ("two", "oracle"),
        (MACRO, "a"), (MACRO, "r"), (MACRO, "oracle"),
    }  # fmt: skip
    assert found[MACRO, "r"]["em"] == 1
    assert found[MACRO, "r"]["cost_usd_per_1000"] == pytest.approx((10 + 3) / 2)
    assert found[MACRO, "r"]["prices"] == "measured, assumed"
    assert (found[MACRO, "a"]["em"], found[MACRO, "a"]["prices"]) == (0.5, "measured")
    assert found["one", "b"]["cost_usd_per_1000"] == pytest.approx(10)


@pytest.mark.parametrize("value", [-1.0, float("inf"), NAN])
def test_assumed_price_must_be_a_number(value: float) -> None:
    with pytest.raises(ValueError, match="usd_per_mtok must be a number of 0 or more"):
        AssumedPrices(usd_per_mtok=value)
