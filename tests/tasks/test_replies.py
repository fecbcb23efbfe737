"""What goes out beside a question, and that no piece of a key comes back in any reason."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import httpx2
import pytest

from tasks.common.endpoint.replies import AttemptError, Caller
from tasks.common.vlms import Endpoint
from tests.tasks.hostile import Asked, Hostile, Reply, completion, error

if TYPE_CHECKING:
    from tasks.common.endpoint.replies import Reply as Answered

KEY = "sk-5up3r-s3cr3t-0123456789"
ODD_KEY = "Secret'quoted\"key\\12345"
BODY = {
    "model": "toy",
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": "?"}],
        }
    ],
}
OF_AN_ACCOUNT = {
    "OPENAI_ORG_ID": "org-private", "OPENAI_PROJECT_ID": "proj-private", "OPENAI_ADMIN_KEY": "sk-admin-private",
    "OPENAI_CUSTOM_HEADERS": "X-Mine: header-private\nAuthorization: Bearer auth-private",
}  # fmt: skip


def ask(base_url: str, *, key: str | None = KEY) -> Answered:
    """Ask one question once."""

    async def once() -> Answered:
        async with Caller(Endpoint(name="toy", base_url=base_url, model="toy", timeout_s=5), api_key=key) as caller:
            return await caller.ask(BODY)

    return asyncio.run(once())


def reason(server: Hostile, *, key: str) -> str:
    with pytest.raises(AttemptError) as caught:
        ask(server.base_url, key=key)
    return caught.value.reason


@pytest.mark.parametrize("num_before", range(240, 312, 6))
@pytest.mark.parametrize("is_json", [True, False])
def test_no_piece_of_a_key_is_left_where_a_reason_is_cut_off(server: Hostile, num_before: int, is_json: bool) -> None:
    def leak(asked: Asked) -> Reply:
        said = "x" * num_before + asked.authorization
        return error(500, said) if is_json else Reply(said.encode(), 500)

    server.replies["leak"] = leak
    server.script["toy"] = ["leak"]
    assert KEY[:5] not in reason(server, key=KEY)


@pytest.mark.parametrize("num_before", range(270, 306, 6))
def test_no_piece_of_a_key_is_left_where_a_name_is_cut_off(server: Hostile, num_before: int) -> None:
    server.replies["leak"] = lambda asked: completion(asked, "yes", model="x" * num_before + asked.authorization)
    server.script["toy"] = ["leak"]
    assert KEY[:5] not in str(ask(server.base_url))


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("name", ["oops", "error"])
def test_escaped_key_is_cut_out(server: Hostile, status: int, name: str) -> None:
    server.replies["leak"] = lambda asked: Reply(json.dumps({name: {"message": asked.authorization}}).encode(), status)
    server.script["toy"] = ["leak"]
    said = reason(server, key=ODD_KEY)
    assert "[key]" in said
    assert "quoted" not in said


def test_what_the_environment_says_of_an_account_is_not_sent_elsewhere(
    server: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OF_AN_ACCOUNT.items():
        monkeypatch.setenv(name, value)
    for key, sent in ((KEY, KEY), (None, "none")):
        ask(server.base_url, key=key)
        assert server.asked[-1].authorization == f"Bearer {sent}"
        assert "private" not in str(server.asked[-1].headers)


@pytest.mark.parametrize(
    ("host", "is_told"), [("api.openai.com", True), ("eu.api.openai.com", True), ("notopenai.com", False)]
)
def test_only_openai_is_told_of_an_account(monkeypatch: pytest.MonkeyPatch, host: str, is_told: bool) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-private")
    seen: list[httpx2.Request] = []

    async def once() -> None:
        caller = Caller(Endpoint(name="toy", base_url=f"http://{host}/v1", model="toy"), api_key=KEY)

        async def stop(request: httpx2.Request) -> None:  # runs last: nothing leaves this machine
            seen.append(request)
            raise httpx2.ConnectError("stopped by the test")

        caller._client._client.event_hooks["request"].append(stop)
        async with caller:
            with pytest.raises(AttemptError, match="stopped by the test"):
                await caller.ask(BODY)

    asyncio.run(once())
    assert ("org-private" in str(seen[0].headers)) is is_told
