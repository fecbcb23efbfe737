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
import json
import os
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, cast

import httpx
from dvc.exceptions import DvcException
from dvc.lock import LockError
from prefect import flow, get_run_logger, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed

from flows import results, sharing
from flows.command import CommandError, run, run_json
from flows.dead_runs import VARIABLE, crash_dead_runs, end_leftovers, process_tag
from flows.gpu_stages import send
from flows.graph import Graph, Stage
from flows.servers import GPU_POOL
from flows.shared_answers import restore_answers
from flows.stage_runs import LockBusyError, Logger, StageRun, graph_of
from flows.stage_tasks import run_stage_task, show_cached
from flows.trees import CHECKOUT, VERDICT, UserError, alone_in, tree_of

Mode = Literal["base", "incremental", "full"]
MODES: tuple[Mode, ...] = ("base", "incremental", "full")
_BASE, _REGISTER = "train_base", "register"
_REGISTERED = Path("register/registered.json")


@flow(name="train-arms", flow_run_name="{mode}")
def train_arms(
    mode: Mode = "incremental",
    preset: str | None = None,
    force: list[str] | None = None,
    sync: bool = False,
    promote: bool = True,
    pools: Literal["split", "single"] = "split",
) -> State[Any]:
    """Bring the routers up to date with the data and the list of VLMs.

    Args:
        mode: `base`, `incremental` or `full`.
        preset: a params file such as `presets/real.yaml`, run in a workspace of its own; none: the checkout's params.
        force: stages that run though nothing changed, e.g. `collect` to ask again what ended in an error.
        sync: fetch from the DVC remote before and push to it after, the run cache included.
        promote: make the challenger the champion if the comparison allows it; else only compare and say.
        pools: `split` sends GPU stages to pool arms-gpu; `single` runs every stage where the run itself is.
    """
    log = get_run_logger()
    try:
        folder = tree_of(preset, checkout=CHECKOUT, log=log)
        with alone_in(folder, log=log):
            return _Run(mode=mode, folder=folder, preset=preset, force=force or [], sync=sync, log=log).work(
                promote=promote, is_split=pools == "split" and deployment.id is not None
            )
    except (UserError, CommandError, LockBusyError, sharing.RemoteError, DvcException) as error:
        return Failed(message=str(error))


class _Run:
    """One run in one tree."""

    def __init__(
        self, *, mode: Mode, folder: Path, preset: str | None, force: Sequence[str], sync: bool, log: Logger
    ) -> None:
        self._mode, self._folder, self._preset, self._force = mode, folder, preset, force
        self._sync, self._log = sync, log
        self._done: list[StageRun] = []

    def work(self, *, promote: bool, is_split: bool) -> State[Any]:
        """Everything, from fetching to the last artifact; the state that the run ends in."""
        if self._sync:
            sharing.refuse_without_remote(self._folder)
            _transfer.with_options(name="fetch", task_run_name="fetch")("fetch", self._folder)
        graph = graph_of(self._folder, log=self._log)
        wanted = self._wanted(graph)
        may_run = graph.may_run(force=self._force) & wanted
        self._say_plan(graph, may_run)
        before = results.read_metrics(self._folder, graph.metrics)
        failed = self._run_stages(graph, wanted, may_run, is_split=is_split)
        verdict = self._promote(promote=promote) if failed is None and self._mode != "base" else None
        if self._sync:  # also where nothing was to be done: an earlier run may have shared nothing
            _transfer.with_options(name="push", task_run_name="push")("push", self._folder)
        if may_run:
            results.show_stages(self._done, graph.changes)
            results.show_metrics(before, results.read_metrics(self._folder, graph.metrics))
            results.show_links(self._folder, verdict)
        return failed or Completed(message=self._summary(verdict))

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
                one = run_stage_task(stage, self._folder, force=stage.name in self._force, pull=self._sync)
                if not isinstance(one, StageRun):
                    return Failed(name=one.name, message=one.message)
                self._done.append(one)
            if stages[num_here:]:
                found = self._send(stages[num_here:])
                if not isinstance(found, list):
                    return found
                self._done += found
        return None

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
        if not state.is_completed():
            return Failed(name=state.name, message=state.message)
        there = cast(list[StageRun], state.result())
        if not self._sync:
            return there
        for stage in stages:
            here = run_stage_task(stage, self._folder, pull=True)
            if not isinstance(here, StageRun):
                return Failed(name=here.name, message=here.message)
        return there

    def _promote(self, *, promote: bool) -> dict[str, Any] | None:
        """Compare challenger and champion, unless that was done for this challenger already."""
        known = _read_json(self._folder / VERDICT)
        registered = _read_json(self._folder / _REGISTERED) or {}
        challenger = registered.get("digests", {}).get(registered.get("challenger"))
        has_changed = any(run.outcome != "unchanged" for run in self._done)
        if (
            not has_changed
            and known is not None
            and known.get("challenger_digest") == challenger
            and (not promote or known.get("decision") != "proposed")
        ):
            self._log.info("challenger and champion are those of the last comparison: %s", known.get("decision"))
            return known
        if any(run.stage == _REGISTER and run.outcome == "restored" for run in self._done):
            _register(self._folder)
        return _compare(self._folder, promote)

    def _summary(self, verdict: dict[str, Any] | None) -> str:
        outcomes = [run.outcome for run in self._done]
        parts = [f"{outcomes.count(what)} {words}" for what, words in _WORDS if what in outcomes]
        if verdict is not None:
            parts.append(f"challenger against champion: {verdict['decision']}")
        return ", ".join(parts)


_WORDS = (("ran", "stages ran"), ("restored", "taken from the run cache"), ("unchanged", "had nothing to do"))


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[5, 30], retry_jitter_factor=0.5)
def _transfer(what: Literal["fetch", "push"], folder: Path) -> None:
    """From or to the DVC remote."""
    log = get_run_logger()
    if what == "push":
        sharing.push(folder, log=log)
        return
    sharing.fetch(folder, log=log)
    restore_answers(folder, log=log)


@task(name="gpu-pool", cache_policy=NO_CACHE)
def _on_gpu_pool(
    stages: list[str], folder: Path, preset: str | None, force: list[str], sync: bool
) -> list[StageRun] | State[Any]:
    """Send stages to the pool for GPUs and wait."""
    log = get_run_logger()
    if sync:
        sharing.push(folder, log=log)
    key = f"{flow_run.id}-{flow_run.run_count}-{stages[0]}"
    found = send(stages, folder=folder, preset=preset, force=force, is_shared=sync, key=key, log=log)
    if sync:
        sharing.fetch(folder, log=log)
    return found


@task(name="bring-registry-up-to-date", task_run_name="bring registry up to date", cache_policy=NO_CACHE)
def _register(folder: Path) -> None:
    """Register what the run cache gave back: DVC skips a restored stage's command, and with it what it does in MLflow.

    Raises:
        CommandError: MLflow is away.
    """
    log = get_run_logger()
    found = run(["python", "-m", "tasks.register"], folder=folder, each_line=lambda line: log.info("%s", line))
    if found.code != 0:
        raise CommandError(f"the registry was not brought up to date: {found.text}", code=found.code)


@task(name="promote", task_run_name="promote", cache_policy=NO_CACHE)
def _compare(folder: Path, promote: bool) -> dict[str, Any]:
    """Challenger against champion on split gate; promotes if asked and allowed."""
    log = get_run_logger()
    command = ["python", "-m", "tasks.register", "promote", "--yes" if promote else "--propose", "--json"]
    verdict: dict[str, Any] = run_json(command, folder=folder, log=log)
    for line in str(verdict["text"]).splitlines():
        log.info("%s", line)
    log.info("decision: %s", verdict["decision"])
    results.show_verdict(verdict)
    return verdict


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


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
    settings = {} if _server_answers() else {PREFECT_API_URL: None}
    with temporary_settings(settings), tags(process_tag()):
        for name in crash_dead_runs():
            print(f"run '{name}' was said to be running; its process is gone, it is marked as crashed")
        state = train_arms(
            options.mode, options.preset, options.force, options.sync, not options.propose, "single", return_state=True
        )
    print(f"train-arms {options.mode}: {state.name}: {state.message}")
    return 0 if state.is_completed() else 1


def _server_answers() -> bool:
    """Whether the Prefect server that is configured is there; one that `make up` left behind is done without.

    Raises:
        SystemExit: PREFECT_API_URL names a server that does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        return False
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError as error:
        if "PREFECT_API_URL" in os.environ:
            print(f"Prefect's server at {url} does not answer ({error}); start it, or unset PREFECT_API_URL.")
            raise SystemExit(2) from None
    print(f"Prefect's server at {url} does not answer; running without it (`make up` starts it again)")
    return False


if __name__ == "__main__":
    sys.exit(main())
