"""The sandbox's endpoint over a real socket, through the official client; programs are small ones made up here."""

import asyncio
import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from sandbox.endpoint import Fault, make_app
from tests.sandbox.serving import serving

CHECKOUT = Path(__file__).resolve().parents[2]


def width_of(picture: bytes, question: str) -> str:
    """A program that looks at the picture and repeats the question."""
    if "fail" in question:
        raise ValueError("too dark")
    with Image.open(io.BytesIO(picture)) as opened:
        return f"{question}: {opened.width} px"


LATENCIES_S = {"reader": 0.0, "slow": 0.3}


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """The endpoint in a thread of this process."""
    with serving(make_app(dict.fromkeys(LATENCIES_S, width_of), LATENCIES_S)) as url:
        yield url


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    httpx2.delete(f"{base_url}/sandbox/faults")
    httpx2.delete(f"{base_url}/sandbox/counters")
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="any", max_retries=0, timeout=5) as client:
        yield client


def picture_url(width: int = 40, height: int = 30) -> str:
    content = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def messages(question: str = "How wide?", url: str | None = None, **detail: str) -> list[Any]:
    picture = {"type": "image_url", "image_url": {"url": url or picture_url(), **detail}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]


def ask(client: openai.OpenAI, model: str = "reader", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=more.pop("messages", messages()), **more)


def switch_on(client: openai.OpenAI, **fault: Any) -> httpx2.Response:
    return httpx2.post(str(client.base_url.copy_with(path="/sandbox/faults")), json={"model": "reader"} | fault)


def counters(client: openai.OpenAI) -> Any:
    return httpx2.get(str(client.base_url.copy_with(path="/sandbox/counters"))).json()


def test_program_sees_the_picture_and_the_question(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="reader", messages=messages("How wide?", picture_url(123)), temperature=0, max_tokens=50
    )
    reply = raw.parse()
    assert reply.choices[0].message.content == "How wide?: 123 px"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == "reader"
    assert raw.headers["x-request-id"].startswith("req_")
    assert reply.id.startswith("chatcmpl-")
    assert abs(reply.created - time.time()) < 60


def test_system_message_is_no_part_of_the_question_and_is_counted(client: openai.OpenAI) -> None:
    system = [{"role": "system", "content": "Be brief and to the point."}]
    reply = ask(client, messages=system + messages())
    assert reply.choices[0].message.content == "How wide?: 40 px"
    assert reply.usage.prompt_tokens == ask(client).usage.prompt_tokens + 8  # Be|_brie|f|_and|_to|_the|_poin|t.


def test_usage_grows_with_text_and_picture(client: openai.OpenAI) -> None:
    def used(**given: Any) -> int:
        return int(ask(client, messages=messages(**given)).usage.prompt_tokens)

    assert used() == 85 + 170 + 3  # How|_wide|?
    assert used(question="How wide? How wide?") == used() + 3
    assert used(url=picture_url(1000, 600)) == used() + 3 * 170  # 2 x 2 squares of 512 px in place of one
    assert used(url=picture_url(1000, 600), detail="low") == used() - 170


@pytest.mark.parametrize("parameter", ["max_tokens", "max_completion_tokens"])
def test_answer_is_cut_at_the_most_tokens(client: openai.OpenAI, parameter: str) -> None:
    reply = ask(client, **{parameter: 2})
    assert reply.choices[0].message.content == "How wide"
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 2


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["reader", "slow"]


def test_unknown_model_is_404_and_says_which_there_are(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'; there are reader, slow") as caught:
        ask(client, "gpt")
    assert caught.value.code == "not_found"


@pytest.mark.parametrize(
    "url",
    ["data:image/png;base64,????", "data:image/png;base64,aGVsbG8=", picture_url(8000, 6000)],
    ids=["no base64", "no picture", "48 million pixels"],
)
def test_bad_picture_is_400(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="Cannot look at the picture: "):
        ask(client, messages=messages(url=url))


def test_picture_that_the_program_refuses_is_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="too dark"):
        ask(client, messages=messages("fail"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "no picture"}]}, "exactly one picture"),
        ({"messages": messages(url="https://example.org/a.png")}, "url"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n: "),
        ({"stream": True}, "stream"),
    ],
)
def test_malformed_request_is_400_and_names_the_part(client: openai.OpenAI, change: dict[str, Any], named: str) -> None:
    with pytest.raises(openai.BadRequestError, match=named) as caught:
        client.chat.completions.create(**({"model": "reader", "messages": messages()} | change))
    assert caught.value.type == "invalid_request_error"


def test_body_that_is_no_json_is_400(base_url: str) -> None:
    reply = httpx2.post(
        f"{base_url}/v1/chat/completions", content=b'{"model": "reader', headers={"content-type": "application/json"}
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_unknown_path_is_404_in_the_same_shape(base_url: str) -> None:
    reply = httpx2.get(f"{base_url}/v1/embeddings")
    assert (reply.status_code, reply.json()["error"]["message"]) == (404, "Not Found")


def test_counters_count_each_model_and_go_back_to_0(client: openai.OpenAI) -> None:
    for model in ("reader", "slow", "reader"):
        ask(client, model)
    switch_on(client, kind="500", times=1)
    with pytest.raises(openai.InternalServerError):
        ask(client)
    assert counters(client) == {"reader": 3, "slow": 1}
    httpx2.delete(str(client.base_url.copy_with(path="/sandbox/counters")))
    assert counters(client) == {"reader": 0, "slow": 0}


def test_fault_ends_after_its_times_and_meets_one_model_only(client: openai.OpenAI) -> None:
    assert switch_on(client, kind="500", times=2).status_code == 200
    assert ask(client, "slow").choices
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            ask(client)
    assert ask(client).choices


def test_fault_without_times_lasts_until_all_are_switched_off(client: openai.OpenAI) -> None:
    switch_on(client, kind="401")
    for _ in range(3):
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(client)
    assert caught.value.code == "invalid_api_key"
    httpx2.delete(str(client.base_url.copy_with(path="/sandbox/faults")))
    assert ask(client).choices


def test_429_says_how_long_to_wait_and_the_client_waits(client: openai.OpenAI) -> None:
    switch_on(client, kind="429", times=2, retry_after_s=0.4)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client)
    assert caught.value.response.headers["retry-after"] == "0.4"
    started = time.perf_counter()
    assert ask(client.with_options(max_retries=1)).choices
    assert time.perf_counter() - started >= 0.4
    assert counters(client)["reader"] == 3


def test_hang_answers_never_and_ends_with_its_client(client: openai.OpenAI) -> None:
    switch_on(client, kind="hang", times=1)
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.3))
    assert ask(client).choices


def test_reset_closes_in_the_middle_of_the_body(client: openai.OpenAI) -> None:
    switch_on(client, kind="reset", times=1)
    with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
        ask(client)
    assert ask(client).choices


@pytest.mark.parametrize(("kind", "content"), [("non_json", "<html><body>Welcome!</body></html>"), ("empty_body", "")])
def test_reply_that_is_no_completion_has_status_200(client: openai.OpenAI, kind: str, content: str) -> None:
    switch_on(client, kind=kind, times=1)
    reply = httpx2.post(f"{client.base_url}chat/completions", json={"model": "reader", "messages": messages()})
    assert (reply.status_code, reply.text) == (200, content)


def test_empty_answer_is_an_empty_string(client: openai.OpenAI) -> None:
    switch_on(client, kind="empty", times=1)
    reply = ask(client)
    assert reply.choices[0].message.content == ""


def test_long_answer_has_10_megabytes(client: openai.OpenAI) -> None:
    switch_on(client, kind="long", times=1)
    assert len(ask(client).choices[0].message.content) >= 10_000_000 - 1


def test_wrong_model_is_named_in_a_right_answer(client: openai.OpenAI) -> None:
    switch_on(client, kind="wrong_model", times=1)
    reply = ask(client)
    assert (reply.model, reply.choices[0].message.content) == ("not-reader", "How wide?: 40 px")


def test_content_filter_refuses_without_content(client: openai.OpenAI) -> None:
    switch_on(client, kind="content_filter", times=1)
    choice = ask(client).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("content_filter", None)
    assert choice.message.refusal


@pytest.mark.parametrize(
    ("fault", "status"),
    [({"kind": "flood"}, 400), ({"kind": "500", "times": 0}, 400), ({"kind": "500", "model": "gpt"}, 404)],
)
def test_unknown_fault_or_model_is_refused(client: openai.OpenAI, fault: dict[str, Any], status: int) -> None:
    assert switch_on(client, **fault).status_code == status
    assert ask(client).choices


def test_many_are_answered_at_once(base_url: str, client: openai.OpenAI) -> None:
    async def all_at_once() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="any", max_retries=0, timeout=20) as client:
            asked = [
                client.chat.completions.create(
                    model="slow", messages=messages(f"question {number}", picture_url(number + 1))
                )
                for number in range(40)
            ]
            return [reply.choices[0].message.content for reply in await asyncio.gather(*asked)]

    started = time.perf_counter()
    answers = asyncio.run(all_at_once())
    assert answers == [f"question {number}: {number + 1} px" for number in range(40)]
    assert 0.3 <= time.perf_counter() - started < 40 * 0.3 / 2  # one after the other would take 12 s
    assert counters(client)["slow"] == 40


def endpoint(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sandbox.endpoint", *arguments]
    return subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_command_serves_the_sandbox_until_sigterm() -> None:
    process = endpoint("--port", "0")
    try:
        line = process.stderr.readline()  # type: ignore[union-attr]
        url = line.split(" at ")[1].strip()
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=20) as client:
            models = [model.id for model in client.models.list()]
            assert models
            assert ask(client, models[0]).choices[0].message.content
        os.kill(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert errors == ""


def test_taken_port_is_said_and_ends_with_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = endpoint("--port", str(port))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"cannot serve on port {port}" in errors
    assert "Traceback" not in errors


def test_every_fault_is_explained_by_help() -> None:
    process = endpoint("--help")
    text, _ = process.communicate(timeout=60)
    kinds = Fault.model_json_schema()["properties"]["kind"]["enum"]
    assert [kind for kind in kinds if kind not in text] == []
