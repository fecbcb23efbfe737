"""The stage's pure parts by hand, and its tables on the finished toy tree, reckoned anew from the sealed tables."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from arms_model.baselines.protocol import Queries
from arms_model.evaluation import MACRO
from tasks.cascade_eval import (
    CascadeEvalSettings,
    Table,
    View,
    joined,
    macro_metrics,
    router_methods,
    split_tables,
    tau_sweep,
)
from tasks.common.costs import Costs
from tasks.common.dataset import Labels
from tasks.common.strategies import Scores, Strategy

if TYPE_CHECKING:
    from tests.conftest import Tree

NAN = np.nan
IS_BASE = np.array([True, False, True])  # VLMs a, b, c; b is new
# The base router is sure; the new VLM is surer; it is less sure than an unsure base router; only it was asked.
CANDIDATES = np.array([[True, True, True], [True, True, True], [True, True, True], [False, True, False]])
BASE = np.array([[0.9, NAN, 0.2], [0.3, NAN, 0.55], [0.5, NAN, 0.4], [0.9, NAN, 0.9]], dtype=np.float32)
NEW = np.array([[NAN, 0.95, NAN], [NAN, 0.6, NAN], [NAN, 0.1, NAN], [NAN, 0.3, NAN]], dtype=np.float32)
FREE = Costs(spent=np.zeros((6, 3)), expected=np.zeros(3), sources=("assumed",) * 3)


def queries(count: int, benchmark: list[str] | None = None) -> Queries:
    names = np.array(benchmark or ["one"] * count)
    return Queries(
        question=np.eye(count, 3, dtype=np.float32),
        picture=np.zeros((count, 0), dtype=np.float32),
        benchmark=names,
        task=np.full(count, "t"),
        answer_type=np.full(count, "free"),
        group=np.array([f"g{number}" for number in range(count)]),
    )


def view() -> View:
    return View(queries=queries(4), candidates=CANDIDATES, is_base=IS_BASE)


@pytest.mark.parametrize(
    ("tau", "chosen", "is_new_run"),
    [
        (0.5, [0, 2, 0, 1], [0, 0, 1, 1]),  # .9 and .55 are above .5, .5 is not: the new router runs and loses
        (0.56, [0, 1, 0, 1], [0, 1, 1, 1]),
        (1.0, [1, 1, 0, 1], [1, 1, 1, 1]),
    ],
)
def test_joined_routers_choose_by_algorithm_1_in_the_joint_columns(
    tau: float, chosen: list[int], is_new_run: list[float]
) -> None:
    scores = Scores(base=BASE, incremental=None, independent=NEW)
    method = joined(Strategy(routers=("base", "independent"), tau=tau), scores, view())
    assert method.chosen is not None
    assert method.chosen.tolist() == [chosen]
    assert method.per_query["share_new_run"].tolist() == is_new_run
    assert method.settings == {"strategy": "ARMS base + independent", "tau": tau}
    assert method.confidences is not None
    np.testing.assert_array_equal(method.confidences[0, 1], np.float32([0.3, 0.6, 0.55]))


def test_taus_that_round_alike_keep_names_of_their_own() -> None:
    scores = Scores(base=BASE, incremental=None, independent=NEW)
    methods = router_methods(scores, view(), (0.5, 0.55, 0.6))
    assert [method.name for method in methods["base"]] == ["ARMS base"]
    assert [method.name for method in methods["extended"]] == [
        f"ARMS base + independent, tau {tau}" for tau in ("0.5", "0.55", "0.6")
    ]


def test_incremental_router_stands_in_both_pools_and_in_the_cascade() -> None:
    full = np.where(IS_BASE, BASE, NEW)
    methods = router_methods(Scores(base=BASE, incremental=full, independent=None), view(), (0.5,))
    assert [method.name for method in methods["base"]] == ["ARMS base", "ARMS incremental"]
    assert [method.name for method in methods["extended"]] == ["ARMS incremental", "ARMS base + incremental, tau 0.5"]
    alone = methods["base"][1].chosen
    assert alone is not None
    assert alone.tolist() == [[0, 2, 0, -1]]  # base VLMs only; the last query has no base candidate


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"taus": (0.5, 0.5)}, "taus names a threshold twice"),
        ({"taus": ()}, "at least one"),
        ({"taus": (1.5,)}, r"taus must lie in \[0, 1\]"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"baselines": ("knn",)}, "'knn' is unknown; known are: kNN"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CascadeEvalSettings(**settings)  # type: ignore[arg-type]


def made_up(*, is_new_learnt: bool, pools: tuple[str, ...] = ("base", "new", "base")) -> pl.DataFrame:
    """Tables of six queries: four of the training part, two tested; benchmark two asks the new VLM only."""
    correct = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [NAN, 1, NAN], [0, 1, 1], [NAN, 1, NAN]], dtype=np.float32)
    base = np.tile(np.float32([0.4, NAN if "new" in pools else 0.5, 0.6]), (6, 1))
    new = np.tile(np.float32([NAN, 0.9, NAN]), (6, 1))
    table = Table(
        queries=queries(6, ["one", "one", "one", "two", "one", "two"]),
        splits=np.array(["train", "train", "validation", "train", "test_ood", "test_ood"]),
        scores=Scores(base=base, incremental=None, independent=new if is_new_learnt else None),
        costs=FREE,
    )
    labels = Labels(vlms=("a", "b", "c"), profiles=("", "", ""), pools=pools, correct=correct)
    settings = CascadeEvalSettings(taus=(0.5, 0.7), draws=20, baselines=("kNN",))
    parts = split_tables(settings, labels=labels, scored=correct, table=table, split="test_ood", seed=0)
    assert parts is not None
    return pl.concat(parts.table, how="diagonal_relaxed")


def em(frame: pl.DataFrame, pool: str, benchmark: str = MACRO) -> dict[str, float]:
    part = frame.filter((pl.col("pool") == pool) & (pl.col("benchmark") == benchmark))
    return dict(part.select("method", "em").iter_rows())


def test_tables_of_a_split_by_hand() -> None:
    frame = made_up(is_new_learnt=True)
    # Base pool: only the query of benchmark one has candidates. The router takes c, right; best single
    # is a (3 of 3), wrong.
    base = em(frame, "base")
    assert (base["ARMS base"], base["best single"], base["random"], base["oracle"]) == (1, 0, 0.5, 1)
    # Extended pool: .6 is above .5, so c, right; at .7 the new VLM with .9, right too; benchmark two has b alone.
    extended = em(frame, "extended")
    assert extended["ARMS base + independent, tau 0.5"] == extended["ARMS base + independent, tau 0.7"] == 1
    assert extended["best single"] == 0.5
    assert em(frame, "extended", "one") == pytest.approx(
        {**em(frame, "extended", "one"), "best single": 0, "a": 0, "b": 1, "c": 1, "random": 2 / 3, "oracle": 1}
    )


def test_queries_without_a_candidate_are_named() -> None:
    frame = made_up(is_new_learnt=True)
    assert dict(frame.select("pool", "without_candidate").unique().iter_rows()) == {"base": "two 1", "extended": ""}
    macro = frame.filter((pl.col("pool") == "base") & (pl.col("benchmark") == MACRO))
    assert macro["num_queries"].unique().to_list() == [1]


def test_sweep_gives_tau_as_a_number_and_the_share_that_ran_the_new_router() -> None:
    sweep = tau_sweep(made_up(is_new_learnt=True))
    assert sweep.columns == ["split", "benchmark", "strategy", "tau", "em", "em_low", "em_high", "share_new_run"]
    macro = sweep.filter(pl.col("benchmark") == MACRO)
    assert macro["strategy"].unique().to_list() == ["ARMS base + independent"]
    # Benchmark one: base .6 is above .5 but not above .7; benchmark two has no base candidate, so it always runs.
    assert dict(macro.select("tau", "share_new_run").iter_rows()) == {0.5: 0.5, 0.7: 1.0}


def test_extended_table_stands_without_a_router_that_knows_the_new_vlms() -> None:
    frame = made_up(is_new_learnt=False)
    assert set(em(frame, "extended")) >= {"best single", "kNN", "random", "oracle"}
    assert not [name for name in em(frame, "extended") if name.startswith("ARMS")]
    assert tau_sweep(frame).height == 0


def test_empty_new_pool_has_no_extended_table() -> None:
    frame = made_up(is_new_learnt=False, pools=("base", "base", "base"))
    assert frame["pool"].unique().to_list() == ["base"]


def test_metrics_keep_macro_figures_of_all_but_single_vlms() -> None:
    metrics = macro_metrics(made_up(is_new_learnt=True))
    assert set(metrics) == {"test_ood"}
    assert set(metrics["test_ood"]) == {"base", "extended"}
    assert metrics["test_ood"]["base"]["best single"]["em"] == 0
    assert "a" not in metrics["test_ood"]["base"]


def test_baselines_never_see_a_label_of_the_test_splits() -> None:
    # With our labels of the tested queries turned round, baselines choose the same: only training parts are looked at.
    correct = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 1]], dtype=np.float32)
    table = Table(
        queries=queries(3),
        splits=np.array(["train", "validation", "test_id"]),
        scores=Scores(base=np.full((3, 3), 0.5, dtype=np.float32), incremental=None, independent=None),
        costs=FREE.take(np.arange(3)),
    )
    labels = Labels(vlms=("a", "b", "c"), profiles=("", "", ""), pools=("base",) * 3, correct=correct)
    settings = CascadeEvalSettings(draws=20)

    def of(own: np.ndarray) -> pl.DataFrame:
        changed = dataclasses.replace(labels, correct=own)
        parts = split_tables(settings, labels=changed, scored=correct, table=table, split="test_id", seed=0)
        assert parts is not None
        (frame,) = parts.table
        return frame

    turned = correct.copy()
    turned[2] = 1 - turned[2]
    columns = ["method", "em", "log_loss"]
    assert of(correct).select(columns).equals(of(turned).select(columns))


def test_stage_on_the_toy_tree_agrees_with_its_sealed_tables(finished_tree: Tree) -> None:
    table = pl.read_csv(finished_tree.folder / "cascade_eval/table.csv")
    labels = pl.concat([finished_tree.table(f"label/{pool}") for pool in ("base", "new")])
    collected = pl.concat([finished_tree.table(f"collect/{pool}") for pool in ("base", "new")])
    scored = labels.join(collected, on=["query_id", "vlm"]).select(
        "query_id",
        "vlm",
        correct=pl.coalesce("imported_correct", "correct"),
        benchmark=pl.col("query_id").str.split("/").list.first(),
    )
    tested = scored.join(finished_tree.table("split/split").filter(pl.col("split") == "test_id"), on="query_id")
    oracle = (
        tested.group_by("benchmark", "query_id")
        .agg(pl.col("correct").any())
        .group_by("benchmark")
        .agg(pl.col("correct").mean())
    )
    expected = dict(oracle.iter_rows())
    row = pl.col("split") == "test_id", pl.col("pool") == "extended", pl.col("method") == "oracle"
    found = dict(table.filter(*row).select("benchmark", "em").iter_rows())
    assert found == pytest.approx({**expected, MACRO: sum(expected.values()) / len(expected)}, abs=1e-6)
    assert table["em"].is_between(0, 1).all()
    sweep = pl.read_csv(finished_tree.folder / "cascade_eval/tau.csv")
    assert sweep["tau"].unique().sort().to_list() == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert (
        sweep.sort("tau")
        .group_by("split", "benchmark", "strategy", maintain_order=True)
        .agg(pl.col("share_new_run").diff().drop_nulls().ge(0).all())["share_new_run"]
    ).all()


def test_show_prints_the_stored_tables(finished_tree: Tree) -> None:
    result = finished_tree.run("python", "-m", "tasks.cascade_eval", "--show")
    assert result.returncode == 0, result.stderr
    assert "test_id, extended pool: unfiltered EM of " in result.stdout
    assert "minus best single" in result.stdout
    assert "seeds sd" not in result.stdout  # one seed


def test_confidences_stand_for_every_router_and_for_the_queries_nobody_trained_on(finished_tree: Tree) -> None:
    confidences = finished_tree.table("cascade_eval/confidences")
    split = finished_tree.table("split/split").filter(pl.col("split").is_in(["gate", "test_id", "test_ood"]))
    pools = {pool: set(finished_tree.table(f"profiles/{pool}")["vlm"]) for pool in ("base", "new")}
    known = {"base": pools["base"], "independent": pools["new"], "incremental": pools["base"] | pools["new"]}
    for router, vlms in known.items():
        part = confidences.filter(pl.col("router") == router)
        assert set(part.select("query_id", "vlm").iter_rows()) == {(q, vlm) for q in split["query_id"] for vlm in vlms}
    assert (
        confidences.select("query_id", "split").unique().join(split, on=["query_id", "split"], how="anti").height == 0
    )
    assert confidences["confidence"].is_between(0, 1, closed="none").all()


def test_held_out_confidences_are_of_training_and_validation_queries_alone(finished_tree: Tree) -> None:
    split = finished_tree.table("split/split")
    seen = set(split.filter(pl.col("split").is_in(["train", "validation"]))["query_id"])
    for stage in ("train_base", "train_incremental", "train_independent"):
        held_out = finished_tree.table(f"held_out/{stage}")
        assert held_out.height
        assert set(held_out["query_id"]) <= seen


def test_selection_names_folders_that_stand_under_models(finished_tree: Tree) -> None:
    selection = json.loads((finished_tree.folder / "cascade_eval/selection.json").read_text())
    strategies = {entry["strategy"]: entry for entry in selection["strategies"]}
    assert list(strategies) == ["base", "incremental", "base + independent", "base + incremental"]
    assert selection["challenger"] in set(strategies) - {"base"}
    for entry in strategies.values():
        assert all((finished_tree.folder / "models" / router / "config.json").exists() for router in entry["routers"])
        assert entry["em_low"] <= entry["em"] <= entry["em_high"]
    assert selection["num_queries"] > 0


def test_cost_plane_holds_every_kind_of_point(finished_tree: Tree) -> None:
    plane = pl.read_csv(finished_tree.folder / "cascade_eval/cost.csv")
    assert set(plane["kind"]) == {"single", "router", "baseline", "curve", "oracle"}
    assert plane["cost_usd_per_1000"].ge(0).all()
    table = pl.read_csv(finished_tree.folder / "cascade_eval/table.csv").filter(pl.col("pool") == "extended")
    both = plane.filter(pl.col("kind") == "router").join(
        table, left_on=["split", "benchmark", "name"], right_on=["split", "benchmark", "method"], suffix="_table"
    )
    assert both.height == plane.filter(pl.col("kind") == "router").height > 0
    assert both["em"].to_list() == pytest.approx(both["em_table"].to_list(), abs=1e-6)
