"""Servers that a stage starts because nothing listens where a block says, and stops when it is done.

The embedded sandbox is one; a command such as `vllm serve ...` is another. A server that runs already is used as it is
and left alone.
"""

import contextlib
import ctypes
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from arms_model.errors import ConfigError, EndpointError
from tasks.common.endpoint.answers import serving_alone
from tasks.common.vlms import Endpoint

log = logging.getLogger(__name__)
LOGS = Path(".arms/servers")
_START_S = 900.0  # a large model takes minutes to load
_STOP_S = 10.0
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def running(commands: Mapping[str, str], endpoints: Sequence[Endpoint], *, store: Path) -> Iterator[None]:
    """Have a server for each endpoint that `commands` names, while the block runs.

    Args:
        commands: endpoint name -> the command that starts its server; what it prints goes to `.arms/servers/`.
        endpoints: those that will be asked.
        store: the answer store; two collections on it do not stop each other's servers.

    Raises:
        ConfigError: a command that cannot be started.
        EndpointError: a server that ended or did not answer in time.
    """
    with contextlib.ExitStack() as stack:
        for name, command in sorted(commands.items()):
            urls = sorted({endpoint.base_url for endpoint in endpoints if endpoint.name == name})
            if urls:
                stack.enter_context(serving_alone(store, name))
                if any(_listens(url) for url in urls):
                    log.info("using the server of %s that runs at %s", name, urls[0])
                else:
                    stack.enter_context(_server(name, command, url=urls[0]))
        yield


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), timeout=2).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _server(name: str, command: str, *, url: str) -> Iterator[None]:
    LOGS.mkdir(parents=True, exist_ok=True)
    output = LOGS / f"{name}.log"
    with output.open("wb") as handle:
        try:
            words = shlex.split(command)
            if words[0] == "python":  # the one that runs this stage, whatever the path says
                words[0] = sys.executable
            process = subprocess.Popen(  # noqa: S603 - the user's own command
                words, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"collect.servers.{name}: cannot start {command!r} ({error}); correct the command."
            ) from None
    try:
        _wait_until_it_answers(process, name, url=url, output=output)
        log.info("started the server of %s at %s", name, url)
        yield
    finally:
        _stop(process)


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", name: str, *, url: str, output: Path) -> None:
    started = last_line = time.monotonic()
    with httpx2.Client(timeout=5) as client:
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                if client.get(f"{url.rstrip('/')}/models").status_code < 500:
                    return
            if process.poll() is not None:
                raise EndpointError(
                    f"the server of {name} ended with {process.returncode} before it answered at {url}; its last "
                    f"words: {_last_words(output)}. Correct collect.servers.{name}, or start it yourself."
                )
            now = time.monotonic()
            if now - started > _START_S:
                raise EndpointError(
                    f"the server of {name} did not answer at {url} in {_START_S:.0f} s; its last words: "
                    f"{_last_words(output)}. Correct collect.servers.{name} or the block's base_url."
                )
            if now - last_line > 5:
                last_line = now
                log.info(
                    "waiting for the server of %s to answer at %s: %.0f s; it says (%s): %s",
                    name, url, now - started, output, _last_words(output),
                )  # fmt: skip
            time.sleep(0.2)


def _last_words(output: Path) -> str:
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(lines[-3:]) or "none"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _die_with_parent() -> None:
    """In the child: get SIGTERM when the stage is gone, even by kill -9."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
