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
170 more for each square of 512 px: near to what real services count. Programs run in threads; one that is done before
its latency has passed waits for the rest.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import math
import re
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field, PositiveFloat, PositiveInt
from starlette.exceptions import HTTPException

from sandbox.programs import PROGRAMS

Answering = Callable[[bytes, str], str]  # the picture file's bytes and the question; ValueError where it sees nothing
MAX_PIXELS = 40_000_000  # a larger picture is refused before it is decoded
_TOKEN = re.compile(r"\s*\S{1,4}|\s+$")
_ERRORS = {  # type and code by status; all others are as 400
    400: ("invalid_request_error", None),
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", None),
}


class ImageUrl(BaseModel):
    """A picture as a data URL; nothing is fetched from other addresses."""

    url: str = Field(pattern=r"^data:image/[\w.+-]+;base64,")
    detail: str | None = None


class Part(BaseModel):
    """A part of a message: its text or its picture."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: ImageUrl | None = None


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(BaseModel):
    """A message of the conversation; plain text is one part."""

    role: str
    content: Annotated[list[Part], BeforeValidator(_as_parts)]


class ChatRequest(BaseModel):
    """What is read of a request; further parameters are accepted and change nothing."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    stream: Literal[False] | None = None
    n: Literal[1] | None = None


class Fault(BaseModel):
    """A fault that is switched on; `times` counts down."""

    model: str
    kind: Literal[
        "429", "500", "401", "hang", "reset", "non_json", "empty_body", "empty", "long", "wrong_model", "content_filter"
    ]
    times: PositiveInt = sys.maxsize
    retry_after_s: PositiveFloat = 1.0


def read_picture(parts: list[Part]) -> tuple[bytes, int]:
    """The one picture of a request, not decoded yet, and the tokens that it costs."""
    pictures = [part.image_url for part in parts if part.image_url is not None]
    if len(pictures) != 1:
        raise ValueError(f"models here look at exactly one picture; the messages hold {len(pictures)}")
    content = base64.b64decode(pictures[0].url.split(",", 1)[1], validate=True)
    with Image.open(io.BytesIO(content)) as opened:
        width, height = opened.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width * height} pixels, more than {MAX_PIXELS}")
    squares = 0 if pictures[0].detail == "low" else math.ceil(width / 512) * math.ceil(height / 512)
    return content, 85 + 170 * squares


async def complete(chat: ChatRequest, program: Answering) -> dict[str, Any]:
    """A program's answer as a reply's JSON; one of more tokens than asked for is cut off there."""
    parts = [part for message in chat.messages for part in message.content]
    asked = [part.text for message in chat.messages if message.role == "user" for part in message.content if part.text]
    try:
        picture, picture_tokens = read_picture(parts)
        answer = await asyncio.to_thread(program, picture, "\n".join(asked))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise HTTPException(400, f"Cannot look at the picture: {error}.") from None
    tokens = _TOKEN.findall(answer)
    kept = tokens[: chat.max_completion_tokens or chat.max_tokens]
    message = {"role": "assistant", "content": "".join(kept), "refusal": None}
    reason = "stop" if len(kept) == len(tokens) else "length"
    prompt_tokens = picture_tokens + sum(len(_TOKEN.findall(part.text)) for part in parts)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(kept), "total_tokens": prompt_tokens + len(kept)}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": chat.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": usage,
    }


def respond(body: dict[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A reply with a request id of its own."""
    return JSONResponse(body, status, headers={"x-request-id": f"req_{uuid.uuid4().hex}"} | dict(headers or {}))


async def spoil(reply: dict[str, Any], fault: Fault, request: Request) -> Response:
    """What a fault makes of a reply."""
    choice = reply["choices"][0]
    match fault.kind:
        case "401" | "429" | "500":
            wait = {"Retry-After": f"{fault.retry_after_s:g}"} if fault.kind == "429" else None
            raise HTTPException(int(fault.kind), "This fault is switched on.", wait)
        case "hang":
            while (await request.receive())["type"] != "http.disconnect":
                pass
            return Response()
        case "reset":  # fewer bytes than promised: the server logs an error and closes the connection
            return Response(b'{"id": "chatcmpl-1", "choi', headers={"content-length": "1000"})
        case "non_json":
            return HTMLResponse("<html><body>Welcome!</body></html>")
        case "empty_body":
            return Response()
        case "empty":
            choice["message"]["content"] = ""
        case "long":
            choice["message"]["content"] = "blah " * 2_000_000
        case "wrong_model":
            reply["model"] = f"not-{fault.model}"
        case "content_filter":
            choice["message"] |= {"content": None, "refusal": "I cannot help with that."}
            choice["finish_reason"] = "content_filter"
    return respond(reply)


def make_app(programs: Mapping[str, Answering], latencies_s: Mapping[str, float]) -> FastAPI:
    """The endpoint as an ASGI app.

    Args:
        programs: the VLMs by name; each is called from several threads.
        latencies_s: seconds before an answer comes, by VLM, as a larger model would take longer.
    """
    app = FastAPI(title="Sandbox", openapi_url=None)
    counters = dict.fromkeys(programs, 0)
    faults: dict[str, Fault] = {}

    def check(model: str) -> None:
        if model not in programs:
            raise HTTPException(404, f"There is no model '{model}'; there are {', '.join(programs)}.")

    @app.exception_handler(HTTPException)
    async def on_refused(request: Request, error: HTTPException) -> Response:
        kind, code = _ERRORS.get(error.status_code, _ERRORS[400])
        body = {"error": {"message": error.detail, "type": kind, "param": None, "code": code}}
        return respond(body, status=error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_malformed(request: Request, error: RequestValidationError) -> Response:
        wrong = [f"{'.'.join(map(str, part['loc'][1:]))}: {part['msg']}" for part in error.errors()]
        return await on_refused(request, HTTPException(400, "; ".join(wrong)))

    @app.post("/v1/chat/completions")
    async def chat_completions(chat: ChatRequest, request: Request) -> Response:
        started = time.perf_counter()
        check(chat.model)
        counters[chat.model] += 1
        fault = faults.get(chat.model)
        if fault is not None:
            fault.times -= 1
            if fault.times == 0:
                del faults[chat.model]
        reply = await complete(chat, programs[chat.model])
        await asyncio.sleep(latencies_s[chat.model] - (time.perf_counter() - started))
        return respond(reply) if fault is None else await spoil(reply, fault, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "sandbox"} for name in programs]
        return {"object": "list", "data": listed}

    @app.get("/sandbox/counters")
    async def show_counters() -> dict[str, int]:
        return counters

    @app.delete("/sandbox/counters")
    async def reset_counters() -> None:
        counters.update(dict.fromkeys(programs, 0))

    @app.post("/sandbox/faults")
    async def switch_on(fault: Fault) -> None:
        check(fault.model)
        faults[fault.model] = fault

    @app.delete("/sandbox/faults")
    async def switch_off() -> None:
        faults.clear()

    return app


def main() -> int:
    """Serve until stopped; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.endpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8399, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--latency-factor", type=float, default=1.0, help="multiplies each VLM's latency")
    options = parser.parse_args()
    try:
        listening = socket.create_server(("127.0.0.1", options.port))
    except (OSError, OverflowError) as error:
        parser.error(f"cannot serve on port {options.port}: {error}; stop what listens there, or name another --port")
    sys.stderr.write(f"sandbox: {len(PROGRAMS)} VLMs at http://127.0.0.1:{listening.getsockname()[1]}/v1\n")
    app = make_app(PROGRAMS, {name: options.latency_factor * vlm.latency_s for name, vlm in PROGRAMS.items()})
    # kept alive for longer than clients keep their connections, so that none is closed while a client writes
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=75, timeout_graceful_shutdown=3)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn hands a signal on once it has stopped
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
