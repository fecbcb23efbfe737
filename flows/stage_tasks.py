"""One Prefect task for one stage of DVC's graph.

A stage with nothing to do ends in a state called Cached, one that failed in Failed with the stage's own words and no
traceback: what went wrong is said there.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.command import CommandTimeoutError
from flows.graph import Stage
from flows.results import show_failed_gate
from flows.stage_runs import LockBusyError, StageError, StageRun, repro

GATE_FAILED = "GateFailed"  # name of the state
_JITTER = 0.5


def run_stage_task(stage: Stage, folder: Path, *, force: bool = False, pull: bool = False) -> StageRun | State[Any]:
    """Bring one stage up to date, as a task of the running flow.

    Args:
        stage: of DVC's graph.
        folder: the tree.
        force: run it though nothing changed.
        pull: take what is missing from the DVC remote and its run cache.

    Returns:
        What it did, or the state in which it failed.
    """
    one = _stage.with_options(
        name=stage.name,
        task_run_name=stage.name,
        tags={"gpu" if stage.is_gpu else "cpu"},
        retries=stage.retries,
        retry_delay_seconds=[10.0 * 5**number for number in range(stage.retries)],
        retry_jitter_factor=_JITTER,
        retry_condition_fn=_can_be_tried_again,
    )
    state = one(stage, folder=folder, force=force, pull=pull, return_state=True)
    return failed(state) or state.result()


def failed(state: State[Any]) -> State[Any] | None:
    """A state of the flow's own where a task's is bad: Prefect would say of the task's that 1 of 1 states failed."""
    return None if state.is_completed() else Failed(name=state.name, message=state.message)


def show_cached(stage: Stage) -> StageRun:
    """A task for a stage that has nothing to do: DVC was asked before."""
    one = _cached.with_options(name=stage.name, task_run_name=stage.name, tags={"gpu" if stage.is_gpu else "cpu"})
    one(return_state=True)
    return StageRun(stage=stage.name, outcome="unchanged", seconds=0.0)


@task(cache_policy=NO_CACHE)
def _cached() -> State[Any]:
    return Completed(name="Cached", message="nothing it depends on has changed")


@task(cache_policy=NO_CACHE)
def _stage(stage: Stage, *, folder: Path, force: bool, pull: bool) -> State[Any]:
    log = get_run_logger()
    try:
        done = repro(
            stage.name,
            folder=folder,
            log=log,
            force=force,
            pull=pull,
            timeout_s=stage.timeout_h * 3600,
            variables={"ARMS_RUN": str(flow_run.id), "ARMS_LOG_FILE": str(folder / f".arms/logs/{flow_run.id}.jsonl")},
        )
    except StageError as failure:
        if failure.is_gate:
            show_failed_gate(stage.name, str(failure), folder)
        name = GATE_FAILED if failure.is_gate else "Failed"
        return Failed(name=name, message=f"stage {stage.name}: {failure}", data=failure.can_be_tried_again)
    except CommandTimeoutError as error:
        return Failed(name="TimedOut", message=f"{error} (`meta: timeout_h` of the stage in dvc.yaml)", data=False)
    except LockBusyError as error:
        return Failed(message=str(error), data=False)
    if done.outcome == "ran":
        took = timedelta(seconds=round(done.seconds))
        return Completed(message=f"ran, {took}", data=done)
    what = "taken from the run cache" if done.outcome == "restored" else "nothing it depends on has changed"
    return Completed(name="Cached", message=what, data=done)


def _can_be_tried_again(task: Any, task_run: Any, state: State[Any]) -> bool:
    return state.data is True
