"""Which VLMs are refused before anybody is asked, what counts once, and which of several answers stands in the table.

Collections run in the test's own process.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from arms_model.errors import ConfigError, EndpointError
from tasks.collect import CollectSettings
from tasks.common.endpoint.answers import Answer, AnswerStore
from tasks.common.endpoint.collection import Limits, Questions, collect_answers, standing, table
from tasks.common.endpoint.forecast import forecasts
from tasks.common.tables import read_table
from tasks.common.vlms import parse_vlms
from tests.tasks.asking import vlm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import polars as pl

    from tasks.common.vlms import Vlm
    from tests.tasks.hostile import Hostile


@pytest.fixture
def collection(queries_made: Path, tmp_path: Path) -> Iterator[Collection]:
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        yield Collection(queries_made / "queries", store)


class Collection:
    """The toy query set and a store of the test's own."""

    def __init__(self, folder: Path, store: AnswerStore) -> None:
        self.queries = read_table(folder / "queries.parquet", "queries")
        self.questions = Questions(self.queries, images=folder / "images", max_pixels=10**6)
        self.store = store

    def collect(self, *vlms: dict[str, Any], **limits: Any) -> pl.DataFrame:
        """What the VLMs of these blocks answer."""
        given = Limits(**({"max_error_share": 0.0, "budget_usd": None, "servers": {}} | limits))
        return collect_answers(
            parse_vlms(list(vlms)), self.questions, queries=self.queries, store=self.store, limits=given
        )


LATER = {"pool": "new", "sample": 5, "sample_from": "answered_by_base"}


def test_missing_key_of_a_vlm_that_is_asked_later_is_found_before_anybody_is_asked(
    collection: Collection, server: Hostile
) -> None:
    late = vlm("late", server.base_url, endpoint={"api_key_variable": "NEVER_SET_KEY"}, **LATER)
    with pytest.raises(ConfigError, match="NEVER_SET_KEY is not set"):
        collection.collect(vlm("base", server.base_url), late)
    assert server.asked == []


def test_missing_price_of_a_vlm_that_is_asked_later_is_found_before_anybody_is_asked(
    collection: Collection, server: Hostile
) -> None:
    late = vlm("late", server.base_url, **LATER)
    with pytest.raises(ConfigError, match=r"collect\.budget_usd is set, but late has no price"):
        collection.collect(vlm("base", server.base_url, usd_per_call=0), late, budget_usd=5.0)
    assert server.asked == []


def test_server_of_an_endpoint_that_no_block_has_is_refused(collection: Collection, server: Hostile) -> None:
    with pytest.raises(ConfigError, match=r"collect\.servers\.tyo: .* did you mean 'toy'"):
        collection.collect(vlm("one", server.base_url), servers={"tyo": "python -m http.server"})
    assert server.asked == []


def test_answers_that_two_blocks_share_count_once_in_the_budget(collection: Collection, server: Hostile) -> None:
    twins = [
        vlm(name, server.base_url, usd_per_call=1, sample=20, endpoint={"model": "same"}) for name in ("one", "two")
    ]
    collection.collect(*twins, budget_usd=30.0)
    assert len(server.asked) == 20
    third = vlm("third", server.base_url, usd_per_call=1, sample=10)
    assert collection.collect(*twins, third, budget_usd=30.0)["error"].count() == 0
    assert len(server.asked) == 30
    with pytest.raises(EndpointError, match=r"collect\.budget_usd \(spent so far: \$30\.0000\)"):
        collection.collect(*twins, third, vlm("fourth", server.base_url, usd_per_call=1, sample=1), budget_usd=30.0)


def test_base_pool_counts_in_the_budget_of_what_is_asked_after_it(collection: Collection, server: Hostile) -> None:
    server.answer = lambda asked: "Yes"
    base = vlm("base", server.base_url, usd_per_call=1, benchmarks=["verdicts"])
    late = vlm("late", server.base_url, usd_per_call=1, **LATER)
    with pytest.raises(EndpointError, match=r"late: 3 of 5 questions without an answer: the next call could overrun"):
        collection.collect(base, late, budget_usd=32.0)
    assert len(server.questions("late")) == 2


def test_dry_run_counts_what_two_blocks_share_once(collection: Collection, server: Hostile) -> None:
    twins = [
        vlm(name, server.base_url, usd_per_call=1, sample=20, endpoint={"model": "same"}) for name in ("one", "two")
    ]
    foreseen = forecasts(parse_vlms(twins), collection.questions, queries=collection.queries, store=collection.store)
    assert [each.num_to_ask for each in foreseen] == [20, 0]
    assert [each.worst_usd for each in foreseen] == [20, 0]


def test_share_of_errors_is_not_rounded_down_by_floating_point(collection: Collection, server: Hostile) -> None:
    assert 0.7 * 90 < 63
    server.script["toy"] = ["400"] * 63 + ["answer"]
    answers = collection.collect(vlm("toy", server.base_url, endpoint={"retries": 0}), max_error_share=0.7)
    assert answers["error"].count() == 63


@pytest.mark.parametrize("budget_usd", [math.nan, math.inf, -1.0])
def test_budget_that_is_no_amount_is_refused(budget_usd: float) -> None:
    with pytest.raises(ValueError, match="budget_usd must be a number of 0 or more"):
        CollectSettings(source="endpoint", budget_usd=budget_usd)


def kept(key: str, served_model: str, output: str, *, cost_usd: float, answered_at: float) -> Answer:
    return Answer(
        key=key, endpoint="toy", model="toy", served_model=served_model, output=output, finish_reason=None,
        request_id=None, latency_s=None, prompt_tokens=None, completion_tokens=None, cost_usd=cost_usd,
        answered_at=answered_at,
    )  # fmt: skip


def toy(**endpoint: Any) -> Vlm:
    return parse_vlms([vlm("toy", "http://127.0.0.1:9/v1", sample=1, endpoint=endpoint)])[0]


def test_first_answer_that_is_taken_stays_and_all_that_was_paid_is_in_the_row(collection: Collection) -> None:
    asked = collection.questions.of(toy(), answered_by_base=set())
    key = asked[0].key
    # by name the later one comes first
    collection.store.add(kept(key, "other", "the first", cost_usd=1.0, answered_at=1.0))
    collection.store.add(kept(key, "another", "the second", cost_usd=2.0, answered_at=2.0))
    collection.store.add_attempt(key, reason="timed out", cost_usd=0.5)
    for served_as in (["other"], ["other", "another"], ["another", "other"]):
        one = toy(served_as=served_as)
        row = table(standing(one, asked, collection.store), collection.store).to_dicts()[0]
        assert (row["output"], row["cost_usd"], row["spent_usd"]) == ("the first", 1.0, 3.5)


def test_row_of_a_wrong_model_carries_what_was_paid(collection: Collection) -> None:
    asked = collection.questions.of(toy(), answered_by_base=set())
    collection.store.add(kept(asked[0].key, "other", "an answer", cost_usd=1.0, answered_at=1.0))
    collection.store.add_attempt(asked[0].key, reason="answered as 'other'", cost_usd=1.0)
    row = table(standing(toy(), asked, collection.store), collection.store).to_dicts()[0]
    assert row["output"] is row["cost_usd"] is None
    assert row["spent_usd"] == 2.0
    assert "answered as 'other'" in row["error"]
