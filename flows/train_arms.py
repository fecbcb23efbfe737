"""The flow that trains ARMS: DVC's stages as Prefect tasks, then challenger against champion.

    prefect deployment run train-arms/base           data stages and the base router
    prefect deployment run train-arms/incremental    what the newest list of VLMs makes stale; registers, promotes
    prefect deployment run train-arms/full           every stage on params as they stand; registers, promotes
    python -m flows.train_arms incremental           the same without a server, in this process

DVC is asked once what may run; only those stages are started, each by `dvc repro` of its own, in the order of DVC's
graph. Guide: docs/orchestration.md.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, cast
from uuid import UUID

from dvc.exceptions import DvcException
from dvc.lock import LockError
from prefect import flow, get_run_logger, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED, temporary_settings
from prefect.states import Completed, Failed

from flows import results, sharing
from flows.command import CommandError, run, run_json
from flows.dead_runs import VARIABLE, crash_dead_runs, end_leftovers, note_process
from flows.gpu_stages import send
from flows.graph import Graph, Stage
from flows.processes import process_tag
from flows.retrain_plan import forecast, refused_by, to_ask_of
from flows.servers import GPU_POOL, api_answers
from flows.shared_answers import restore_answers
from flows.stage_runs import LockBusyError, Logger, StageRun, graph_of
from flows.stage_tasks import GATE_FAILED, failed, run_stage_task, show_cached
from flows.trees import CHECKOUT, VERDICT, UserError, alone_in, bring_up_to_date, folder_of, identity, read_json

Mode = Literal["base", "incremental", "full"]
MODES: tuple[Mode, ...] = ("base", "incremental", "full")
_COLLECT, _BASE, _REGISTER = "collect", "train_base", "register"
_REFUSED = "Refused"  # name of the state of a run that was a mistake; it began nothing
_REGISTERED = Path("register/registered.json")


@flow(name="train-arms", flow_run_name="{mode}")
def train_arms(
    mode: Mode = "incremental",
    preset: str | None = None,
    force: list[str] | None = None,
    sync: bool = False,
    promote: bool = True,
    pools: Literal["split", "single"] = "split",
    planned_for: str | None = None,
    budget_usd: float | None = None,
) -> State[Any]:
    """Bring the routers up to date with the data and the list of VLMs.

    Args:
        mode: `base`, `incremental` or `full`.
        preset: a params file such as `presets/real.yaml`, run in a workspace of its own; none: the checkout's params.
        force: stages that run though nothing changed, e.g. `collect` to ask again what ended in an error.
        sync: fetch from the DVC remote before and push to it after, the run cache included.
        promote: make the challenger the champion if the comparison allows it; else only compare and say.
        pools: `split` sends GPU stages to pool arms-gpu; `single` runs every stage where the run itself is.
        planned_for: hash of the params.yaml that this was planned for (`flows.retrain`); another one is refused.
        budget_usd: fail before asking if asking should cost more, in dollars.
    """
    log = get_run_logger()
    note_process()
    try:
        folder = folder_of(preset, checkout=CHECKOUT)
        with alone_in(folder, log=log):
            bring_up_to_date(preset, checkout=CHECKOUT, log=log)
            _refuse_other_params(folder, planned_for)
            one = _Run(
                mode=mode, folder=folder, preset=preset, force=force or [], sync=sync, budget_usd=budget_usd, log=log
            )
            return one.work(promote=promote, is_split=pools == "split" and deployment.id is not None)
    except UserError as error:
        return Failed(name=_REFUSED, message=str(error))
    except (CommandError, LockBusyError, DvcException) as error:
        return Failed(message=str(error))


def _refuse_other_params(folder: Path, planned_for: str | None) -> None:
    if planned_for not in (None, identity(folder).params):
        raise UserError(
            f"params.yaml of {folder} is not the one that this run was planned for: it was edited meanwhile, or this "
            "worker's checkout is at another commit. Bring it there (`git pull`), and plan again."
        )


class _Run:
    """One run in one tree."""

    def __init__(
        self,
        *,
        mode: Mode,
        folder: Path,
        preset: str | None,
        force: Sequence[str],
        sync: bool,
        budget_usd: float | None,
        log: Logger,
    ) -> None:
        self._mode, self._folder, self._preset, self._force = mode, folder, preset, force
        self._sync, self._budget_usd, self._log = sync, budget_usd, log
        self._done: list[StageRun] = []

    def work(self, *, promote: bool, is_split: bool) -> State[Any]:
        """Everything, from fetching to the last artifact; the state that the run ends in."""
        if self._sync:
            sharing.refuse_without_remote(self._folder)
            if bad := failed(_transfer_of("fetch", self._folder)):
                return bad
        graph = graph_of(self._folder, log=self._log)
        wanted = self._wanted(graph)
        may_run = graph.may_run(force=self._force) & wanted
        self._say_plan(graph, may_run)
        before = results.read_metrics(self._folder, graph.metrics)
        bad, verdict = self._run_stages(graph, wanted, may_run, is_split=is_split), None
        if bad is None and self._mode != "base":
            compared = self._promote(promote=promote)
            if isinstance(compared, State):
                bad = compared
            else:
                verdict = compared
        # also where a stage has failed, or nothing was to be done: an earlier run may have shared nothing
        not_shared = failed(_transfer_of("push", self._folder)) if self._sync else None
        if may_run:
            results.show_stages(self._done, graph.changes)
            results.show_metrics(before, results.read_metrics(self._folder, graph.metrics))
            results.show_links(self._folder, verdict)
        if bad is not None and bad.name == GATE_FAILED:
            results.tell_gate_failed(str(bad.message), flow_run_id=str(flow_run.id))
        return bad or not_shared or Completed(message=self._summary(verdict))

    def _wanted(self, graph: Graph) -> frozenset[str]:
        """The stages that the mode is about.

        Raises:
            UserError: `force` names no stage of these; or `incremental` would do more than learn VLMs.
        """
        wanted = graph.upstream([_BASE]) if self._mode == "base" else frozenset(graph.stages)
        if strange := [name for name in self._force if name not in wanted]:
            raise UserError(
                f"force: {', '.join(strange)} is no stage of mode {self._mode}; it has "
                f"{', '.join(name for name in graph.order if name in wanted)}."
            )
        base_side = graph.upstream([_BASE]) - set(self._force)
        edited = {name: texts for name, texts in graph.edited.items() if name in base_side}
        if self._mode == "incremental" and edited:
            what = "; ".join(f"{name} ({', '.join(texts[:3])})" for name, texts in edited.items())
            raise UserError(
                "mode incremental learns VLMs, but something else that the base router is made from has changed, so it "
                f"would be trained again: {what}. Run train-arms/full for that, or take the change back."
            )
        return wanted

    def _say_plan(self, graph: Graph, may_run: frozenset[str]) -> None:
        if not may_run:
            self._log.info("nothing to do: every stage is up to date")
            return
        for name in (name for name in graph.order if name in may_run):
            reasons = graph.changes.get(name, ["a stage that it needs may change"])
            more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
            self._log.info("may run: %s (%s%s)", name, ", ".join(reasons[:3]), more)

    def _run_stages(
        self, graph: Graph, wanted: frozenset[str], may_run: frozenset[str], *, is_split: bool
    ) -> State[Any] | None:
        """Run all, each after those it needs; the state of the first that failed, or None."""
        order = [graph.stages[name] for name in graph.order if name in wanted]
        for is_sent, group in groupby(order, key=lambda stage: is_split and stage.is_gpu and stage.name in may_run):
            stages = list(group)
            num_here = self._num_known(stages) if is_sent else len(stages)
            for stage in stages[:num_here]:
                if stage.name not in may_run:
                    self._done.append(show_cached(stage))
                    continue
                if stage.name == _COLLECT and (dear := self._beyond_budget()):
                    return Failed(name=_REFUSED, message=dear)
                one = run_stage_task(stage, self._folder, force=stage.name in self._force, pull=self._sync)
                if not isinstance(one, StageRun):
                    return one
                self._done.append(one)
            if stages[num_here:]:
                found = self._send(stages[num_here:])
                if not isinstance(found, list):
                    return found
                self._done += found
        return None

    def _beyond_budget(self) -> str | None:
        """Why the budget forbids to collect: reckoned in this tree, whose store knows what is paid for."""
        if self._budget_usd is None:
            return None
        return refused_by(self._budget_usd, to_ask_of(forecast(self._folder)))

    def _num_known(self, stages: Sequence[Stage]) -> int:
        """How many of these, from the first on, need no GPU: the run cache has what they would write."""
        for number, stage in enumerate(stages):
            with contextlib.suppress(LockError):  # another process works in this folder; the stage itself waits for it
                if stage.name not in self._force and sharing.bring_result(stage.name, self._folder, pull=self._sync):
                    continue
            return number
        return len(stages)

    def _send(self, stages: Sequence[Stage]) -> list[StageRun] | State[Any]:
        """Have `stages` run on the pool for GPUs; what another machine made is brought here."""
        names = [stage.name for stage in stages]
        task_run_name = f"{', '.join(names)} on {GPU_POOL}"
        state = _on_gpu_pool.with_options(task_run_name=task_run_name)(
            names, self._folder, self._preset, list(self._force), self._sync, return_state=True
        )
        if bad := failed(state):
            return bad
        there = cast(list[StageRun], state.result())
        if not self._sync:
            return there
        for stage in stages:
            here = run_stage_task(stage, self._folder, pull=True)
            if not isinstance(here, StageRun):
                return here
        return there

    def _promote(self, *, promote: bool) -> dict[str, Any] | State[Any] | None:
        """Compare challenger and champion.

        Returns:
            The verdict; None where this challenger was compared before; or the state in which it failed.
        """
        known, registered = read_json(self._folder / VERDICT), read_json(self._folder / _REGISTERED)
        challenger = registered.get("digests", {}).get(registered.get("challenger"))
        has_changed = any(run.outcome != "unchanged" for run in self._done)
        if (
            not has_changed
            and known.get("challenger_digest", "") == challenger
            and (not promote or known.get("decision") != "proposed")
        ):
            self._log.info(
                "this challenger was compared before: %s; `python -m tasks.register promote` compares again",
                known.get("decision"),
            )
            return None
        is_restored = any(run.stage == _REGISTER and run.outcome == "restored" for run in self._done)
        if is_restored and (bad := failed(_register(self._folder, return_state=True))):
            return bad
        state = _compare(self._folder, promote, return_state=True)
        return failed(state) or cast(dict[str, Any], state.result())

    def _summary(self, verdict: dict[str, Any] | None) -> str:
        outcomes = [run.outcome for run in self._done]
        parts = [f"{outcomes.count(what)} {words}" for what, words in _WORDS if what in outcomes]
        if verdict is not None:
            parts.append(f"challenger against champion: {verdict['decision']}")
        return ", ".join(parts)


_WORDS = (("ran", "stages ran"), ("restored", "taken from the run cache"), ("unchanged", "had nothing to do"))


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[5, 30], retry_jitter_factor=0.5)
def _transfer(what: Literal["fetch", "push"], folder: Path) -> State[Any]:
    """From or to the DVC remote."""
    log = get_run_logger()
    try:
        if what == "push":
            sharing.push(folder, log=log)
        else:
            sharing.fetch(folder, log=log)
            restore_answers(folder, log=log)
    except (sharing.RemoteError, CommandError, DvcException) as error:
        return Failed(message=str(error))
    return Completed()


def _transfer_of(what: Literal["fetch", "push"], folder: Path) -> State[Any]:
    return _transfer.with_options(name=what, task_run_name=what)(what, folder, return_state=True)


@task(name="gpu-pool", cache_policy=NO_CACHE)
def _on_gpu_pool(
    stages: list[str], folder: Path, preset: str | None, force: list[str], sync: bool
) -> list[StageRun] | State[Any]:
    """Send stages to the pool for GPUs and wait."""
    log = get_run_logger()
    run_id = UUID(str(flow_run.id))
    try:
        if sync:
            sharing.push(folder, log=log)
        found = send(stages, folder=folder, preset=preset, force=force, is_shared=sync, asking_run=run_id, log=log)
        if sync:
            sharing.fetch(folder, log=log)
    except UserError as error:
        return Failed(name=_REFUSED, message=str(error))
    except (sharing.RemoteError, DvcException) as error:
        return Failed(message=str(error))
    return found


@task(name="bring-registry-up-to-date", task_run_name="bring registry up to date", cache_policy=NO_CACHE)
def _register(folder: Path) -> State[Any]:
    """Register what the run cache gave back: DVC skips a restored stage's command, also what it does in MLflow."""
    log = get_run_logger()
    found = run(["python", "-m", "tasks.register"], folder=folder, each_line=lambda line: log.info("%s", line))
    if found.code != 0:
        return Failed(message=f"the registry was not brought up to date: {found.text}")
    return Completed()


@task(name="promote", task_run_name="promote", cache_policy=NO_CACHE)
def _compare(folder: Path, promote: bool) -> dict[str, Any] | State[Any]:
    """Challenger against champion on split gate; promotes if asked and allowed."""
    log = get_run_logger()
    command = ["python", "-m", "tasks.register", "promote", "--yes" if promote else "--propose", "--json"]
    try:
        verdict: dict[str, Any] = run_json(command, folder=folder, log=log)
    except CommandError as error:
        return Failed(message=str(error))
    for line in str(verdict["text"]).splitlines():
        log.info("%s", line)
    log.info("decision: %s", verdict["decision"])
    results.show_verdict(verdict)
    return verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow in this process; the exit code: 0 done, 1 a stage failed, 2 a mistake in what was asked."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.train_arms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=MODES, nargs="?", default="incremental")
    parser.add_argument("--preset", help="a params file, e.g. presets/real.yaml")
    parser.add_argument("--force", nargs="+", default=[], metavar="STAGE", help="run these though nothing changed")
    parser.add_argument("--sync", action="store_true", help="fetch from the DVC remote before, push after")
    parser.add_argument("--propose", action="store_true", help="compare the challenger, but promote nothing")
    options = parser.parse_args(arguments)
    os.chdir(CHECKOUT)  # Prefect reads its settings there
    os.environ[VARIABLE] = process_tag()
    if num_left := end_leftovers():
        print(f"ended {num_left} processes that a run left behind when it was killed")
    # a temporary server leaves automations to the next `make up`: it would be stopped in the midst of one
    alone = {PREFECT_API_URL: None, PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED: False}
    settings = {} if _server_answers() else alone
    with temporary_settings(settings), tags(process_tag()):
        for name in crash_dead_runs():
            print(f"run '{name}' was said to be running; its process is gone, it is marked as crashed")
        state = train_arms(
            options.mode, options.preset, options.force, options.sync, not options.propose, "single", return_state=True
        )
    print(f"train-arms {options.mode}: {state.name}: {state.message}")
    return 0 if state.is_completed() else 2 if state.name == _REFUSED else 1


def _server_answers() -> bool:
    """Whether the Prefect server that is configured is there; one that `make up` left behind is done without.

    Raises:
        SystemExit: PREFECT_API_URL names a server that does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        return False
    if api_answers(url):
        return True
    if "PREFECT_API_URL" in os.environ:
        print(f"Prefect's server at {url} does not answer; start it, or unset PREFECT_API_URL.")
        raise SystemExit(2)
    print(f"Prefect's server at {url} does not answer; running without it (`make up` starts it again)")
    return False


if __name__ == "__main__":
    sys.exit(main())
