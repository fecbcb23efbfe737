"""Long-lived processes of one checkout: started so that they outlive the shell, found again, ended with all they began.

Each is written down in `.arms/services/<name>.json`, and each carries a mark in its environment which whatever it
starts inherits. So nothing is lost when a record is: the mark finds every process of this checkout. A process number
that the system has given to a stranger is told by its start time and the missing mark.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from flows.command import is_alive

FOLDER = Path(".arms/services")
_PREFIX = "process"
MARK, NAME = "ARMS_SERVICES", "ARMS_SERVICE"  # in the environment: whose checkout, which service
_CLOCK_S = 60.0  # how far two readings of a start time may differ after the clock was set


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process as it was started.

    Attributes:
        name: what its files are called.
        pid: its process number, and that of its process group.
        started_at: in seconds since 1970.
        command: its words.
        port: where it listens; None for a worker.
    """

    name: str
    pid: int
    started_at: float
    command: list[str]
    port: int | None = None


def start(
    name: str, command: Sequence[str], *, root: Path, environment: Mapping[str, str], port: int | None = None
) -> tuple[Service, "subprocess.Popen[bytes]"]:
    """Start a process that does not end with the shell, and write it down.

    Args:
        name: of the service.
        command: words.
        root: the checkout, where it runs.
        environment: all of it but the mark.
        port: where it will listen.

    Returns:
        What was written down, and the process, so that its end can be seen.
    """
    log = log_path(root, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.old"))
    with log.open("wb") as handle:
        process = subprocess.Popen(
            command,
            cwd=root,
            env={**environment, MARK: str(root), NAME: name},
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = psutil.Process(process.pid).create_time()
    service = Service(name=name, pid=process.pid, started_at=started, command=list(command), port=port)
    write_whole(root / FOLDER / f"{name}.json", json.dumps(asdict(service), indent=1) + "\n")
    return service, process


def recorded(root: Path) -> dict[str, Service]:
    """What was started in this checkout and not ended by `end`, whether it still runs or not."""
    found = {}
    for path in sorted((root / FOLDER).glob("*.json")):
        with contextlib.suppress(ValueError, TypeError, OSError):  # no record of a process
            service = Service(**json.loads(path.read_text(encoding="utf-8")))
            found[service.name] = service
    return found


def is_running(service: Service, *, root: Path) -> bool:
    """Whether that very process is alive."""
    try:
        process = psutil.Process(service.pid)
        is_it = abs(process.create_time() - service.started_at) < _CLOCK_S and is_alive(process)
        return is_it and bool(process.environ().get(MARK) == str(root))
    except psutil.Error:
        return False


def marked(root: Path, *, names: Collection[str] | None = None) -> list[psutil.Process]:
    """All living processes that this checkout's services are or began, but for this one and those above it.

    Args:
        root: the checkout.
        names: of the services; None for all.
    """
    found = []
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # another user's, or gone
            environment = process.environ()
            if environment.get(MARK) != str(root) or process.pid in mine or not is_alive(process):
                continue
            if names is None or environment.get(NAME) in names:
                found.append(process)
    return found


def family(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The processes and all below them, each once."""
    found: dict[int, psutil.Process] = {}
    for process in processes:
        found[process.pid] = process
        with contextlib.suppress(psutil.Error):
            found.update((child.pid, child) for child in process.children(recursive=True))
    return list(found.values())


def end(
    first: Iterable[psutil.Process],
    *,
    rest: Callable[[], Iterable[psutil.Process]],
    patience_s: float,
    each_wait: Callable[[float, int], None] = lambda waited_s, num_left: None,
) -> int:
    """End processes: SIGTERM to the first ones, who end their own; what is left of all is then ended by force.

    Args:
        first: who is asked.
        rest: gives those that must be gone at the end, first ones or not; called again while waiting.
        patience_s: how long to wait before SIGKILL, s.
        each_wait: called every second with how long it was waited and how many are left.

    Returns:
        How many had to be killed.
    """
    _send(first, "terminate")
    began = time.monotonic()
    while left := [process for process in rest() if is_alive(process)]:
        waited = time.monotonic() - began
        if waited > patience_s:
            break
        each_wait(waited, len(left))
        psutil.wait_procs(left, timeout=1.0)
    num_killed = len(left)
    while left:
        _send(left, "kill")
        psutil.wait_procs(left, timeout=5.0)
        left = [process for process in rest() if is_alive(process)]
    return num_killed


def _send(processes: Iterable[psutil.Process], what: str) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(process, what)()
            process.resume()  # one that was halted takes the signal only then


def process_tag() -> str:
    """Names this process on this machine; its start is part of it, because the system gives numbers again."""
    process = psutil.Process()
    return ":".join([_PREFIX, _machine(), str(process.pid), str(int(process.create_time()))])


def _machine() -> str:
    """This machine, or this container: one may have the machine's name, but numbers its processes anew."""
    namespace = Path("/proc/self/ns/pid")
    number = f"-{namespace.stat().st_ino}" if namespace.exists() else ""
    return f"{socket.gethostname()}{number}"


def is_tag_of_the_dead(tag: str) -> bool:
    """Whether it is `process_tag` of a process of this machine that is gone."""
    prefix, *words = tag.split(":")
    if prefix != _PREFIX or len(words) != 3 or words[0] != _machine():
        return False
    try:
        process = psutil.Process(int(words[1]))
        return abs(process.create_time() - int(words[2])) > _CLOCK_S or not is_alive(process)
    except psutil.NoSuchProcess:
        return True


def log_path(root: Path, name: str) -> Path:
    """Where a service's own words stand."""
    return root / FOLDER / "logs" / f"{name}.log"


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
