"""What Prefect's server must know before a run can start: pools, the GPU queue's limit, the automation for dead runs.

    python -m flows.pools --gpu-slots 1

`make up` does it; doing it again is harmless. PREFECT_API_URL names the server.
"""

import argparse
import json
import sys
from datetime import timedelta

from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists

from flows.servers import CPU_POOL, GPU_POOL
from flows.trees import CHECKOUT

_TEMPLATE = CHECKOUT / "infra/pools/process.json"  # has runs report every 30 s, whoever started their worker
_SILENCE = timedelta(seconds=90)  # three such heartbeats
_LATEST = timedelta(seconds=300)  # a run's own process begins within seconds, on a busy machine within a minute
_ENDS = {"Completed", "Failed", "Cancelled", "Crashed"}
_ALIVE = {
    "Running", "heartbeat", "Scheduled", "AwaitingConcurrencySlot", "Late", "Cancelling", "Paused", "Suspended",
    "InfrastructurePending",  # a pod may wait long for its node and image; its pool has a time-out of its own
}  # fmt: skip


def prepare(*, num_gpu_slots: int) -> None:
    """Make what is missing.

    Args:
        num_gpu_slots: how many runs of GPU stages may be under way at once; 0 as 1, so that one waits for a worker.
    """
    with get_client(sync_client=True) as client:
        for pool in (CPU_POOL, GPU_POOL):
            _make_pool(client, pool)
        queue = client.read_work_queue_by_name("default", work_pool_name=GPU_POOL)
        client.update_work_queue(queue.id, concurrency_limit=max(1, num_gpu_slots))
        known = {automation.name for automation in client.read_automations()}
    for automation in (_silent_runs(), _runs_that_never_begin()):
        if automation.name not in known:
            automation.create()


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    template = json.loads(_TEMPLATE.read_text(encoding="utf-8"))
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    except ObjectAlreadyExists:
        return


def _silent_runs() -> Automation:
    """A worker that is killed with all its children reports nothing, and its run would keep the pool's slot."""
    return _crash("crash zombie runs", after={"heartbeat"}, expect={"heartbeat"}, within=_SILENCE, said="no heartbeat")


def _runs_that_never_begin() -> Automation:
    """A worker that is killed while it starts a run: no heartbeat ever came, so none is missed."""
    return _crash("crash runs that never begin", after={"Pending"}, expect=_ALIVE, within=_LATEST, said="not begun")


def _crash(name: str, *, after: set[str], expect: set[str], within: timedelta, said: str) -> Automation:
    """An automation that ends a run in state Crashed.

    Args:
        name: its name.
        after: the events of the run that start its clock.
        expect: those that stop it, besides the run's end.
        within: how long it waits.
        said: why the run was ended.
    """
    trigger = EventTrigger(
        after={f"prefect.flow-run.{event}" for event in after},
        expect={f"prefect.flow-run.{event}" for event in expect | _ENDS},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=within,
    )
    message = f"{said} for {within.total_seconds():.0f} s"
    crash = ChangeFlowRunState(state=StateType.CRASHED, name=None, message=message, force=False)
    return Automation(name=name, trigger=trigger, actions=[crash])


def main() -> int:
    """Prepare the server that PREFECT_API_URL names; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.pools", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu-slots", type=int, required=True)
    prepare(num_gpu_slots=parser.parse_args().gpu_slots)
    return 0


if __name__ == "__main__":
    sys.exit(main())
