"""What Prefect's server must know before a run can start: pools, the GPU queue's limit, the automation for dead runs.

    python -m flows.pools --gpu-slots 1

`make up` does it; doing it again is harmless. PREFECT_API_URL names the server.
"""

import argparse
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
from prefect.workers.process import ProcessWorker

from flows.servers import CPU_POOL, GPU_POOL

_ZOMBIES = "crash zombie runs"
_SILENCE = timedelta(seconds=90)  # three heartbeats of a worker that `make up` started


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
        has_automation = bool(client.read_automations_by_name(_ZOMBIES))
    if not has_automation:
        _automation().create()


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
    except ObjectAlreadyExists:
        return


def _automation() -> Automation:
    """A worker that is killed with all its children reports nothing, and its run would keep the pool's slot."""
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *ends},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=_SILENCE,
    )
    said = f"no heartbeat for {_SILENCE.total_seconds():.0f} s"
    crash = ChangeFlowRunState(state=StateType.CRASHED, name=None, message=said, force=False)
    return Automation(name=_ZOMBIES, trigger=trigger, actions=[crash])


def main() -> int:
    """Prepare the server that PREFECT_API_URL names; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.pools", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu-slots", type=int, required=True)
    prepare(num_gpu_slots=parser.parse_args().gpu_slots)
    return 0


if __name__ == "__main__":
    sys.exit(main())
