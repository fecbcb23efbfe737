"""Runs whose process is gone: where nobody watches them, nobody else would ever say that they ended.

Each run carries a tag that names its process. Prefect's server watches runs by their heartbeats (flows/pools.py), which
takes a while, and only where a server was running. So the next run without a server looks, and so does `make up`
(flows/under_way.py). Nor would anybody end the temporary server that Prefect started for a run without one: it, too, is
found by the process's name.
"""

import contextlib

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run
from prefect.states import Crashed

from flows import processes

VARIABLE = "ARMS_RUN_PROCESS"  # in the environment of whatever a run without a worker starts
_OPEN = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def note_process() -> None:
    """Have the run under way say which process it is."""
    tag = processes.process_tag()
    if tag in flow_run.tags:  # it was started with it
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted([*flow_run.tags, tag]))


def crash_dead_runs() -> list[str]:
    """End the runs of this machine that are said to be running and whose process is gone.

    Returns:
        Their names.
    """
    is_open = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_OPEN)))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=is_open)
        dead = [run for run in found if any(map(processes.is_tag_of_the_dead, run.tags))]
        for run in dead:
            client.set_flow_run_state(run.id, Crashed(message="its process is gone"), force=True)
    return [run.name for run in dead]


def end_leftovers() -> int:
    """End what a run without a worker left behind when it was killed; gives how many processes there were."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # another user's, or gone
            if processes.is_tag_of_the_dead(process.environ().get(VARIABLE, "")):
                left.append(process)
    processes.end(left, rest=lambda: left, patience_s=10.0)
    return len(left)
