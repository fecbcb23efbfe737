"""Budgets of `collect`, counted at the server: never overrun, not spent twice, raised to go on.

An answer has 10 tokens at $1,000 a million: $0.01. At most it could have 16: $0.016.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.tasks.asking import STORE, asked_twice, vlm, words

if TYPE_CHECKING:
    from tests.tasks.asking import AskingFolder
    from tests.tasks.hostile import Hostile

PRICE = {"usd_per_mtok_in": 0, "usd_per_mtok_out": 1000}


@pytest.mark.parametrize("concurrency", [1, 8])
def test_vlm_stops_before_the_call_that_could_overrun_its_budget(
    asking: AskingFolder, server: Hostile, concurrency: int
) -> None:
    endpoint = {"concurrency": concurrency, "budget_usd": 0.1}
    asking.prepare(vlm("paid", server.base_url, endpoint=endpoint, **PRICE), vlm("other", server.base_url, sample=40))
    result = asking.collect()
    assert result.returncode == 1
    assert len(server.questions("paid")) == 9  # 0.09 + 0.016 would be more than 0.1
    assert len(server.questions("other")) == 40
    assert "paid: 81 of 90 questions without an answer" in words(result.stderr)
    assert "paid: endpoint.budget_usd (spent so far: $0.0900)" in words(result.stderr)
    assert "Traceback" not in result.stderr
    assert not (asking.folder / "collect").exists()
    assert asking.stored() == 49


def test_budget_is_not_spent_again_and_a_raised_one_goes_on(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("paid", server.base_url, sample=20, endpoint={"budget_usd": 0.1}, **PRICE))
    assert asking.collect().returncode == 1
    assert asking.collect().returncode == 1
    assert len(server.asked) == 9
    asking.prepare(vlm("paid", server.base_url, sample=20, endpoint={"budget_usd": 0.21}, **PRICE))
    result = asking.collect()
    assert result.returncode == 0
    assert len(server.asked) == 20
    assert asked_twice(server.questions("paid")) == []
    assert asking.table()["cost_usd"].sum() == pytest.approx(0.2)
    assert "$0.2000 spent" in result.stderr


def test_run_stops_all_vlms_at_its_budget(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(*(vlm(name, server.base_url, **PRICE) for name in ("one", "two", "three")), budget_usd=0.25)
    for _ in range(2):
        result = asking.collect()
        assert result.returncode == 1
        assert "collect.budget_usd" in words(result.stderr)
        assert 0.01 * len(server.asked) <= 0.25
    assert len(server.asked) == 24  # 0.24 + 0.016 would be more than 0.25
    assert {"one", "two", "three"} == set(server.models())
    asking.prepare(*(vlm(name, server.base_url, **PRICE) for name in ("one", "two", "three")), budget_usd=2.71)
    assert asking.collect().returncode == 0
    assert len(server.asked) == 270


def test_budget_of_a_run_counts_what_earlier_runs_of_other_vlms_spent(asking: AskingFolder, server: Hostile) -> None:
    first = vlm("first", server.base_url, sample=20, **PRICE)
    asking.prepare(first, budget_usd=1.0)
    assert asking.collect().returncode == 0
    asking.prepare(first, vlm("second", server.base_url, sample=20, **PRICE), budget_usd=0.31)
    assert asking.collect().returncode == 1
    assert len(server.questions("second")) == 10


def test_attempt_that_may_be_billed_counts_at_its_worst(asking: AskingFolder, server: Hostile) -> None:
    server.script["paid"] = ["cut"]  # the answer was made, and most of it sent
    asking.prepare(
        vlm("paid", server.base_url, sample=20, endpoint={"budget_usd": 0.05, "retries": 0}, **PRICE),
        max_error_share=1.0,
    )
    for _ in range(2):
        assert asking.collect().returncode == 1
    assert len(server.asked) == 3  # 3 x 0.016 = 0.048


def test_refused_attempt_costs_nothing(asking: AskingFolder, server: Hostile) -> None:
    server.script["paid"] = ["500"] * 3 + ["answer"]
    asking.prepare(vlm("paid", server.base_url, sample=3, endpoint={"budget_usd": 0.04, "retries": 1}, **PRICE))
    assert asking.collect().returncode == 0
    assert asking.table()["cost_usd"].sum() == pytest.approx(0.03)


def test_budget_without_a_price_asks_nobody_and_ends_with_2(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("free", server.base_url), budget_usd=1.0)
    result = asking.collect()
    assert result.returncode == 2
    assert "collect.budget_usd is set, but free has no price" in words(result.stderr)
    assert server.asked == []


def test_budget_with_answers_of_any_length_asks_nobody_and_ends_with_2(asking: AskingFolder, server: Hostile) -> None:
    endpoint = {"budget_usd": 1.0, "generation": {"temperature": 0}}
    asking.prepare(vlm("paid", server.base_url, endpoint=endpoint, **PRICE))
    result = asking.collect()
    assert result.returncode == 2
    assert "may answer at any length" in words(result.stderr)
    assert server.asked == []


def test_price_by_picture_and_call_counts(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("paid", server.base_url, sample=5, usd_per_image=0.02, usd_per_call=0.03, usd_per_mtok_in=100))
    assert asking.collect().returncode == 0
    assert asking.table()["cost_usd"].to_list() == pytest.approx([0.02 + 0.03 + 0.01] * 5)


def test_dry_run_asks_nothing_and_says_what_would_be_spent(asking: AskingFolder, server: Hostile) -> None:
    free = vlm("free", server.base_url, sample=7, usd_per_call=0)
    asking.prepare(vlm("paid", server.base_url, sample=20, **PRICE), free, budget_usd=9)
    result = asking.collect("--dry-run", COLUMNS="200")
    assert result.returncode == 0
    assert server.asked == []
    assert not (asking.folder / "collect").exists()
    assert "27 questions would be asked" in words(result.stdout)
    assert "$0.32 at most" in words(result.stdout)
    asking.prepare(vlm("paid", server.base_url, sample=20, **PRICE), free)
    assert asking.collect().returncode == 0
    asking.prepare(vlm("paid", server.base_url, sample=30, **PRICE), free)
    result = asking.collect("--dry-run", COLUMNS="200")
    assert "10 questions would be asked: $0.10 expected" in words(result.stdout)  # by what answers cost so far
    assert len(server.asked) == 27


def test_dry_run_says_what_would_stop_it(asking: AskingFolder, server: Hostile) -> None:
    priced = vlm("toy", server.base_url, sample=4, usd_per_call=1.0, endpoint={"budget_usd": 2.5})
    keyed = vlm("keyed", server.base_url, sample=4, usd_per_call=1.0, endpoint={"api_key_variable": "TOY_KEY_NOT_SET"})
    asking.prepare(priced, keyed, budget_usd=7.0)
    result = asking.collect("--dry-run")
    assert result.returncode == 0, result.stderr
    said = words(result.stdout)
    assert "toy: it would stop midway: endpoint.budget_usd is $2.5000, spent and expected $4.0000" in said
    assert "the environment variable TOY_KEY_NOT_SET is not set" in said
    assert "collect.budget_usd is below what is spent and expected, $8.0000" in said
    assert server.asked == []


def _document(asking: AskingFolder, *words: str) -> Any:
    result = asking.collect(*words, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)  # one document and nothing beside it


def test_dry_run_is_a_document_for_programs(asking: AskingFolder, server: Hostile) -> None:
    free = vlm("free", server.base_url, sample=7)  # without a price
    paid = vlm("paid", server.base_url, sample=20, usd_per_call=0.5)
    asking.prepare(paid, free)
    document = _document(asking, "--dry-run")
    assert [(row["vlm"], row["num_questions"], row["num_known"], row["num_to_ask"]) for row in document["vlms"]] == [
        ("free", 7, 0, 7), ("paid", 20, 0, 20),
    ]  # fmt: skip
    assert [(row["expected_usd"], row["worst_usd"]) for row in document["vlms"]] == [(None, None), (10.0, 10.0)]
    assert document["total"] == {"num_to_ask": 27, "expected_usd": None, "worst_usd": None}  # nobody knows what free is
    assert document["budget_usd"] is None
    assert all(row["expected_s"] >= 0 for row in document["vlms"])
    assert server.asked == []
    assert asking.collect().returncode == 0
    asking.prepare(paid | {"sample": 24}, free | {"usd_per_call": 0}, budget_usd=20)
    document = _document(asking, "--dry-run")
    assert [row["num_known"] for row in document["vlms"]] == [7, 20]
    assert document["total"] == {"num_to_ask": 4, "expected_usd": 2.0, "worst_usd": 2.0}
    assert document["budget_usd"] == 20


def test_dry_run_document_of_answers_of_any_length_knows_no_worst_case(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("paid", server.base_url, sample=2, endpoint={"generation": {"temperature": 0}}, **PRICE))
    document = _document(asking, "--dry-run")
    assert (document["vlms"][0]["expected_usd"], document["vlms"][0]["worst_usd"]) == (None, None)
    assert asking.collect().returncode == 0
    asking.prepare(vlm("paid", server.base_url, sample=3, endpoint={"generation": {"temperature": 0}}, **PRICE))
    total = _document(asking, "--dry-run")["total"]
    assert total == {"num_to_ask": 1, "expected_usd": pytest.approx(0.01), "worst_usd": None}  # as answers were so far


def test_dry_run_document_of_a_source_that_asks_nobody_is_empty(asking: AskingFolder) -> None:
    asking.prepare(*({"name": "a", "display_name": "A", "provider": "B", "pool": pool} for pool in ("base",)),
                   source="recorded")  # fmt: skip
    document = _document(asking, "--dry-run")
    assert document == {
        "vlms": [],
        "total": {"num_to_ask": 0, "expected_usd": 0, "worst_usd": 0},
        "budget_usd": None,
    }


def test_spent_counts_answers_and_failed_attempts(asking: AskingFolder, server: Hostile) -> None:
    assert _document(asking, "--spent") == {"vlms": [], "failed_usd": 0.0, "total_usd": 0.0}
    assert not (asking.folder / STORE).exists()  # looking makes no store
    free = vlm("free", server.base_url, sample=7)
    asking.prepare(vlm("paid", server.base_url, sample=20, usd_per_call=0.5), free)
    assert asking.collect().returncode == 0
    with closing(sqlite3.connect(asking.folder / STORE)) as connection, connection:
        key = connection.execute("select key from answers where model = 'paid'").fetchone()[0]
        connection.execute(
            "insert into attempts values (?, 'timed out', 0.25, 0), (?, 'timed out', 0.25, 0)", (key, key)
        )
        connection.execute("insert into attempts values ('unknown', 'timed out', 0.125, 0)")
    document = _document(asking, "--spent")
    assert document["vlms"] == [
        {"endpoint": "toy", "model": "free", "num_answers": 7, "spent_usd": 0.0},
        {"endpoint": "toy", "model": "paid", "num_answers": 20, "spent_usd": 10.5},
    ]
    assert (document["failed_usd"], document["total_usd"]) == (0.125, 10.625)
    said = asking.collect("--spent").stdout
    assert "$10.6250 spent in all, $0.1250 of it on failed attempts at questions without an answer" in said


def test_json_alone_is_refused(asking: AskingFolder) -> None:
    result = asking.collect("--json")
    assert result.returncode == 2
    assert "--json belongs to --dry-run or --spent" in result.stderr
