"""A chat-completions server that misbehaves as a script tells it, on a real socket in a thread of the test's process.

It survives the collection that it serves, so it can count: `asked` holds every request in the order of arrival. Each
model follows its own script: the words of `script[model]` one after the other, the last for ever. Words are those of
`_REPLIES` and `_BREAKS`, and what a test adds to `replies`; a model without a script answers.
"""

import asyncio
import base64
import gzip
import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    model: str
    question: str
    picture_sha256: str
    at_s: float
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def authorization(self) -> str:
        """The header that holds the key."""
        return self.headers.get("authorization", "")


@dataclass(frozen=True)
class Reply:
    """What goes back."""

    body: bytes
    status: int = 200
    headers: tuple[str, ...] = ()


def completion(
    asked: Asked,
    content: Any,
    *,
    model: str | None = None,
    request_id: str = "req-7",
    prompt_tokens: int = 100,
    **message: Any,
) -> Reply:
    """A well-formed reply: 100 tokens in where nothing else is said, 10 out."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content} | message,
        "finish_reason": "content_filter" if "refusal" in message else "stop",
    }
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 10, "total_tokens": prompt_tokens + 10}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model or asked.model}
    content = json.dumps(body | {"choices": [choice], "usage": usage}).encode()
    return Reply(content, 200, (f"X-Request-Id: {request_id}",))


def error(status: int, message: str, *headers: str, code: str | None = None) -> Reply:
    """An error in OpenAI's shape."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return Reply(json.dumps(body).encode(), status, headers)


_REPLIES: dict[str, Callable[[Asked], Reply]] = {
    "401": lambda asked: error(401, "Incorrect API key provided.", code="invalid_api_key"),
    "429": lambda asked: error(429, "Slow down.", "Retry-After: 1", code="rate_limit_exceeded"),
    "500": lambda asked: error(500, "The server had an error."),
    "400": lambda asked: error(400, "This picture is not for us."),
    "404": lambda asked: error(404, "No such model.", code="model_not_found"),
    "non_json": lambda asked: Reply(b"<html>Welcome!</html>"),
    "deep": lambda asked: Reply(b"[" * 100_000),
    "list": lambda asked: Reply(b"[1, 2]"),
    "no_choices": lambda asked: Reply(b'{"id": "chatcmpl-1", "choices": []}'),
    "gzip": lambda asked: Reply(gzip.compress(completion(asked, "an answer").body), 200, ("Content-Encoding: gzip",)),
    "redirect": lambda asked: Reply(b"", 302, ("Location: http://127.0.0.1:9/v1/chat/completions",)),
    "odd": lambda asked: Reply(
        b'{"id": ["x"], "model": null, "choices": [{"finish_reason": {"a": 1}, "message": {"content": '
        b'[{"text": "an "}, 3, {"text": "answer"}]}}], "usage": {"prompt_tokens": "many", "completion_tokens": -5}}'
    ),
    "surrogate": lambda asked: Reply(
        b'{"choices": [{"finish_reason": "stop", "message": {"content": "half a \\ud83d sign, a \\u0000"}}]}'
    ),
    "empty_body": lambda asked: Reply(b""),
    "empty": lambda asked: completion(asked, ""),
    "long": lambda asked: completion(asked, "blah " * 2_000_000),
    "wrong_model": lambda asked: completion(asked, "an answer", model="somebody-else"),
    "no_usage": lambda asked: Reply(b'{"choices": [{"message": {"content": "an answer"}, "finish_reason": "stop"}]}'),
    "refusal": lambda asked: completion(asked, None, refusal="I cannot help with that."),
    "filtered_prompt": lambda asked: error(400, "The prompt was filtered.", code="content_filter"),
    "echo_401": lambda asked: error(401, f"Incorrect API key provided: {asked.authorization}"),
    "echo_500": lambda asked: error(500, f"Crashed on {asked.authorization}", f"X-Debug: {asked.authorization}"),
    "echo_answer": lambda asked: completion(asked, f"You sent {asked.authorization}", model=asked.model),
    "echo_model": lambda asked: completion(asked, "an answer", model=asked.authorization),
    "echo_text": lambda asked: Reply(f"no JSON, but {asked.authorization}".encode()),
    "echo_id": lambda asked: completion(asked, "an answer", request_id=asked.authorization),
}  # fmt: skip
_BREAKS = ("hang", "reset", "cut", "drip", "close")


class Hostile:
    """The server; `with Hostile() as server`."""

    def __init__(self, *, latency_s: float = 0.0) -> None:
        self.script: dict[str, list[str]] = {}
        self.replies = dict(_REPLIES)
        self.latency_s = latency_s
        self.answer: Callable[[Asked], str] = lambda asked: f"answer to {asked.question}"
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> "Hostile":
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512, limit=2**24)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def models(self) -> list[str]:
        """The models asked, once per request, in order of arrival."""
        return [asked.model for asked in self.asked]

    def questions(self, model: str) -> list[tuple[str, str]]:
        """What one model was asked, in order of arrival: question and picture."""
        return [(asked.question, asked.picture_sha256) for asked in self.asked if asked.model == model]

    async def _stop(self) -> None:
        await asyncio.sleep(0.02)  # a connection that was only just made gets its task; after `close` it would leak
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.02)  # an aborted transport closes its socket in a later round of the loop

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while True:
                asked = await _read(reader)
                self.asked.append(asked)
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                try:
                    await self._reply(asked, writer)
                finally:
                    self._at_once -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _reply(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        script = self.script.get(asked.model, ["answer"])
        word = script.pop(0) if len(script) > 1 else script[0]
        await asyncio.sleep(self.latency_s)
        if word in _BREAKS:
            await _break(word, completion(asked, self.answer(asked)), writer)
            return
        reply = completion(asked, self.answer(asked)) if word == "answer" else self.replies[word](asked)
        writer.write(_head(reply, len(reply.body)) + reply.body)
        await writer.drain()


async def _break(word: str, reply: Reply, writer: asyncio.StreamWriter) -> None:
    """The ways not to send a whole reply."""
    if word == "hang":
        await asyncio.sleep(3600)
    if word == "drip":  # a byte now and then: no read ever times out
        writer.write(_head(reply, 10_000))
        for _ in range(10_000):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)
    if word in ("reset", "cut"):
        writer.write(_head(reply, len(reply.body)) + reply.body[: len(reply.body) // 2])
        await writer.drain()
        await asyncio.sleep(0.02)  # so that the client has read the half
    if word == "reset":  # not the end of the stream but a broken connection
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    raise ConnectionError(word)


def _head(reply: Reply, length: int) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} Whatever", "Content-Type: application/json", f"Content-Length: {length}"]
    return ("\r\n".join([*lines, *reply.headers]) + "\r\n\r\n").encode()


async def _read(reader: asyncio.StreamReader) -> Asked:
    """One request; asyncio.IncompleteReadError where the client is gone."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    content = await reader.readexactly(int(headers.get("content-length", 0)))
    if not content:
        raise ConnectionError("not a question")
    body = json.loads(content)
    parts = [part for message in body["messages"] if message["role"] == "user" for part in message["content"]]
    picture = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    return Asked(
        model=body["model"],
        question=next(part["text"] for part in parts if part["type"] == "text"),
        picture_sha256=hashlib.sha256(base64.b64decode(picture.split(",", 1)[1])).hexdigest(),
        at_s=time.monotonic(),
        headers=headers,
        body=body,
    )


def closed_port() -> str:
    """The base URL of a place where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
