"""Flow runs under way in this checkout: found by their processes, ended so that stages unwind and the server is told.

A worker that gets SIGTERM ends its runs so fast that they report nothing, and a run that ended unreported keeps the
slot of its deployment. So the worker is halted, its runs get SIGTERM, and what they could not report is reported here.
"""

import contextlib
import signal
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import httpx
import psutil

from flows import processes, servers

_ID = "PREFECT__FLOW_RUN_ID"  # Prefect puts it into a run's own environment
_UNWIND_S = 75.0  # a stage that is stopped finishes the answers under way
_OPEN = ("PENDING", "RUNNING", "CANCELLING", "PAUSED")


def runs_here(root: Path, *, names: Collection[str] | None = None) -> dict[str, list[psutil.Process]]:
    """The processes of each flow run that a worker of this checkout began, by the run's id.

    Args:
        root: the checkout.
        names: of the workers; None for all.
    """
    found: dict[str, list[psutil.Process]] = defaultdict(list)
    for process in processes.marked(root, names=names):
        with contextlib.suppress(psutil.Error):
            if run_id := process.environ().get(_ID):
                found[run_id].append(process)
    return dict(found)


def end_runs(
    root: Path,
    *,
    names: Collection[str] | None,
    api_url: str | None,
    workers: Sequence[psutil.Process] = (),
    each_wait: Callable[[float, int], None],
) -> int:
    """End flow runs and all that they began; the server hears of each.

    Args:
        root: the checkout.
        names: of the workers that began them; None for all.
        api_url: of Prefect's server; None where it is away, then its automation for silent runs must do.
        workers: processes that are halted, so that none takes the next run; they stay halted.
        each_wait: called every second with the seconds waited and the number of processes left.

    Returns:
        How many runs were ended.
    """
    _signal(workers, signal.SIGSTOP)
    runs = runs_here(root, names=names)
    if not runs:
        return 0
    own = [process for group in runs.values() for process in group]
    everything = processes.family(own)
    _signal(own, signal.SIGTERM)
    processes.end([], rest=lambda: everything, patience_s=_UNWIND_S, each_wait=each_wait)
    if api_url is not None:
        report_ended(runs, api_url=api_url)
    return len(runs)


def report_dead(*, api_url: str) -> int:
    """Say of runs whose process on this machine is gone that they crashed; the server would wait for heartbeats first.

    Args:
        api_url: of Prefect's server; nothing is said where it is away.

    Returns:
        How many there were.
    """
    query = {"flow_runs": {"state": {"type": {"any_": list(_OPEN)}}}}
    with contextlib.suppress(httpx.HTTPError):
        found = servers.ask(api_url, "POST", "flow_runs/filter", query)
        dead = [run["id"] for run in found if any(map(processes.is_tag_of_the_dead, run["tags"]))]
        report_ended(dead, api_url=api_url, why="its process is gone")
        return len(dead)
    return 0


def report_ended(
    runs: Collection[str], *, api_url: str, why: str = "its process was ended by make down or make up"
) -> None:
    """Say of runs whose processes are gone that they crashed, unless the server knows how they ended.

    Args:
        runs: their ids.
        api_url: of Prefect's server; nothing is said where it is away.
        why: the message of their state.
    """
    state = {"type": "CRASHED", "name": "Crashed", "message": why}
    for run_id in runs:
        with contextlib.suppress(httpx.HTTPError):  # also a run that was deleted
            if servers.ask(api_url, "GET", f"flow_runs/{run_id}")["state_type"] in _OPEN:
                servers.ask(api_url, "POST", f"flow_runs/{run_id}/set_state", {"state": state, "force": True})


def _signal(found: Sequence[psutil.Process], number: int) -> None:
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            process.send_signal(number)
