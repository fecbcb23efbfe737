"""What `collect` makes of endpoints that fail: error rows with their reasons, VLMs given up, and no key anywhere.

One collection asks a VLM for each kind of fault at once, so it shows too that a bad one harms no other; each test looks
at one of them.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from tests.tasks.asking import STORE, AskingFolder, vlm, words
from tests.tasks.hostile import Asked, Hostile, closed_port

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

NUM = 6  # questions to each VLM
KEY = "sk-toy-5up3r53cr3t"
WORDS = (
    "answer", "reset", "cut", "close", "500", "400", "non_json", "deep", "list", "no_choices", "empty_body", "empty",
    "long", "wrong_model", "refusal", "filtered_prompt", "no_usage", "gzip", "odd", "surrogate",
)  # fmt: skip
FAULTS: dict[str, dict[str, Any]] = {word: {} for word in WORDS} | {
    "hang": {"timeout_s": 2.0}, "drip": {"timeout_s": 2.0}, "limited": {"retries": 3},
}  # fmt: skip


@dataclass(frozen=True)
class Collected:
    """The one collection: how it ended, its table, what the server was asked."""

    folder: AskingFolder
    result: subprocess.CompletedProcess[str]
    table: pl.DataFrame
    asked: list[Asked]

    def errors(self, name: str) -> list[str]:
        return self._rows(name).filter(pl.col("output").is_null())["error"].to_list()

    def outputs(self, name: str) -> list[str]:
        rows = self._rows(name)
        assert rows["error"].null_count() == NUM
        return rows["output"].to_list()

    def times_asked(self, name: str) -> list[int]:
        """How often each of the VLM's questions was asked."""
        counts = Counter((asked.question, asked.picture_sha256) for asked in self.asked if asked.model == name)
        return sorted(counts.values())

    def _rows(self, name: str) -> pl.DataFrame:
        rows = self.table.filter(pl.col("vlm") == name)
        assert rows.height == NUM
        return rows


@pytest.fixture(scope="module")
def collected(queries_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Collected:
    folder = AskingFolder(tmp_path_factory.mktemp("faults") / "asking")
    shutil.copytree(queries_made, folder.folder)
    with Hostile() as server:
        server.script = {name: [name] for name in FAULTS} | {"limited": ["429"] * 3 + ["answer"]}
        blocks = [
            vlm(name, server.base_url, sample=NUM, endpoint={"concurrency": NUM} | endpoint)
            for name, endpoint in FAULTS.items()
        ]
        folder.prepare(
            *blocks, vlm("refused", closed_port(), sample=NUM, endpoint={"name": "away"}), max_error_share=1.0
        )
        result = folder.collect()
        asked = list(server.asked)
    assert result.returncode == 0, result.stderr
    return Collected(folder, result, folder.table(), asked)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hang", "no whole reply within 2 s"),
        ("drip", "no whole reply within 2 s"),
        ("reset", "the connection broke off"),
        ("cut", "the connection broke off"),
        ("close", "the connection broke off"),
        ("500", "HTTP 500: The server had an error."),
        ("non_json", "the reply is no JSON: '<html>Welcome!</html>'"),
        ("empty_body", "the reply is no JSON"),
        ("deep", "the reply is no JSON"),
        ("gzip", "the reply is compressed"),
        ("list", "the reply has no choices"),
        ("no_choices", "the reply has no choices"),
    ],
)
def test_passing_fault_is_tried_again_and_ends_as_error_rows(collected: Collected, name: str, reason: str) -> None:
    assert [error for error in collected.errors(name) if reason not in error] == []
    assert len(collected.errors(name)) == NUM
    assert collected.times_asked(name) == [2] * NUM


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("400", "HTTP 400: This picture is not for us."),
        ("empty", "the answer is empty"),
        ("long", "longer than 1,000,000 bytes"),
        ("wrong_model", "answered as 'somebody-else', asked was 'wrong_model'"),
    ],
)
def test_lasting_fault_is_not_tried_again_and_ends_as_error_rows(collected: Collected, name: str, reason: str) -> None:
    assert [error for error in collected.errors(name) if reason not in error] == []
    assert len(collected.errors(name)) == NUM
    assert collected.times_asked(name) == [1] * NUM


def test_endpoint_that_refuses_ends_as_error_rows(collected: Collected) -> None:
    assert all("no connection to http://127.0.0.1:" in error for error in collected.errors("refused"))
    assert len(collected.errors("refused")) == NUM


def test_vlm_beside_failing_ones_is_answered_and_asked_once(collected: Collected) -> None:
    assert all(output.startswith("answer to ") for output in collected.outputs("answer"))
    assert collected.times_asked("answer") == [1] * NUM


def test_429_waits_as_long_as_the_server_says_and_is_answered_then(collected: Collected) -> None:
    assert len(collected.outputs("limited")) == NUM
    times = [asked.at_s for asked in collected.asked if asked.model == "limited"]
    assert len(times) == NUM + 3
    last_refused = times[2]
    assert [at_s for at_s in times[NUM:] if at_s < last_refused + 1.0] == []  # NUM were under way at once


def test_refusal_of_a_content_filter_is_an_answer(collected: Collected) -> None:
    assert collected.outputs("refusal") == ["I cannot help with that."] * NUM
    assert collected.outputs("filtered_prompt") == [""] * NUM
    reasons = collected.table.filter(pl.col("vlm").is_in(["refusal", "filtered_prompt"]))["finish_reason"]
    assert set(reasons) == {"content_filter"}
    assert collected.times_asked("refusal") == collected.times_asked("filtered_prompt") == [1] * NUM


def test_oddly_typed_reply_keeps_the_answer_and_no_nonsense(collected: Collected) -> None:
    assert collected.outputs("odd") == ["an answer"] * NUM
    rows = collected.table.filter(pl.col("vlm") == "odd")
    assert rows["prompt_tokens"].null_count() == rows["completion_tokens"].null_count() == NUM


def test_text_that_is_no_unicode_is_kept_without_its_broken_part(collected: Collected) -> None:
    assert collected.outputs("surrogate") == ["half a ? sign, a \0"] * NUM


def test_answer_without_usage_counts_no_tokens(collected: Collected) -> None:
    assert collected.outputs("no_usage") == ["an answer"] * NUM
    rows = collected.table.filter(pl.col("vlm") == "no_usage")
    assert rows["prompt_tokens"].null_count() == rows["completion_tokens"].null_count() == NUM


def test_answer_carries_tokens_latency_and_request_id(collected: Collected) -> None:
    rows = collected.table.filter(pl.col("vlm") == "answer")
    assert set(rows["prompt_tokens"]) == {100}
    assert set(rows["completion_tokens"]) == {10}
    assert set(rows["request_id"]) == {"req-7"}
    assert rows["latency_s"].is_between(0, 5).all()


def test_error_row_is_never_labelled(collected: Collected) -> None:
    assert collected.table.filter(pl.col("error").is_not_null() & pl.col("output").is_not_null()).height == 0
    assert "Traceback" not in collected.result.stderr


def test_answer_of_another_model_is_taken_once_its_name_is_allowed(asking: AskingFolder, server: Hostile) -> None:
    server.script["toy"] = ["wrong_model"]
    asking.prepare(vlm("toy", server.base_url, sample=NUM))
    assert asking.collect().returncode == 1
    num_asked = len(server.asked)
    asking.prepare(vlm("toy", server.base_url, sample=NUM, endpoint={"served_as": ["somebody-else"]}))
    assert asking.collect().returncode == 0
    assert asking.table()["error"].count() == 0
    assert 0 < num_asked < len(server.asked) == NUM  # then the others only


@pytest.mark.parametrize(
    ("word", "reason"), [("401", "HTTP 401"), ("404", "HTTP 404 from {url}: No such model."), ("redirect", "HTTP 302")]
)
def test_hopeless_vlm_is_given_up_and_the_others_are_kept(
    asking: AskingFolder, server: Hostile, word: str, reason: str
) -> None:
    server.script["bad"] = [word]
    asking.prepare(
        vlm("bad", server.base_url, endpoint={"concurrency": 2}), vlm("good", server.base_url), max_error_share=1.0
    )
    result = asking.collect()
    assert result.returncode == 1
    reason = reason.format(url=server.base_url)
    assert f"bad: 90 of 90 questions without an answer: {reason}" in words(result.stderr)
    assert "Traceback" not in result.stderr
    assert len(server.questions("bad")) <= 2  # those in flight
    assert asking.stored() == 90
    assert not (asking.folder / "collect").exists()
    server.script.clear()
    assert asking.collect().returncode == 0
    assert len(server.questions("good")) == 90
    assert asking.table().height == 180


def test_missing_key_asks_nobody_and_ends_with_2(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(
        vlm("keyed", server.base_url, endpoint={"api_key_variable": "TOY_API_KEY"}), vlm("open", server.base_url)
    )
    for environment in ({}, {"TOY_API_KEY": " "}):
        result = asking.collect(**environment)
        assert result.returncode == 2
        assert "keyed: the environment variable TOY_API_KEY is not set" in words(result.stderr)
        assert "Traceback" not in result.stderr
    assert server.asked == []


def test_key_is_sent(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("keyed", server.base_url, sample=1, endpoint={"api_key_variable": "TOY_API_KEY"}))
    assert asking.collect(TOY_API_KEY=KEY).returncode == 0
    assert [asked.authorization for asked in server.asked] == [f"Bearer {KEY}"]


def test_key_appears_nowhere_though_the_server_repeats_it(asking: AskingFolder, server: Hostile) -> None:
    echoes = ("echo_401", "echo_500", "echo_answer", "echo_model", "echo_text", "echo_id")
    server.script = {word: [word] for word in echoes}
    blocks = [vlm(word, server.base_url, sample=2, endpoint={"api_key_variable": "TOY_API_KEY"}) for word in echoes]
    for words_of_run in (blocks, blocks[1:]):  # with echo_401, which is given up; then all that end in the table
        asking.prepare(*words_of_run, max_error_share=1.0)
        result = asking.collect(TOY_API_KEY=KEY, ARMS_LOG_LEVEL="DEBUG")
        assert KEY not in result.stdout + result.stderr
    assert result.returncode == 0
    assert any("[key]" in output for output in asking.table()["output"].drop_nulls())  # the server did repeat it
    assert KEY not in str(asking.table().to_dicts())
    with closing(sqlite3.connect(asking.folder / STORE)) as connection:
        assert KEY not in "\n".join(connection.iterdump())
    assert KEY.encode() not in asking.everything_written()


def test_key_that_no_header_can_hold_is_refused_without_showing_it(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("keyed", server.base_url, sample=2, endpoint={"api_key_variable": "TOY_API_KEY", "retries": 0}))
    for key in (f"{KEY}\n{KEY}", f"{KEY}-ключ"):
        result = asking.collect(TOY_API_KEY=key, ARMS_LOG_LEVEL="DEBUG")
        assert result.returncode == 2
        assert "TOY_API_KEY holds a line break or another character" in words(result.stderr)
        assert KEY not in result.stdout + result.stderr
    assert server.asked == []


def test_errors_up_to_the_share_are_sealed_and_forcing_asks_only_them_again(
    asking: AskingFolder, server: Hostile
) -> None:
    server.script["toy"] = ["400"] * 4 + ["answer"]
    asking.prepare(vlm("toy", server.base_url, sample=40), max_error_share=0.1)
    assert asking.collect().returncode == 0
    failed = server.questions("toy")[:4]
    assert asking.table()["error"].count() == 4
    server.asked.clear()
    asking.forget_sealed()
    assert asking.collect().returncode == 0
    assert sorted(server.questions("toy")) == sorted(failed)
    assert asking.table()["error"].count() == 0


def test_more_errors_than_the_share_end_with_1_and_seal_nothing(asking: AskingFolder, server: Hostile) -> None:
    server.script["toy"] = ["400"] * 5 + ["answer"]
    asking.prepare(vlm("toy", server.base_url, sample=40, endpoint={"concurrency": 1}), max_error_share=0.1)
    result = asking.collect()
    assert result.returncode == 1
    assert "more than collect.max_error_share allows" in words(result.stderr)
    assert "HTTP 400: This picture is not for us." in words(result.stderr)
    assert not (asking.folder / "collect").exists()
    assert len(server.asked) == 5  # more would only be paid for in vain


def test_misspelt_generation_parameter_asks_nobody_and_is_named(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("toy", server.base_url, sample=2, endpoint={"generation": {"temprature": 0, "max_tokens": 16}}))
    result = asking.collect()
    assert result.returncode == 1
    assert "no parameter of chat completions is called temprature" in words(result.stderr)
    assert "generation.extra_body" in words(result.stderr)
    assert server.asked == []


def test_parameters_of_the_service_itself_are_sent(asking: AskingFolder, server: Hostile) -> None:
    generation = {"temperature": 0, "extra_body": {"top_k": 1, "chat_template_kwargs": {"thinking": False}}}
    asking.prepare(vlm("toy", server.base_url, sample=1, endpoint={"generation": generation}))
    assert asking.collect().returncode == 0
    body = server.asked[0].body
    assert set(body) == {"model", "messages", "temperature", "top_k", "chat_template_kwargs"}
    assert (body["top_k"], body["chat_template_kwargs"]) == (1, {"thinking": False})
