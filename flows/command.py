"""One command of ours or DVC's: each line it prints goes on at once, and it never outlives who started it.

It gets a session of its own, so that Ctrl-C reaches it through us only: DVC ignores SIGINT while a stage runs, and a
stage that gets SIGTERM removes what is half-written and keeps what was paid for. On Linux the system ends it when this
process is gone, even by kill -9.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_PR_SET_PDEATHSIG = 1
_STOP_S = 60.0  # a stage that is stopped finishes the answers under way


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A command that ended.

    Attributes:
        code: its exit code.
        lines: what it printed, standard output and standard error together, unless they were kept apart.
    """

    code: int
    lines: list[str]

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self.lines)


class CommandTimeoutError(Exception):
    """A command did not end in time and was stopped."""


def environment() -> dict[str, str]:
    """What commands run in: this Python first, nothing sent home, no place of Prefect's own that a stage could see."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "SHELL": "/bin/sh",  # DVC runs a stage through $SHELL; this one becomes the stage instead of standing above it
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def run(
    command: Sequence[str],
    *,
    folder: Path,
    each_line: Callable[[str], None] = lambda line: None,
    timeout_s: float | None = None,
    stderr: int = subprocess.STDOUT,
    variables: Mapping[str, str] | None = None,
) -> Finished:
    """Run a command to its end.

    Args:
        command: words; `python` and `dvc` are those of this environment.
        folder: where.
        each_line: called with each line as it comes.
        timeout_s: after so many seconds it is stopped, s.
        stderr: as for `subprocess.Popen`.
        variables: added to the environment.

    Raises:
        CommandTimeoutError: it was stopped after `timeout_s`.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment() | dict(variables or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    has_timed_out = threading.Event()

    def on_timeout() -> None:
        has_timed_out.set()
        stop(process)

    timer = threading.Timer(timeout_s, on_timeout) if timeout_s is not None else None
    lines = []
    try:
        if timer is not None:
            timer.daemon = True
            timer.start()
        assert process.stdout is not None  # noqa: S101 - asked for above
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            each_line(lines[-1])
        code = process.wait()
    finally:
        if timer is not None:
            timer.cancel()
            if timer.is_alive():  # it may be stopping: its pipe is closed a little before a process has ended
                timer.join()
        stop(process)
        if process.stdout is not None:
            process.stdout.close()
    if has_timed_out.is_set():
        raise CommandTimeoutError(f"{' '.join(command)}: stopped after {timeout_s:.0f} s")
    return Finished(code=code, lines=lines)


class CommandError(Exception):
    """A command of ours ended badly; the text is its own.

    Attributes:
        code: its exit code; None where it ended well and printed no JSON.
    """

    def __init__(self, text: str, *, code: int | None = None) -> None:
        """Say what it said, and how it ended."""
        super().__init__(text)
        self.code = code


def run_json(
    command: Sequence[str], *, folder: Path, log: logging.Logger | logging.LoggerAdapter[logging.Logger]
) -> Any:
    """Run a command that prints one JSON document; what it says beside goes to `log`.

    Raises:
        CommandError: it ended badly, or printed something else.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as beside:
        found = run(command, folder=folder, stderr=beside.fileno())
        beside.seek(0)
        said = beside.read().splitlines()
    if found.code != 0:
        raise CommandError(f"`{' '.join(command)}` ended with {found.code}: {' '.join(said[-12:])}", code=found.code)
    for line in said:
        log.info("%s", line)
    try:
        return json.loads(found.text)
    except json.JSONDecodeError:
        raise CommandError(f"`{' '.join(command)}` printed no JSON: {found.text[:300]!r}") from None


def stop(process: "subprocess.Popen[str]") -> None:
    """End a command and all that it started: SIGTERM to each, and what is left after a minute is killed."""
    try:
        own = psutil.Process(process.pid)
        family = [own, *own.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    if any(map(is_alive, family)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + _STOP_S
        while any(map(is_alive, family)) and time.monotonic() < until:
            time.sleep(0.05)
        for left in filter(is_alive, family):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_alive(process: psutil.Process) -> bool:
    """Whether it still does something: one that ended and that nobody has asked for does not."""
    try:
        return bool(process.is_running() and process.status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})
    except psutil.NoSuchProcess:
        return False


def _die_with_parent() -> None:
    """In the child: SIGTERM when the thread that started it is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
