"""The sandbox's VLMs behind one local OpenAI-compatible endpoint.

    python -m sandbox.endpoint                  serves http://127.0.0.1:8399/v1 until Ctrl-C or SIGTERM

    POST /v1/chat/completions   one picture as a data URL and a question; any key, or none, is accepted
    GET  /v1/models             the models
    GET  /sandbox/counters      requests per model since the start; DELETE sets them to 0
    POST /sandbox/faults        {"model": ..., "kind": "500", "times": 3}: that model's next 3 requests go wrong, all of
                                them where "times" is left out; DELETE ends all faults

Kinds of fault: 429 (with Retry-After, "retry_after_s", 1 by default), 500, 401, hang (no answer ever), reset (closed in
the middle of the body), non_json (a page of HTML), empty_body, empty (the answer is an empty string), long (10 MB of
text), wrong_model (the answer under another model's name), content_filter (a refusal).

A token is up to four characters with the white space before them; a picture costs 85 and, unless its detail is `low`,
170 more for each square of 512 px: near to what real services count. Programs run in threads, as many as there are
cores; a program that is done before its latency has passed waits for the rest.
"""

import argparse
import asyncio
import base64
import binascii
import contextlib
import io
import logging
import math
import os
import re
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from sandbox.programs import PROGRAMS, Program

log = logging.getLogger(__name__)
MAX_PIXELS = 40_000_000  # a larger picture is refused before it is decoded
_TOKEN = re.compile(r"\s*\S{1,4}|\s+$")
_ERRORS = {
    "429": ("Too many requests.", "rate_limit_exceeded"),
    "500": ("The server had an error.", None),
    "401": ("Incorrect API key provided.", "invalid_api_key"),
}
_ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}


class ImageUrl(BaseModel):
    """A picture as a data URL; nothing is fetched from other addresses."""

    url: str = Field(pattern=r"^data:image/[\w.+-]+;base64,")
    detail: str | None = None


class Part(BaseModel):
    """A part of a message: its text or its picture."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageUrl | None = None


class Message(BaseModel):
    """A message of the conversation."""

    role: str
    content: str | list[Part]


class ChatRequest(BaseModel):
    """What is read of a request; further parameters are accepted and change nothing."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    stream: Literal[False] | None = None
    n: Literal[1] | None = None

    def parts(self, *roles: str) -> list[Part]:
        """The parts of all messages, or of those of some roles; plain text is one part."""
        contents = [message.content for message in self.messages if not roles or message.role in roles]
        return [
            part for text in contents for part in ([Part(type="text", text=text)] if isinstance(text, str) else text)
        ]


class Fault(BaseModel):
    """A fault that is switched on; `times` counts down, None never ends."""

    model: str
    kind: Literal[
        "429", "500", "401", "hang", "reset", "non_json", "empty_body", "empty", "long", "wrong_model", "content_filter"
    ]
    times: PositiveInt | None = None
    retry_after_s: PositiveFloat = 1.0


class CutOffResponse(Response):
    """Promises more bytes than it sends; the server then closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head and half a body, and return."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b'{"id": "chatcmpl-1", "choi', "more_body": True})


class Sandbox:
    """The programs, how often each was asked, and the faults that are switched on."""

    def __init__(self, programs: Mapping[str, Program], *, latency_factor: float) -> None:
        self.programs, self.latency_factor = programs, latency_factor
        self.counters = dict.fromkeys(programs, 0)
        self.faults: dict[str, Fault] = {}
        self.threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="program")

    def program(self, model: str) -> Program:
        """The program behind a model's name."""
        if model not in self.programs:
            known = ", ".join(self.programs)
            raise refused(f"There is no model '{model}'; there are {known}.", status=404, code="model_not_found")
        return self.programs[model]

    def next_fault(self, model: str) -> Fault | None:
        """The fault that the next request to `model` meets, counted down."""
        fault = self.faults.get(model)
        if fault is not None and fault.times is not None:
            fault.times -= 1
            if fault.times == 0:
                del self.faults[model]
        return fault

    async def reply(self, chat: ChatRequest, request: Request) -> Response:
        """Answer a request, after the program's latency."""
        started = time.perf_counter()
        program = self.program(chat.model)
        self.counters[program.name] += 1
        fault = self.next_fault(program.name)
        if fault is not None and (broken := await broken_reply(fault, request)) is not None:
            return broken
        picture, used = read_picture(chat)
        question = "\n".join(part.text for part in chat.parts("user") if part.type == "text")
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self.threads, program.answer, picture, question)
        except ValueError as error:
            raise refused(f"The picture cannot be read: {error}", code="invalid_image") from None
        await asyncio.sleep(program.latency_s * self.latency_factor - (time.perf_counter() - started))
        model = f"not-{program.name}" if fault is not None else program.name  # the one fault that gets so far
        return ok(completion(model, answer, prompt_tokens=used, limit=chat.max_completion_tokens or chat.max_tokens))


async def broken_reply(fault: Fault, request: Request) -> Response | None:
    """What a fault makes of a request; None where the program answers all the same."""
    if fault.kind in _ERRORS:
        message, code = _ERRORS[fault.kind]
        wait = {"Retry-After": f"{fault.retry_after_s:g}"} if fault.kind == "429" else {}
        raise refused(message, status=int(fault.kind), code=code, headers=wait)
    match fault.kind:
        case "hang":
            while (await request.receive())["type"] != "http.disconnect":
                pass
            return Response()
        case "reset":
            return CutOffResponse()
        case "non_json":
            return Response("<html><body>Welcome!</body></html>", media_type="text/html")
        case "empty_body":
            return Response()
        case "empty":
            return ok(completion(fault.model, "", prompt_tokens=10))
        case "long":
            return ok(completion(fault.model, "blah " * 2_000_000, prompt_tokens=10))
        case "content_filter":
            return ok(completion(fault.model, None, prompt_tokens=10, refusal="I cannot help with that."))
    return None


def read_picture(chat: ChatRequest) -> tuple[bytes, int]:
    """The one picture of a request, and the prompt's tokens; the picture is not decoded yet."""
    parts = chat.parts()
    pictures = [part.image_url for part in parts if part.image_url is not None]
    if len(pictures) != 1:
        raise refused(f"Models here look at exactly one picture; the messages hold {len(pictures)}.")
    try:
        content = base64.b64decode(pictures[0].url.split(",", 1)[1], validate=True)
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
    except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise refused(f"The picture cannot be read: {error}", code="invalid_image") from None
    if width * height > MAX_PIXELS:
        raise refused(f"The picture has {width * height} pixels, more than {MAX_PIXELS}.", code="invalid_image")
    tiles = 0 if pictures[0].detail == "low" else math.ceil(width / 512) * math.ceil(height / 512)
    return content, 85 + 170 * tiles + sum(len(_TOKEN.findall(part.text)) for part in parts)


def completion(
    model: str, answer: str | None, *, prompt_tokens: int, limit: int | None = None, refusal: str | None = None
) -> dict[str, Any]:
    """A reply's JSON; an answer of more than `limit` tokens is cut off there."""
    tokens = _TOKEN.findall(answer or "")
    kept = tokens[:limit]
    message = {"role": "assistant", "content": None if answer is None else "".join(kept), "refusal": refusal}
    reason = "content_filter" if refusal else "stop" if len(kept) == len(tokens) else "length"
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(kept), "total_tokens": prompt_tokens + len(kept)}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": usage,
    }


def ok(body: dict[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A reply with a request id of its own."""
    return JSONResponse(body, status, headers={"x-request-id": f"req_{uuid.uuid4().hex}"} | dict(headers or {}))


def refused(
    message: str, *, status: int = 400, code: str | None = None, headers: dict[str, str] | None = None
) -> HTTPException:
    """An error in OpenAI's shape, to raise."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return HTTPException(status, body, headers)  # type: ignore[arg-type]  # it only carries it


def make_app(programs: Mapping[str, Program], *, latency_factor: float = 1.0) -> FastAPI:
    """The endpoint as an ASGI app.

    Args:
        programs: the VLMs by name.
        latency_factor: each program's latency is multiplied by it; 0 answers as fast as it can.
    """
    sandbox = Sandbox(programs, latency_factor=latency_factor)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        sandbox.threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="Sandbox", lifespan=lifespan, openapi_url=None)

    @app.exception_handler(HTTPException)
    async def on_refused(request: Request, error: HTTPException) -> Response:
        body: Any = error.detail
        if isinstance(body, str):  # of the framework itself, e.g. an unknown path
            body = refused(f"{request.method} {request.url.path}: {body}", status=error.status_code).detail
        return ok(body, status=error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_malformed(request: Request, error: RequestValidationError) -> Response:
        faults = [f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors()]
        return await on_refused(request, refused("; ".join(faults)))

    @app.post("/v1/chat/completions")
    async def chat_completions(chat: ChatRequest, request: Request) -> Response:
        return await sandbox.reply(chat, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "sandbox"} for name in programs]
        return {"object": "list", "data": listed}

    @app.get("/sandbox/counters")
    async def counters() -> dict[str, int]:
        return sandbox.counters

    @app.delete("/sandbox/counters")
    async def reset_counters() -> dict[str, int]:
        sandbox.counters = dict.fromkeys(programs, 0)
        return sandbox.counters

    @app.post("/sandbox/faults")
    async def switch_on(fault: Fault) -> dict[str, Fault]:
        sandbox.faults[sandbox.program(fault.model).name] = fault
        return sandbox.faults

    @app.delete("/sandbox/faults")
    async def switch_off() -> dict[str, Fault]:
        sandbox.faults = {}
        return sandbox.faults

    return app


def main() -> int:
    """Serve until stopped; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.endpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to serve on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8399, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--latency-factor", type=float, default=1.0, help="multiplies each VLM's latency")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="sandbox: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn hands a signal on once it has stopped
    try:
        listening = socket.create_server((options.host, options.port))
    except (OSError, OverflowError) as error:
        place = f"{options.host}, port {options.port}"
        log.error("cannot serve on %s: %s. Stop what listens there, or name another --port.", place, error)
        return 2
    with contextlib.suppress(KeyboardInterrupt):
        log.info("%d VLMs at http://%s:%d/v1", len(PROGRAMS), *listening.getsockname())
        app = make_app(PROGRAMS, latency_factor=options.latency_factor)
        # kept alive for longer than clients keep their connections, so that none is closed while a client writes
        config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=75, timeout_graceful_shutdown=3)
        uvicorn.Server(config).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
