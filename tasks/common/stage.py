"""How the `main` of every stage and command starts and ends: logging, errors without a traceback, exit codes.

Exit codes: 0 done; 1 data or the run failed; 2 a user's mistake; 130 stopped by Ctrl-C (SIGINT) or 143 by SIGTERM.

A stage, moreover, is never at work twice in one tree: DVC, killed by kill -9, leaves its stage running and starts a
second copy beside it the next time. So a stage ends with the `dvc repro` that started it, and holds a lock while it
works, which helps where its end cannot be seen, too.
"""

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from arms_model.errors import ArmsError
from arms_model.locks import locked
from tasks.common.files import full_disk_reason

LOCKS = Path(".arms/locks")
log = logging.getLogger(__name__)


class Terminated(BaseException):
    """SIGTERM arrived: unwinds like Ctrl-C, so that temporary files are removed on the way out."""


def run_stage(name: str, body: Callable[[], None]) -> int:
    """Run a stage of the graph: one copy at a time in this tree, and not longer than the `dvc repro` that started it.

    Args:
        name: the stage's name, for the messages and the lock.
        body: the stage's work; it writes through `tasks.common.files`, so stopping it leaves nothing half-written.

    Returns:
        The exit code.
    """

    def alone() -> None:
        if "DVC_STAGE" in os.environ:  # by hand, a stage may outlive the shell that started it
            _end_with_dvc()
        with locked(LOCKS / name, waits_for=f"stage {name} is at work in this folder already"):
            body()

    return run_command(name, alone)


def run_command(name: str, body: Callable[[], None]) -> int:
    """Run `body` and turn what stops it into an exit code and a message for people.

    Args:
        name: of the stage or the command, for the messages.
        body: the work; see `run_stage`.

    Returns:
        The exit code.
    """
    logging.basicConfig(level=os.environ.get("ARMS_LOG_LEVEL", "INFO"), handlers=list(_handlers(name)), force=True)
    for noisy in ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "transformers", "timm", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        body()
    except ArmsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if (stop := _stop_behind(error)) is not None:
            return _stopped(name, stop)
        reason = full_disk_reason(error)  # of a write outside `tasks.common.files`, e.g. a checkpoint
        if reason is None:
            raise
        print(f"{name}: could not write: {reason}. Free some space and run the same command again.", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Terminated) as stop:
        return _stopped(name, stop)
    return 0


class _KeptLines(logging.FileHandler):
    """A log file that a full disk may leave incomplete: the console has the lines, and no traceback between them."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Say nothing."""


def _handlers(name: str) -> Iterator[logging.Handler]:
    """Lines for people on standard error; one JSON object a line there with ARMS_LOG_FORMAT=json, and in ARMS_LOG_FILE.

    An object has time, level, run (ARMS_RUN: the flow run's id), stage, message, and vlm where a line is about one.
    """
    people = logging.Formatter(f"{name}: %(message)s")
    console, path = logging.StreamHandler(sys.stderr), os.environ.get("ARMS_LOG_FILE")
    console.setFormatter(_json_lines(name) if os.environ.get("ARMS_LOG_FORMAT") == "json" else people)
    yield console
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        kept = _KeptLines(path, encoding="utf-8")
        kept.setFormatter(_json_lines(name))
        yield kept


def _json_lines(name: str) -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        "{asctime}{levelname}{message}",
        style="{",
        rename_fields={"asctime": "time", "levelname": "level"},
        static_fields={"stage": name, "run": os.environ.get("ARMS_RUN")},
    )


def _end_with_dvc() -> None:
    """Get SIGTERM when the `dvc repro` that started this stage is gone, even by kill -9.

    Linux tells when a process ends. Elsewhere that DVC's process id is gone shows it, or a changed parent; a shell that
    stayed between the two hides it where there is no /proc.

    **Decision**: not `prctl(PR_SET_PDEATHSIG)`: it tells of the parent only, which may be that shell, and of the end of
    the thread that started us.

    Raises:
        Terminated: DVC is gone already: it was killed while this stage was loading.
    """
    child, parent = os.getpid(), (nearest := os.getppid())
    while _is_shell_between(parent):
        child, parent = parent, _parent_of(parent)
    pidfd: int | None = None
    try:
        if sys.platform == "linux":
            pidfd = os.pidfd_open(parent)
        if os.getpgid(child) != os.getpgid(parent):  # DVC's children are in its group; who adopts orphans is not
            raise ProcessLookupError
    except ProcessLookupError:
        log.warning("the `dvc repro` that started this stage is gone; not starting")
        raise Terminated from None
    except OSError as error:  # a kernel before 5.3, or a container that forbids it
        log.debug("the end of process %d cannot be waited for (%s)", parent, error)
    threading.Thread(target=_stop_after, args=(parent, pidfd, nearest), daemon=True).start()


def _stop_after(parent: int, pidfd: int | None, nearest: int) -> None:
    if pidfd is not None:
        select.select([pidfd], [], [])
    else:
        while os.getppid() == nearest and _is_there(parent):
            time.sleep(1)
    log.warning("the `dvc repro` that started this stage (process %d) is gone; stopping", parent)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return True


def _is_shell_between(pid: int) -> bool:
    """Whether a process is the shell that DVC runs our command in; bash becomes the command, dash stays."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return False
    return len(words) > 2 and words[-2] == b"-c" and b"python -m tasks." in words[-1]


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _stop_behind(error: BaseException | None) -> KeyboardInterrupt | Terminated | None:
    """The stop that `error` was raised on the way out of: cleaning up that is interrupted can fail by itself."""
    while error is not None and not isinstance(error, KeyboardInterrupt | Terminated):
        error = error.__context__
    return error


def _raise_terminated(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def _stopped(name: str, stop: KeyboardInterrupt | Terminated) -> int:
    how, code = ("SIGTERM", 143) if isinstance(stop, Terminated) else ("Ctrl-C", 130)
    print(
        f"{name}: stopped by {how}. Nothing half-written was left; the same command goes on from here.", file=sys.stderr
    )
    return code
