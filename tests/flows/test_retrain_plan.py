"""What a plan says and refuses, from what the other rooms are known to answer; no process is started."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flows.retrain_plan import Plan, as_lines, as_markdown, as_text

ORDER = (
    "profiles", "collect", "label", "train_base", "train_independent", "train_incremental", "cascade_eval", "report",
    "register",
)  # fmt: skip
READERS = ("profiles", "collect", "cascade_eval", "report", "register")
CHAMPION = {"version": 3, "strategy": "incremental", "vlms": ["a", "b"]}


def change(vlm: str, kind: str, *, effect: str | None = None, stages: tuple[str, ...] = READERS) -> dict[str, Any]:
    return {
        "vlm": vlm, "display_name": vlm, "pool": "new", "kind": kind, "settings": [], "effect": effect,
        "does": "what follows", "stages": list(stages),
    }  # fmt: skip


def row(vlm: str, num_to_ask: int, expected_usd: float | None, *, num_failed: int = 0) -> dict[str, Any]:
    return {
        "vlm": vlm, "num_questions": 90, "num_known": 90 - num_to_ask, "num_to_ask": num_to_ask, "expected_s": 4.0,
        "num_failed": num_failed,
        "expected_usd": expected_usd, "worst_usd": None if expected_usd is None else 2 * expected_usd,
    }  # fmt: skip


SAME = Plan(
    since="main", champion=CHAMPION, learn={}, retire=(), changes=(), sections=(), forecast={"vlms": []}, stale=(),
    otherwise_stale=(), evaluated=frozenset("ab"), is_proposed=False, budget_usd=None, may_ask_others=False,
)  # fmt: skip
ADDED = dataclasses.replace(
    SAME,
    learn={"late": "new"},
    changes=(change("late", "added", stages=tuple(stage for stage in ORDER if stage != "train_base")),),
    stale=ORDER,
    forecast={"vlms": [row("a", 0, 0.0), row("late", 90, 0.25)]},
)


def test_same_list_starts_nothing_and_says_so() -> None:
    assert (SAME.mode, SAME.stages, SAME.to_ask, SAME.refusals) == (None, (), (), ())
    assert "nothing: the list of VLMs is the one at main" in as_text(SAME)


def test_what_ended_in_an_error_is_asked_again_within_the_budget_and_no_reason_to_refuse() -> None:
    failed = dataclasses.replace(ADDED, forecast={"vlms": [row("a", 3, 0.5, num_failed=3), row("late", 90, 0.25)]})
    assert not failed.refusals
    assert "a: 3 questions, $0.5000 expected, $1.0000 at most, about 4 s, 87 of 90 are known, 3 ended in an error" in (
        as_text(failed)
    )
    (text,) = dataclasses.replace(failed, budget_usd=0.5).refusals
    assert "asking should cost $0.7500" in text
    (text,) = dataclasses.replace(failed, forecast={"vlms": [row("a", 3, 0.5, num_failed=2)]}).refusals
    assert "neither new nor changed: a (1 questions)" in text


def test_what_is_stale_for_other_reasons_is_named_where_nothing_is_to_be_learned() -> None:
    assert "stale since before: report (train-arms/full)" in as_text(dataclasses.replace(SAME, stale=("report",)))


def test_added_vlm_starts_incremental_with_its_stages_calls_and_dollars() -> None:
    assert ADDED.mode == "incremental"
    assert ADDED.stages == tuple(stage for stage in ORDER if stage != "train_base")
    assert ADDED.also_stale == ()  # train_base comes after label for DVC, and reads the other pool's table only
    text = as_text(ADDED)
    assert "late: 90 questions, $0.2500 expected, $0.5000 at most" in text
    assert "90 calls, $0.2500 expected" in text
    assert "train-arms/incremental" in text
    assert not ADDED.refusals


def test_stage_that_is_stale_for_other_reasons_is_named_as_such() -> None:
    plan = dataclasses.replace(ADDED, otherwise_stale=("train_base", "register"))
    assert plan.also_stale == ("train_base",)
    assert "train_base: for other reasons than the list of VLMs" in as_text(plan)


def test_removed_vlm_is_retired_and_trains_nothing() -> None:
    plan = dataclasses.replace(SAME, retire=("b",), changes=(change("b", "removed"),), stale=ORDER)
    assert (plan.mode, plan.to_ask) == (None, ())
    assert "without training" in as_text(plan)


def test_removed_vlm_that_the_champion_never_chose_from_is_only_named() -> None:
    plan = dataclasses.replace(SAME, changes=(change("c", "removed"),), learn={"d": "new"}, evaluated=frozenset("abcd"))
    assert plan.mode is None
    assert ("removed", "c: what follows") in as_lines(plan)


@pytest.mark.parametrize(
    ("effect", "mode"),
    [("nothing", "incremental"), ("profile", "incremental"), ("answers", "incremental"), ("pool", "full")],
)
def test_changed_block_starts_what_it_needs(effect: str, mode: str) -> None:
    plan = dataclasses.replace(SAME, changes=(change("a", "changed", effect=effect),), stale=ORDER)
    assert plan.mode == mode
    assert plan.stages == READERS


def test_learned_vlms_that_are_not_served_are_no_reason_to_run_again() -> None:
    plan = dataclasses.replace(SAME, learn={"c": "new"}, evaluated=frozenset("abc"))
    assert plan.mode is None
    assert "promote` compares" in as_text(plan)
    assert dataclasses.replace(plan, is_proposed=True).mode == "incremental"  # the promotion is left to do
    assert dataclasses.replace(plan, stale=("register",)).mode == "incremental"  # a run was stopped


def test_vlm_that_was_known_and_never_learned_is_learned() -> None:
    plan = dataclasses.replace(SAME, learn={"c": "new"}, stale=ORDER)
    assert plan.mode == "incremental"
    assert "known at main already, not learned yet" in as_text(plan)


def test_plan_that_would_ask_others_is_refused_by_name() -> None:
    plan = dataclasses.replace(ADDED, forecast={"vlms": [row("a", 7, 0.1), row("late", 90, 0.25)]})
    (refusal,) = plan.refusals
    assert "neither new nor changed: a (7 questions)" in refusal
    assert dataclasses.replace(plan, may_ask_others=True).refusals == ()


def test_changed_endpoint_may_ask_and_changed_price_may_not() -> None:
    forecast = {"vlms": [row("a", 90, 0.1)]}
    by_effect = {
        effect: dataclasses.replace(SAME, changes=(change("a", "changed", effect=effect),), forecast=forecast).refusals
        for effect in ("answers", "questions", "nothing", "profile")
    }
    assert {effect for effect, refusals in by_effect.items() if not refusals} == {"answers", "questions"}


@pytest.mark.parametrize(("budget", "is_refused"), [(None, False), (0.25, False), (0.24, True), (0.0, True)])
def test_budget_is_held_against_what_asking_should_cost(budget: float | None, is_refused: bool) -> None:
    refusals = dataclasses.replace(ADDED, budget_usd=budget).refusals
    assert bool(refusals) is is_refused
    assert all("beyond the budget" in refusal for refusal in refusals)


def test_budget_without_a_price_is_refused() -> None:
    plan = dataclasses.replace(ADDED, budget_usd=5.0, forecast={"vlms": [row("late", 90, None)]})
    (refusal,) = plan.refusals
    assert "no price of late is known" in refusal
    assert dataclasses.replace(plan, budget_usd=None).refusals == ()


def test_budget_counts_only_what_is_started() -> None:
    plan = dataclasses.replace(ADDED, learn={}, changes=(), budget_usd=0.0)
    assert (plan.mode, plan.refusals) == (None, ())


def test_recorded_answers_cost_nothing() -> None:
    plan = dataclasses.replace(ADDED, forecast=None, budget_usd=0.0)
    assert plan.refusals == ()
    assert "answers are recorded ones" in as_text(plan)


def test_first_run_without_a_champion_says_what_is_compared() -> None:
    assert "none yet; compared with the list of VLMs at main alone" in as_text(
        dataclasses.replace(ADDED, champion=None)
    )


def test_markdown_says_the_same_and_breaks_no_table() -> None:
    settings = [{"setting": "endpoint.prompt", "before": "a|b", "after": "c\nd", "effect": "answers"}]
    changed = change("a", "changed", effect="answers") | {"settings": settings}
    markdown = as_markdown(dataclasses.replace(ADDED, changes=(*ADDED.changes, changed), budget_usd=0.1))
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert markdown.startswith("### Retraining since `main`: **refused**")
    assert all(line.replace("\\|", "").count("|") == 3 for line in table)
    assert any("endpoint.prompt" in line and "a\\|b" in line for line in table)
    assert len(table) == 2 + len(
        as_lines(dataclasses.replace(ADDED, changes=(*ADDED.changes, changed), budget_usd=0.1))
    )
