"""Runs without a worker whose process is gone: nobody else would ever say that they ended.

Nor would anybody end the temporary server that Prefect started for such a run: it, too, is found by the process's name.

A run that a worker started is watched by Prefect's server (heartbeats, see flows/pools.py). One that a person started
with `python -m flows.train_arms` is not, where no server was running: it carries a tag that names its process, and the
next such run looks.
"""

import contextlib
import socket

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from flows import processes
from flows.command import is_alive

VARIABLE = "ARMS_RUN_PROCESS"  # in the environment of whatever such a run starts
_PREFIX = "process"
_OPEN = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def process_tag() -> str:
    """Names this process on this machine; its start is part of it, because the system gives numbers again."""
    process = psutil.Process()
    return ":".join([_PREFIX, socket.gethostname(), str(process.pid), str(int(process.create_time()))])


def crash_dead_runs() -> list[str]:
    """End the runs of this machine that are said to be running and whose process is gone.

    Returns:
        Their names.
    """
    is_open = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_OPEN)))
    with get_client(sync_client=True) as client:
        dead = [run for run in client.read_flow_runs(flow_run_filter=is_open) if any(map(_is_gone, run.tags))]
        for run in dead:
            client.set_flow_run_state(run.id, Crashed(message="its process is gone"), force=True)
    return [run.name for run in dead]


def end_leftovers() -> int:
    """End what a run without a worker left behind when it was killed; gives how many processes there were."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # another user's, or gone
            if _is_gone(process.environ().get(VARIABLE, "")):
                left.append(process)
    processes.end(left, rest=lambda: left, patience_s=10.0)
    return len(left)


def _is_gone(tag: str) -> bool:
    prefix, *words = tag.split(":")
    if prefix != _PREFIX or len(words) != 3 or words[0] != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(words[1]))
        return abs(process.create_time() - int(words[2])) > processes.CLOCK_S or not is_alive(process)
    except psutil.NoSuchProcess:
        return True
