"""One attempt to get one answer over HTTP, and what its failure means: try again, give this question up, or the VLM.

The `openai` client is told never to retry by itself: a hidden second request may be a second paid answer, so attempts
are counted, budgeted and kept by who calls this (`asking`). Whatever a server sends is held against what was asked; of
what it says only a short, redacted piece goes into messages and tables.
"""

import asyncio
import contextlib
import inspect
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal, cast

import httpx2
import openai
from openai.resources.chat import AsyncCompletions

from arms_model.errors import ConfigError
from tasks.common.vlms import Endpoint

CONTENT_FILTER = "content_filter"
_FILTER_CODES = {CONTENT_FILTER, "content_policy_violation", "ResponsibleAIPolicyViolation", "data_inspection_failed"}
_PASSING = {408, 409, 425, 429}  # and all from 500 on
_BILLED_ALL_THE_SAME = {408, 504, 524}  # time-outs on the way: the model may have answered
_HOPELESS = {401, 402, 403, 404}  # the same for every question
_NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached"}
_MAX_REASON = 300
_NO_KEY = "none"
_HEADERS = {
    "host", "accept", "accept-encoding", "connection", "content-type", "content-length", "authorization", "user-agent",
}  # fmt: skip
_MIN_KEY = 8  # a shorter one, such as EMPTY, is no secret, and would be cut out of ordinary words
_MAX_WAIT_S = 3600.0  # who asks for more is given up in this run
_PARAMETERS = set(inspect.signature(AsyncCompletions.create).parameters) - {
    "self", "stream", "stream_options", "timeout", "extra_headers", "extra_query",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back for one question.

    Attributes:
        output: the answer's text; empty for a refusal that said nothing.
        served_model: the model that the reply names.
        finish_reason: in the endpoint's words.
        request_id: the provider's id.
        latency_s: from sending to the last byte, s.
        prompt_tokens: as counted by the endpoint; None where it did not say.
        completion_tokens: likewise.
    """

    output: str
    served_model: str | None
    finish_reason: str | None
    request_id: str | None
    latency_s: float
    prompt_tokens: int | None
    completion_tokens: int | None


class AttemptError(Exception):
    """An attempt without an answer.

    Attributes:
        reason: what happened, short, without any key.
        scope: `passing`: may work when tried again; `question`: this question is given up; `vlm`: so would all others.
        may_be_billed: whether the provider may charge for it all the same.
        retry_after_s: how long the server asks to wait, s.
    """

    def __init__(
        self,
        reason: str,
        scope: Literal["passing", "question", "vlm"],
        *,
        may_be_billed: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.scope = reason, scope
        self.may_be_billed, self.retry_after_s = may_be_billed, retry_after_s


class ReplyTooLongError(Exception):
    """More bytes came than a reply may have; the rest was not read."""


class Caller:
    """Sends requests to one endpoint; `async with Caller(endpoint, api_key=...) as caller`."""

    def __init__(self, endpoint: Endpoint, *, api_key: str | None) -> None:
        """Make the client; nothing is sent yet.

        Args:
            endpoint: where to send.
            api_key: the key, or None where the endpoint needs none.

        Raises:
            ConfigError: its URL or the environment's proxy cannot be used.
        """
        self._endpoint, self._api_key = endpoint, api_key
        try:
            self._client = openai.AsyncOpenAI(
                base_url=endpoint.base_url,
                api_key=api_key or _NO_KEY,
                max_retries=0,
                timeout=None,  # the whole attempt has one deadline: a time-out per read never ends a slow drip
                http_client=httpx2.AsyncClient(
                    limits=httpx2.Limits(
                        max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency
                    ),
                    headers={"accept-encoding": "identity"},
                    event_hooks={
                        "request": [_private(api_key or _NO_KEY)],
                        "response": [_cap(endpoint.max_answer_bytes)],
                    },
                ),
            )
        except (ImportError, ValueError, httpx2.InvalidURL, openai.OpenAIError) as error:
            raise ConfigError(
                f"no client can be made for {endpoint.base_url}: {self._short(str(error))}. Correct base_url, or the "
                "proxy that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY)."
            ) from None

    async def __aenter__(self) -> "Caller":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, body: dict[str, Any]) -> Reply:
        """Send one request once.

        Args:
            body: arguments of `chat.completions.create`.

        Returns:
            The answer; a content filter's refusal is one.

        Raises:
            AttemptError: anything else.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                reply = await self._client.post("/chat/completions", cast_to=httpx2.Response, body=_as_sent(body))
        except TimeoutError:
            raise AttemptError(
                f"no whole reply within {self._endpoint.timeout_s:g} s", "passing", may_be_billed=True
            ) from None
        except openai.APIStatusError as error:
            return self._refusal(error, latency_s=time.monotonic() - started)
        except openai.APIConnectionError as error:
            raise self._broken_off(error) from None
        except ReplyTooLongError:  # raised while the client reads, and none of the errors that it knows
            limit = self._endpoint.max_answer_bytes
            raise AttemptError(f"the reply is longer than {limit:,} bytes", "question", may_be_billed=True) from None
        except openai.OpenAIError as error:
            raise AttemptError(self._short(f"the request failed: {error}"), "question", may_be_billed=True) from None
        except (TypeError, ValueError) as error:  # generation parameters that are no JSON, or that nobody knows
            raise AttemptError(self._short(f"the request cannot be made: {error}"), "vlm") from None
        latency_s = time.monotonic() - started
        return self._read(reply.content, headers=reply.headers, latency_s=latency_s)

    def _read(self, content: bytes, *, headers: httpx2.Headers, latency_s: float) -> Reply:
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise AttemptError(
                self._short(f"the reply is no JSON: {self._start(content)!r}"), "passing", may_be_billed=True
            ) from None
        if not isinstance(body, dict) or not isinstance(body.get("choices"), list) or not body["choices"]:
            said = body.get("error") if isinstance(body, dict) else None
            raise AttemptError(
                self._short(f"the reply has no choices: {said or self._start(content)!r}"),
                "passing",
                may_be_billed=True,
            )
        choice = _mapping(body["choices"][0])
        message = _mapping(choice.get("message"))
        finish_reason = choice.get("finish_reason")
        refusal = message.get("refusal")
        output = _joined(message.get("content"))
        is_refusal = bool(refusal) or finish_reason == CONTENT_FILTER
        if not output.strip() and not is_refusal:
            raise AttemptError(f"the answer is empty (finish_reason: {finish_reason})", "question", may_be_billed=True)
        usage = _mapping(body.get("usage"))
        return Reply(
            output=self._clean(output if output.strip() else str(refusal or "")),
            served_model=self._name(body.get("model")),
            finish_reason=CONTENT_FILTER if is_refusal else self._name(finish_reason),
            request_id=self._name(_request_id(headers) or body.get("id")),
            latency_s=latency_s,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
        )

    def _refusal(self, error: openai.APIStatusError, *, latency_s: float) -> Reply:
        """A content filter's answer to a prompt comes as an error status; all other statuses are failures."""
        status, body = error.status_code, _mapping(error.body)
        codes = {str(part.get(name)) for part in (body, _mapping(body.get("innererror"))) for name in ("code", "type")}
        if status in (400, 403) and codes & _FILTER_CODES:
            return Reply(
                output="", served_model=None, finish_reason=CONTENT_FILTER, latency_s=latency_s,
                request_id=self._name(_request_id(error.response.headers)), prompt_tokens=None, completion_tokens=None,
            )  # fmt: skip
        said = body.get("message") or self._start(error.response.content)
        reason = self._short(f"HTTP {status}: {said}")
        if status in _HOPELESS or status < 400 or codes & _NO_MONEY:
            raise AttemptError(self._short(f"HTTP {status} from {self._endpoint.base_url}: {said}"), "vlm") from None
        if status in _PASSING or status >= 500:
            wait_s = _retry_after_s(error.response.headers)
            if wait_s is not None and wait_s > _MAX_WAIT_S:
                raise AttemptError(self._short(f"asks to wait {wait_s:.0f} s; {reason}"), "vlm") from None
            may_be_billed = status in _BILLED_ALL_THE_SAME
            raise AttemptError(reason, "passing", may_be_billed=may_be_billed, retry_after_s=wait_s) from None
        raise AttemptError(reason, "question") from None

    def _broken_off(self, error: openai.APIConnectionError) -> AttemptError:
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)
        if any(isinstance(link, httpx2.ConnectError | httpx2.ConnectTimeout) for link in chain):
            return AttemptError(self._short(f"no connection to {self._endpoint.base_url}: {chain[-1]}"), "passing")
        kind = type(error.__cause__ or error).__name__
        reason = self._short(f"the connection broke off ({kind}: {chain[-1]})")
        return AttemptError(reason, "passing", may_be_billed=True)

    def _short(self, reason: str) -> str:
        reason = " ".join(self._clean(reason).split())
        return reason if len(reason) <= _MAX_REASON else reason[:_MAX_REASON] + "..."

    def _name(self, value: object) -> str | None:
        return self._clean(str(value))[:_MAX_REASON] if value else None

    def _clean(self, text: str) -> str:
        """Text that can be stored (no lone surrogates), without the key."""
        text = text.encode("utf-8", "replace").decode()
        if self._api_key is not None and len(self._api_key) >= _MIN_KEY:
            for written in (self._api_key, json.dumps(self._api_key)[1:-1], repr(self._api_key)[1:-1]):
                text = text.replace(written, "[key]")
        return text

    def _start(self, content: bytes) -> str:
        """How a body begins; the key is cut out before anything is cut off."""
        return self._clean(content[: 100 * _MAX_REASON].decode("utf-8", "replace"))[:_MAX_REASON]


def _as_sent(body: dict[str, Any]) -> dict[str, Any]:
    """The request's JSON, sent as it is.

    `chat.completions.create` would walk through every part of it and then parse the reply into classes that nobody
    reads: a third of all CPU time where many are asked at once. What it does besides is done here: a misspelt
    parameter is refused, since most services ignore one silently; `extra_body` is merged in.
    """
    if unknown := set(body) - _PARAMETERS:
        raise ValueError(
            f"no parameter of chat completions is called {', '.join(sorted(unknown))}; parameters of the service's own "
            "go into generation.extra_body"
        )
    extra = body.get("extra_body") or {}
    return {name: value for name, value in body.items() if name != "extra_body"} | dict(extra)


def _private(api_key: str) -> Callable[[httpx2.Request], Awaitable[None]]:
    """A hook: the client adds what the environment says of an OpenAI account, which only OpenAI is told."""

    async def strip(request: httpx2.Request) -> None:
        if not f".{request.url.host}".endswith(".openai.com"):
            for name in set(request.headers) - _HEADERS:
                del request.headers[name]
            request.headers["authorization"] = f"Bearer {api_key}"  # OPENAI_CUSTOM_HEADERS may name another

    return strip


def _cap(max_bytes: int) -> Callable[[httpx2.Response], Awaitable[None]]:
    """A hook that bounds how much of any reply is read: nobody fills our memory."""

    async def cap(response: httpx2.Response) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx2.DecodingError("the reply is compressed, which was not asked for", request=response.request)
        response.stream = _CappedStream(cast(httpx2.AsyncByteStream, response.stream), max_bytes=max_bytes)

    return cap


class _CappedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, *, max_bytes: int) -> None:
        self._inner, self._max_bytes = inner, max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        num_bytes = 0
        async for chunk in self._inner:
            num_bytes += len(chunk)
            if num_bytes > self._max_bytes:
                raise ReplyTooLongError
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _joined(content: object) -> str:
    """A message's content; some endpoints give a list of parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
    return value if isinstance(value, int) and is_count else None


def _request_id(headers: httpx2.Headers) -> str | None:
    return headers.get("x-request-id") or headers.get("request-id")


def _retry_after_s(headers: httpx2.Headers) -> float | None:
    """`Retry-After` in seconds, from its number or its date."""
    value = headers.get("retry-after", "").strip()
    seconds = None
    with contextlib.suppress(ValueError):
        seconds = float(value)
    with contextlib.suppress(ValueError, TypeError, IndexError):
        seconds = parsedate_to_datetime(value).timestamp() - time.time() if seconds is None else seconds
    return max(seconds, 0.0) if seconds is not None and math.isfinite(seconds) else None
