"""Asking under way: what holds requests back, what stops them, and that no answer that came is lost to a fault.

`ask_all` runs in the test's own process, against a server on a real socket.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import shutil
from typing import TYPE_CHECKING, Any, cast

import pytest
from PIL import Image

from arms_model.errors import ConfigError, StorageError
from tasks.common.endpoint.answers import AnswerStore
from tasks.common.endpoint.asking import Plan, ask_all
from tasks.common.endpoint.requests import Request, make_request, picture_as_sent
from tasks.common.vlms import parse_vlms
from tests.tasks.asking import vlm
from tests.tasks.hostile import Asked, Hostile, Reply, completion, error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEAR = {"usd_per_mtok_in": 1000, "usd_per_mtok_out": 0}  # a picture of 85 + 170 tokens and a short prompt: $0.33


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    with AnswerStore(tmp_path / "store/answers.sqlite") as store:
        yield store


@pytest.fixture
def plans(tmp_path: Path, server: Hostile) -> Plans:
    return Plans(tmp_path, server.base_url)


class Plans:
    """Makes plans of questions about one small picture."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self._picture, self._base_url = folder / "a.png", base_url
        Image.new("RGB", (60, 40), "red").save(self._picture)

    def __call__(self, name: str, num: int, endpoint: dict[str, Any] | None = None, **block: Any) -> Plan:
        """A plan of `num` questions; keywords and `endpoint` go into the block."""
        made = parse_vlms([vlm(name, self._base_url, endpoint={"retries": 0} | (endpoint or {}), **block)])[0]
        sha256 = hashlib.sha256(self._picture.read_bytes()).hexdigest()
        picture = picture_as_sent(self._picture, sha256=sha256, max_side=None, max_pixels=10**6)
        requests = [
            make_request(made, query_id=f"q{number}", prompt=f"Question {number}?", picture=picture)
            for number in range(num)
        ]
        return Plan(vlm=made, requests=requests, max_errors=num, spent_usd=0.0)


def limited(seconds: float) -> Any:
    return lambda asked: error(429, "Slow down.", f"Retry-After: {seconds}")


def gaps(server: Hostile) -> list[float]:
    """Seconds between one request and the next."""
    return [later.at_s - earlier.at_s for earlier, later in itertools.pairwise(server.asked)]


def test_fault_of_ours_is_raised_once_answers_of_others_under_way_are_kept(
    plans: Plans, server: Hostile, store: AnswerStore
) -> None:
    server.latency_s = 0.6
    server.script["bad"] = ["hang"]
    bad = plans("bad", 2, {"timeout_s": 0.2, "concurrency": 1})
    broken: Request = dataclasses.replace(bad.requests[1], picture=cast(Any, None))  # asked after the first timed out
    bad = dataclasses.replace(bad, requests=[bad.requests[0], broken])
    good = plans("good", 20, {"concurrency": 4})
    with pytest.raises(AttributeError, match="max_side"):
        ask_all([good, bad], store=store, budget_usd=None)
    assert len(store.answers(request.key for request in good.requests)) == 4
    assert len(server.questions("good")) == 4


def test_store_whose_folder_is_removed_midway_is_said(plans: Plans, server: Hostile, store: AnswerStore) -> None:
    def answer(asked: Asked) -> str:
        if len(server.asked) == 3:
            shutil.rmtree(store.path.parent)
        return "yes"

    server.answer = answer
    with pytest.raises(StorageError, match=r"answers\.sqlite"):
        ask_all([plans("toy", 20, {"concurrency": 1})], store=store, budget_usd=None)
    assert len(server.asked) == 3


@pytest.mark.parametrize("proxy", ["gopher://127.0.0.1:1", "socks5://127.0.0.1:1", "127.0.0.1:port"])
def test_client_that_cannot_be_made_asks_nobody(
    plans: Plans, server: Hostile, store: AnswerStore, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    made = [plans("good", 4), plans("other", 4)]
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match=r"no client can be made for http://127.*ALL_PROXY"):
        ask_all(made, store=store, budget_usd=None)
    assert server.asked == []


def test_provider_that_counts_more_than_the_worst_case_overruns_no_budget(
    plans: Plans, server: Hostile, store: AnswerStore, caplog: pytest.LogCaptureFixture
) -> None:
    server.replies["dear"] = lambda asked: completion(asked, "yes", prompt_tokens=5000)  # $5, 15 times the worst case
    server.script["toy"] = ["dear"]
    plan = plans("toy", 30, {"concurrency": 8, "budget_usd": 12}, **DEAR)
    outcomes = ask_all([plan], store=store, budget_usd=None)
    assert outcomes[0].given_up is not None
    assert len(server.asked) == 2
    assert store.spent_usd(request.key for request in plan.requests) == pytest.approx(10)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "endpoint.image_tokens" in warnings[0]
    assert "5000 tokens" in warnings[0]


def test_calls_under_a_budget_go_one_at_a_time_until_a_reply_or_three_failures(
    plans: Plans, server: Hostile, store: AnswerStore
) -> None:
    server.latency_s = 0.15
    server.script["toy"] = ["500"] * 3 + ["answer"]
    ask_all([plans("toy", 9, {"concurrency": 6, "budget_usd": 100}, **DEAR)], store=store, budget_usd=None)
    assert min(gaps(server)[:3]) >= 0.15
    assert server.most_at_once > 1
    server.asked.clear()
    server.most_at_once = 0
    ask_all([plans("free", 6, {"concurrency": 6})], store=store, budget_usd=None)
    assert server.most_at_once == 6


@pytest.mark.parametrize("budget_usd", [None, 100.0])
def test_retry_after_holds_back_requests_that_wait_for_their_turn(
    plans: Plans, server: Hostile, store: AnswerStore, budget_usd: float | None
) -> None:
    server.replies["wait"] = limited(1.0)
    server.script["toy"] = ["wait", "answer"]
    endpoint = {"concurrency": 8, "retries": 1, "requests_per_minute": 1200}
    ask_all([plans("toy", 12, endpoint, **DEAR)], store=store, budget_usd=budget_usd)
    assert len(server.asked) == 13
    first, second, *_ = server.asked
    assert second.at_s - first.at_s >= 1.0
    assert server.asked[8].at_s - second.at_s >= 7 * 0.05 - 0.15  # no burst of the 8 that waited


def test_retry_after_holds_back_requests_that_wait_for_the_first_reply(
    plans: Plans, server: Hostile, store: AnswerStore
) -> None:
    server.replies["wait"] = limited(1.0)
    server.script["toy"] = ["wait", "answer"]
    ask_all([plans("toy", 4, {"concurrency": 4, "retries": 1}, **DEAR)], store=store, budget_usd=100)
    assert len(server.asked) == 5
    assert server.asked[1].at_s - server.asked[0].at_s >= 1.0


def test_requests_a_minute_hold_for_those_that_waited_for_the_first_reply(
    plans: Plans, server: Hostile, store: AnswerStore
) -> None:
    server.latency_s = 0.5  # meanwhile all others would get their turn
    endpoint = {"concurrency": 5, "requests_per_minute": 600}
    ask_all([plans("toy", 5, endpoint, **DEAR)], store=store, budget_usd=100)
    assert server.asked[-1].at_s - server.asked[1].at_s >= 3 * 0.1 - 0.15


def test_requests_told_to_wait_alike_do_not_come_back_at_once(
    plans: Plans, server: Hostile, store: AnswerStore
) -> None:
    server.replies["wait"] = limited(1.6)  # longer than any first back-off
    server.script["toy"] = ["wait"] * 12 + ["answer"]
    ask_all([plans("toy", 12, {"concurrency": 12, "retries": 1})], store=store, budget_usd=None)
    assert len(server.asked) == 24
    assert max(gaps(server)[:11]) < 0.2  # at once
    assert server.asked[-1].at_s - server.asked[12].at_s > 0.25


@pytest.mark.parametrize("reply", [error(402, "No credit."), error(429, "Daily quota.", "Retry-After: 3601")])
def test_endpoint_without_credit_or_for_more_than_an_hour_is_asked_no_more(
    plans: Plans, server: Hostile, store: AnswerStore, reply: Reply
) -> None:
    server.replies["no"] = lambda asked: reply
    server.script["toy"] = ["no", "answer"]
    outcomes = ask_all([plans("toy", 6, {"concurrency": 1})], store=store, budget_usd=None)
    assert outcomes[0].given_up is not None
    assert f"HTTP {reply.status}" in outcomes[0].given_up
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [408, 504, 524])
def test_time_out_on_the_way_counts_at_its_worst(
    plans: Plans, server: Hostile, store: AnswerStore, status: int
) -> None:
    server.replies["late"] = lambda asked: error(status, "The upstream took too long.")
    server.script["toy"] = ["late"]
    plan = plans("toy", 1, usd_per_call=0.5)
    ask_all([plan], store=store, budget_usd=None)
    assert store.spent_usd(request.key for request in plan.requests) == 0.5


def test_answer_of_another_model_that_is_given_again_is_paid_again(
    plans: Plans, server: Hostile, store: AnswerStore
) -> None:
    server.script["toy"] = ["wrong_model"]
    plan = plans("toy", 2, usd_per_call=0.5)
    for num_runs in (1, 2, 3):
        ask_all([plan], store=store, budget_usd=None)
        assert store.spent_usd(request.key for request in plan.requests) == pytest.approx(num_runs * 2 * 0.5)
