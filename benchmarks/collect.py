"""Speed and memory of `collect`'s asking loop against an endpoint that answers in 50 ms.

    python -m benchmarks.collect                    requests a second at 1, 8 and 64 at once, about 2 minutes
    python -m benchmarks.collect --memory           resident memory while 20,000 queries are asked

The endpoint is a process of its own and does nothing but wait; pictures of 448 px are made up here. Beside the loop
stand the ideal (concurrency / latency) and a bare `AsyncOpenAI` loop that sends the same requests and keeps nothing:
what the CPU allows. Both take turns in one run, so that their ratio holds on other machines.
"""

import argparse
import asyncio
import hashlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
from PIL import Image, ImageDraw

from tasks.common.endpoint.answers import Answer, AnswerStore
from tasks.common.endpoint.asking import Plan, ask_all
from tasks.common.endpoint.requests import Request, make_request, message_body, picture_as_sent
from tasks.common.vlms import Endpoint, Vlm

LATENCY_S = 0.05
SECONDS = 3  # a measurement at the ideal rate
NUM_PICTURES = 100
MARKS = (2_000, 5_000, 10_000, 15_000, 20_000)
REPLY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"timed","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"The answer is B."},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":300,"completion_tokens":6,"total_tokens":306}}'
)


class WaitingServer(asyncio.Protocol):
    """Reads a request by its length and answers after a while; nothing is parsed."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self.left = 0
        self.head = b""

    def connection_made(self, transport: Any) -> None:  # noqa: D102
        self.transport = transport

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.left:
            self.left -= len(data)
        else:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = int(self.head[:end].lower().split(b"content-length:")[1].split(b"\r\n")[0])
            self.left = length - (len(self.head) - end - 4)
            self.head = b""
        if not self.left:
            asyncio.get_running_loop().call_later(self.latency_s, self.answer)

    def answer(self) -> None:
        """Send the reply, always the same."""
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(REPLY)}\r\n\r\n"
        self.transport.write(head.encode() + REPLY)


def serve(latency_s: float, port: Any) -> None:
    """The endpoint's process: tells its port and serves for ever."""

    async def forever() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: WaitingServer(latency_s), "127.0.0.1", 0, backlog=512)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def main() -> int:
    """Print the figures; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collect", description=__doc__.split("\n")[0])
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--repeats", type=int, default=5, help="turns that each loop takes (default: %(default)s)")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(0.0 if options.memory else LATENCY_S, there), daemon=True)
    server.start()
    base_url = f"http://127.0.0.1:{here.recv()}/v1"
    with tempfile.TemporaryDirectory() as folder:
        pictures = made_up_pictures(Path(folder))
        if options.memory:
            print_memory(base_url, pictures, Path(folder))
        else:
            print_speed(base_url, pictures, Path(folder), repeats=options.repeats)
    server.terminate()
    return 0


def print_speed(base_url: str, pictures: Sequence[Path], folder: Path, *, repeats: int) -> None:
    """Requests a second of both loops, in turns, and their ratios."""
    print(f"an endpoint that answers in {LATENCY_S * 1000:.0f} ms; median of {repeats} turns (least-most)\n")
    print(f"{'at once':>8}{'ideal/s':>9}{'collect/s':>22}{'bare client/s':>22}{'x ideal':>9}{'x bare':>8}")
    for concurrency in (1, 8, 64):
        ideal = concurrency / LATENCY_S
        vlm = timed_vlm(base_url, concurrency)
        requests = made_up_requests(vlm, pictures, int(min(ideal, 500) * SECONDS))
        rates: dict[str, list[float]] = {"collect": [], "bare": []}
        for name in rates:  # the first time pays for what is loaded late
            run_loop(name, vlm, requests[:64], folder)
        for turn in range(repeats):
            for name in sorted(rates, reverse=bool(turn % 2)):
                started = time.perf_counter()
                run_loop(name, vlm, requests, folder)
                rates[name].append(len(requests) / (time.perf_counter() - started))
        ours, bare = (statistics.median(rates[name]) for name in ("collect", "bare"))
        shown = [f"{statistics.median(rate):.1f} ({min(rate):.1f}-{max(rate):.1f})" for rate in rates.values()]
        print(f"{concurrency:8}{ideal:9.0f}{shown[0]:>22}{shown[1]:>22}{ours / ideal:9.2f}{ours / bare:8.2f}")


def run_loop(name: str, vlm: Vlm, requests: Sequence[Request], folder: Path) -> None:
    """One of the two loops, from making its client to the last answer."""
    if name == "collect":
        collect_loop(vlm, requests, folder)
    else:
        asyncio.run(bare_loop(vlm, requests))


def print_memory(base_url: str, pictures: Sequence[Path], folder: Path) -> None:
    """Resident memory while one plan of 20,000 queries is asked, 64 at once."""
    vlm = timed_vlm(base_url, 64)
    requests = made_up_requests(vlm, pictures, MARKS[-1])
    before = resident_mib()
    started = time.perf_counter()
    with MarkedStore(folder / "memory.sqlite") as store:
        ask_all([Plan(vlm=vlm, requests=requests, max_errors=0, spent_usd=0.0)], store=store, budget_usd=None)
    print(f"\n{MARKS[-1]} queries in {time.perf_counter() - started:.0f} s; {before:.0f} MiB before the first")
    for mark, mib in zip(MARKS, store.marks, strict=True):
        print(f"{mark:8} answers: {mib:.0f} MiB")


class MarkedStore(AnswerStore):
    """A store that notes the process's memory at some counts."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.count = 0
        self.marks: list[float] = []

    def add(self, answer: Answer) -> bool:
        """Keep it and count it."""
        is_new = super().add(answer)
        self.count += 1
        if self.count in MARKS:
            self.marks.append(resident_mib())
        return is_new


def collect_loop(vlm: Vlm, requests: Sequence[Request], folder: Path) -> None:
    """The loop of the stage, with its store."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh, AnswerStore(Path(fresh) / "answers.sqlite") as store:
        plan = Plan(vlm=vlm, requests=requests, max_errors=0, spent_usd=0.0)
        (outcome,) = ask_all([plan], store=store, budget_usd=None)
    assert not outcome.errors and outcome.given_up is None, outcome


async def bare_loop(vlm: Vlm, requests: Sequence[Request]) -> None:
    """The client alone: the same requests, as many at once, nothing kept."""
    assert vlm.endpoint is not None
    queue = iter(requests)

    async def work(client: openai.AsyncOpenAI) -> None:
        for request in queue:
            reply = await client.chat.completions.create(**message_body(vlm, request))
            assert reply.choices[0].message.content

    async with openai.AsyncOpenAI(base_url=vlm.endpoint.base_url, api_key="none", max_retries=0) as client:
        await asyncio.gather(*(work(client) for _ in range(vlm.endpoint.concurrency)))


def timed_vlm(base_url: str, concurrency: int) -> Vlm:
    """A VLM behind the waiting server."""
    endpoint = Endpoint(name="timed", base_url=base_url, model="timed", concurrency=concurrency, retries=0)
    return Vlm(
        name="timed", display_name="Timed", provider="Nobody", pool="base", usd_per_mtok_in=0.1, endpoint=endpoint
    )


def made_up_requests(vlm: Vlm, pictures: Sequence[Path], count: int) -> list[Request]:
    """As many different questions, over the pictures in turn."""
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures}
    requests = []
    for number in range(count):
        path = pictures[number % len(pictures)]
        picture = picture_as_sent(path, sha256=hashes[path], max_side=1024, max_pixels=10**7)
        prompt = f"Question {number}: how many of the balls are larger than the red one?\nA. 1\nB. 2\nC. 3\nD. 4"
        requests.append(make_request(vlm, query_id=str(number), prompt=prompt, picture=picture))
    return requests


def made_up_pictures(folder: Path) -> list[Path]:
    """Drawings on white, 448 x 336 px, as WEBP files."""
    draw = np.random.default_rng(0)
    paths = []
    for number in range(NUM_PICTURES):
        picture = Image.new("RGB", (448, 336), "white")
        pen = ImageDraw.Draw(picture)
        for left, top, width in draw.integers(10, 250, (12, 3)):
            pen.ellipse((left, top, left + width, top + width // 2), fill=tuple(map(int, draw.integers(0, 255, 3))))
        paths.append(folder / f"{number}.webp")
        picture.save(paths[-1])
    return paths


def resident_mib() -> float:
    """This process's resident memory, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
