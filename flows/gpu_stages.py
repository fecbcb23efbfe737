"""GPU stages on the pool for GPUs: the flow that a worker there runs, and how a run on another pool asks for it.

Stages that follow each other are sent as one list, because each start of a flow run costs seconds. Where the worker's
folder is another one than the asking run's, on another machine, data goes through the DVC remote: the asking run's
`dvc.lock` says exactly which, so nothing but the asked stages can run there.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from dvc.exceptions import DvcException
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Failed

from flows import processes, sharing
from flows.dead_runs import note_process
from flows.results import FAILED_GATE, show_gate_page
from flows.servers import GPU_POOL
from flows.stage_runs import LockBusyError, Logger, StageRun, graph_of
from flows.stage_tasks import GATE_FAILED, run_stage_task
from flows.trees import CHECKOUT, TreeIdentity, UserError, alone_in, bring_up_to_date, folder_of, identity, place

DEPLOYMENT = "gpu-stages/run"
_OUTCOMES = "gpu-stages"
_POLL_S = 2.0
_SAY_S = 300.0
_WORKER_SOON_S = 20.0  # for that long a worker may be looking elsewhere
_SILENT_S = 45.0  # a worker says every 30 s that it is there; Prefect calls it online for 90 s after the last time


@flow(name="gpu-stages")
def gpu_stages(
    stages: list[str],
    asked_by: dict[str, str],
    preset: str | None = None,
    force: list[str] | None = None,
    lock: str | None = None,
    asking_run: str | None = None,
) -> State[Any]:
    """Run stages here, on a machine with a GPU.

    Args:
        stages: names, in order.
        asked_by: identity of the tree that the asking run works in (`flows.trees.TreeIdentity`).
        preset: as for `train_arms`.
        force: stages that run though nothing changed.
        lock: the asking run's `dvc.lock`, if it shares through the DVC remote.
        asking_run: id of the run that asks; where it has ended, nothing more is run for it.
    """
    log = get_run_logger()
    note_process()
    try:
        folder = folder_of(preset, checkout=CHECKOUT)
        is_elsewhere = not folder.exists() or place(folder) != asked_by["place"]
        with contextlib.ExitStack() as held:
            if is_elsewhere:  # in its own folder the asking run holds it, and has brought it up to date
                # not waited for: a run of this folder's own may be waiting for the place that we have on the pool
                held.enter_context(alone_in(folder, log=log, is_waiting=False))
                bring_up_to_date(preset, checkout=CHECKOUT, log=log)
                take_over(stages, folder, asked_by=TreeIdentity(**asked_by), lock=lock, log=log)
            state, runs = _run_all(stages, folder, force=force or [], is_elsewhere=is_elsewhere, asking_run=asking_run)
            if is_elsewhere and runs:  # also where a later one failed: what is done is not done again
                sharing.push(folder, log=log)
    except (UserError, LockBusyError, sharing.RemoteError, DvcException) as error:
        return Failed(message=str(error))
    create_table_artifact(key=_OUTCOMES, table=[asdict(run) for run in runs], description="What each stage did")
    return state


def _run_all(
    stages: Sequence[str], folder: Path, *, force: Sequence[str], is_elsewhere: bool, asking_run: str | None
) -> tuple[State[Any], list[StageRun]]:
    """Run stages until one fails; how it ended, and what those did that ended well."""
    graph = graph_of(folder, log=get_run_logger())
    runs: list[StageRun] = []
    for name in stages:
        if asking_run is not None and _has_ended(UUID(asking_run)):
            return Failed(message=f"the run that asked for stage {name} has ended; it was not begun"), runs
        one = run_stage_task(graph.stages[name], folder, force=name in force, pull=is_elsewhere)
        if not isinstance(one, StageRun):
            return one, runs
        runs.append(one)
    return Completed(message=", ".join(f"{run.stage} {run.outcome}" for run in runs)), runs


def _has_ended(run_id: UUID) -> bool:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run_id).state
        except ObjectNotFound:  # it was deleted
            return True
    return state is not None and state.is_final()


def take_over(stages: Sequence[str], folder: Path, *, asked_by: TreeIdentity, lock: str | None, log: Logger) -> None:
    """Bring this tree to where the asking run's stands.

    Args:
        stages: what is to run here.
        folder: this tree.
        asked_by: what the asking run's tree is.
        lock: the asking run's `dvc.lock`; None where it shares nothing.
        log: takes what is said meanwhile.

    Raises:
        UserError: code, params or stages are others here, or the asking run shares nothing.
        flows.sharing.RemoteError: the remote does not have what the stages read.
    """
    here = identity(folder)
    differs = [
        name
        for name, mine, theirs in (
            ("the code", here.code, asked_by.code),
            ("params.yaml", here.params, asked_by.params),
            ("dvc.yaml", here.stages, asked_by.stages),
        )
        if mine != theirs
    ]
    if differs:
        raise UserError(
            f"{' and '.join(differs)} of this GPU worker's folder {folder} are not those of the run that asks. Commit "
            "and push there, `git pull` here, and start the run again."
        )
    if lock is None:
        raise UserError(
            f"this GPU worker works in another folder ({folder}) than the run that asks, and the run shares nothing. "
            "Start it with sync: true and a DVC remote, start a GPU worker in its folder, or use pools: single."
        )
    sharing.refuse_without_remote(folder)
    processes.write_whole(folder / "dvc.lock", lock)
    graph = graph_of(folder, log=log)
    before = sorted(graph.upstream(stages) - set(stages))
    sharing.pull(before, folder, log=log)
    if stale := [name for name in before if name in graph_of(folder, log=log).changes]:
        raise UserError(
            f"stages {', '.join(stale)} are stale here though dvc.lock is the asking run's; see dvc status."
        )


def send(
    stages: Sequence[str],
    *,
    folder: Path,
    preset: str | None,
    force: Sequence[str],
    is_shared: bool,
    asking_run: UUID,
    log: Logger,
) -> list[StageRun] | State[Any]:
    """Have `stages` run on the pool for GPUs, and wait.

    Args:
        stages: names, in order.
        folder: the tree of the asking run.
        preset: as for `train_arms`.
        force: of those, which run though nothing changed.
        is_shared: whether the asking run has pushed to the DVC remote.
        asking_run: its id.
        log: of the asking run.

    Returns:
        What each stage did, or the state that the run on the other pool ended in.

    Raises:
        UserError: there is no such deployment.
    """
    parameters = {
        "stages": list(stages),
        "asked_by": asdict(identity(folder)),
        "preset": preset,
        "force": [name for name in force if name in stages],
        "lock": (folder / "dvc.lock").read_text(encoding="utf-8") if is_shared else None,
        "asking_run": str(asking_run),
    }
    try:
        sent = run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, flow_run_name=", ".join(stages))
    except ObjectNotFound:
        raise UserError(
            f"Prefect knows no deployment {DEPLOYMENT}: `make up` registers it. Without a pool for GPUs: pools: single."
        ) from None
    assert isinstance(sent, FlowRun)  # noqa: S101 - a coroutine only where called from one
    log.info("sent %s to pool %s as run '%s'", ", ".join(stages), GPU_POOL, sent.name)
    with get_client(sync_client=True) as client, _cancelled_with_us(client, sent.id):
        done = _wait(client, sent.id, log=log)
        if done.state is None or not done.state.is_completed():
            return _failed(client, done)
        return [StageRun(**row) for row in json.loads(_artifact(client, sent.id, _OUTCOMES) or "[]")]


def _failed(client: SyncPrefectClient, run: FlowRun) -> State[Any]:
    """A state of our own: Prefect would say of another run's state that 1 of 1 states failed."""
    end = run.state
    if end is not None and end.name == GATE_FAILED:
        show_gate_page(_artifact(client, run.id, FAILED_GATE) or str(end.message))
        return Failed(name=GATE_FAILED, message=end.message)
    return Failed(message=f"run '{run.name}' on pool {GPU_POOL} ended as {end.name}: {end.message}" if end else None)


def _wait(client: SyncPrefectClient, run_id: UUID, *, log: Logger) -> FlowRun:
    """Wait for the run's end; a server that is restarted meanwhile is waited for."""
    asked_at, said_at, said = time.monotonic(), float("-inf"), ""
    while True:
        try:
            found = client.read_flow_run(run_id)
            if found.state is not None and found.state.is_final():
                return found
            is_waiting = found.state is None or found.state.is_scheduled() or found.state.is_pending()
            news = _why_waiting(client, waited_s=time.monotonic() - asked_at) if is_waiting else ""
            if news and (news != said or time.monotonic() - said_at >= _SAY_S):
                said_at, said = time.monotonic(), news
                log.warning(news)
        except httpx.TransportError as error:
            log.warning("Prefect's server is away (%s); waiting until it is back", type(error).__name__)
        time.sleep(_POLL_S)


_NO_WORKER = (
    f"no worker of pool {GPU_POOL} is online; the run waits until one is. Start one on the machine with the GPU, in "
    f'its checkout: `ARMS_ROOT="$PWD" PYTHONPATH="$PWD" prefect worker start --pool {GPU_POOL} --type process --limit '
    "1` (`make up` starts one), or start the run again with pools: single, which runs every stage on one pool."
)


def _why_waiting(client: SyncPrefectClient, *, waited_s: float) -> str:
    """What a run that waits on the pool for GPUs waits for; nothing where it may begin any moment."""
    if not _has_worker(client):
        return _NO_WORKER
    return f"waiting for a free place on pool {GPU_POOL}" if waited_s >= _WORKER_SOON_S else ""


def _has_worker(client: SyncPrefectClient) -> bool:
    since = datetime.now(UTC) - timedelta(seconds=_SILENT_S)
    return any(
        worker.status == WorkerStatus.ONLINE and worker.last_heartbeat_time and worker.last_heartbeat_time > since
        for worker in client.read_workers_for_work_pool(GPU_POOL)
    )


@contextlib.contextmanager
def _cancelled_with_us(client: SyncPrefectClient, run_id: UUID) -> Iterator[None]:
    """Cancel the run on the other pool where this one is stopped."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            client.set_flow_run_state(run_id, Cancelling(message="the run that asked for it was stopped"))
        raise


def _artifact(client: SyncPrefectClient, run_id: UUID, key: str) -> str | None:
    """What a run left under that key; None where it left nothing."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]), key=ArtifactFilterKey(any_=[key])
        )
    )
    return str(found[0].data) if found else None
