"""The answer store rebuilt from sealed tables, and the guard against asking all again in a fresh clone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from arms_model.errors import ConfigError
from tasks.common.endpoint.answers import AnswerStore
from tasks.common.endpoint.restoring import LOCK, refuse_new_store_beside_sealed_answers, restore
from tasks.common.tables import SCHEMAS
from tasks.common.vlms import parse_vlms
from tests.tasks.asking import AskingFolder, vlm, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.tasks.hostile import Hostile

VLMS = parse_vlms([vlm("toy", "http://127.0.0.1:9/v1")])
LOCKED = """\
stages:
  collect:
    params:
      params.yaml:
        collect: {source: %s}
        vlms: [{name: toy, endpoint: {name: toy}}, {name: recorded-only}, {name: gone, endpoint: {name: gone}}]
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AnswerStore]:
    """A new store in a folder of its own, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    with AnswerStore() as store:
        yield store


def sealed(*rows: dict[str, object]) -> pl.DataFrame:
    """Table `collect`: k1 was answered after a failure, k2 never, k3 is of a VLM that names no price."""
    rows = rows or (
        {"answer_key": "k1", "output": "yes", "cost_usd": 1.0, "spent_usd": 1.5},
        {"answer_key": "k2", "error": "timed out", "spent_usd": 0.25},
        {"answer_key": "k3", "error": "HTTP 400"},
        {"answer_key": "k4", "output": "no", "cost_usd": 1.0, "spent_usd": 1.0},
    )
    common = dict.fromkeys(SCHEMAS["collect"]) | {"vlm": "toy"}
    return pl.DataFrame(
        [common | {"query_id": f"q{row['answer_key']}"} | row for row in rows], schema=SCHEMAS["collect"]
    )


def test_restored_store_knows_what_failed_attempts_and_error_rows_cost(store: AnswerStore) -> None:
    assert restore(sealed(), vlms=VLMS, store=store) == (2, 0)
    assert store.spent_usd(["k1"]) == 1.5
    assert store.spent_usd(["k2"]) == 0.25
    assert store.spent_usd(["k1", "k2", "k3", "k4"]) == 2.75
    assert {key: attempts.reason for key, attempts in store.attempts(["k2", "k3", "k4"]).items()} == {
        "k2": "timed out", "k3": "HTTP 400",
    }  # fmt: skip
    assert store.attempts(["k3"])["k3"].cost_usd is None


def test_restoring_again_counts_no_cost_twice(store: AnswerStore) -> None:
    restore(sealed(), vlms=VLMS, store=store)
    assert restore(sealed(), vlms=VLMS, store=store) == (0, 2)
    assert store.spent_usd(["k1", "k2", "k3", "k4"]) == 2.75


def test_failed_attempt_in_a_new_store_hides_no_sealed_answer(store: AnswerStore) -> None:
    store.add_attempt("k4", reason="HTTP 401", cost_usd=0.0)  # the fresh clone was run without the key
    assert restore(sealed(), vlms=VLMS, store=store) == (2, 0)
    assert store.answers(["k4"])["k4"][0].output == "no"


def test_answer_that_two_blocks_share_is_restored_once(store: AnswerStore) -> None:
    row = {"answer_key": "k1", "output": "yes", "cost_usd": 1.0, "spent_usd": 1.5}
    assert restore(sealed(row, row | {"vlm": "twin"}), vlms=VLMS, store=store) == (1, 0)
    assert store.spent_usd(["k1"]) == 1.5


def test_store_without_the_sealed_endpoints_is_refused(store: AnswerStore) -> None:
    LOCK.write_text(LOCKED % "endpoint")
    store.begin({"another endpoint"})
    with pytest.raises(ConfigError, match=r"sealed answers of toy, .*--restore.*--new-store"):
        refuse_new_store_beside_sealed_answers(VLMS, store, served_here=set())
    store.begin({"toy"})
    refuse_new_store_beside_sealed_answers(VLMS, store, served_here=set())


def test_restored_store_is_let_through(store: AnswerStore) -> None:
    LOCK.write_text(LOCKED % "endpoint")
    restore(sealed(), vlms=VLMS, store=store)
    refuse_new_store_beside_sealed_answers(VLMS, store, served_here=set())


def test_endpoint_whose_server_the_stage_starts_may_be_asked_again(store: AnswerStore) -> None:
    LOCK.write_text(LOCKED % "endpoint")
    refuse_new_store_beside_sealed_answers(VLMS, store, served_here={"toy"})


def test_first_question_to_a_new_endpoint_is_no_repeat(store: AnswerStore) -> None:
    LOCK.write_text(LOCKED % "endpoint")  # sealed of toy and gone, not of the one that params name now
    added = parse_vlms([vlm("late", "http://127.0.0.1:9/v1", endpoint={"name": "elsewhere"})])
    refuse_new_store_beside_sealed_answers(added, store, served_here=set())


@pytest.mark.parametrize("lock", [LOCKED % "recorded", "stages: {}\n", "schema: '2.0'\n", ""])
def test_new_store_is_fine_where_no_endpoint_was_sealed(store: AnswerStore, lock: str) -> None:
    refuse_new_store_beside_sealed_answers(VLMS, store, served_here=set())
    LOCK.write_text(lock)
    refuse_new_store_beside_sealed_answers(VLMS, store, served_here=set())


@pytest.mark.parametrize("damage", [b"<<<<<<< HEAD\nstages: {\n", b"\xff\xfe\x00stages"])
def test_damaged_lock_is_named(store: AnswerStore, damage: bytes) -> None:
    LOCK.write_bytes(damage)
    with pytest.raises(ConfigError, match=r"dvc\.lock is no valid YAML"):
        refuse_new_store_beside_sealed_answers(VLMS, store, served_here=set())


def test_fresh_clone_asks_nobody_until_told_to(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("toy", server.base_url, sample=2))
    (asking.folder / LOCK).write_text(LOCKED % "endpoint")
    result = asking.collect()
    assert result.returncode == 2
    assert "python -m tasks.collect --new-store" in words(result.stderr)
    assert "Traceback" not in result.stderr
    assert server.asked == []
    assert asking.collect("--new-store").returncode == 0
    assert asking.collect().returncode == 0
    assert len(server.asked) == 2
