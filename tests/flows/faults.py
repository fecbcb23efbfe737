"""A small tree whose VLMs are asked at a server of the test's process, and the ways in which it is disturbed.

Each stage writes its name and process id down before it begins, so that what really ran is counted, killed or not.
"""

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from flows import processes, servers
from tests.conftest import Tree, quick_params, write_recorded, write_tree
from tests.flows.conftest import ServicesTree
from tests.servers import wait_until as wait
from tests.tasks.asking import asked_twice, vlm
from tests.tasks.hostile import Asked, Hostile

BASE = ("queries", "profiles", "collect", "label", "split", "embed", "train_base")  # what mode base runs
RESULTS = ("label", "split", "embed", "models/train_base")  # the same bytes whatever happened on the way
CONCURRENCY = 2
PATIENCE_S = 600.0  # where everything is slow
ASK_S = 1.0  # how often Prefect's server is asked: more would slow down what is waited for
STARTED = Path(".arms/started")
LIMIT = Path(".arms/limits")  # a stage's file here: how large a file it may write, in blocks of 512 bytes
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_MADE = (
    "queries", "profiles", "collect", "label", "split", "embed", "models", "held_out", "metrics", "curves", "gates",
    "cascade_eval", "report", "register", "dvc.lock", ".dvc/cache", ".dvc/tmp", ".arms/vectors", ".arms/checkpoints",
    ".arms/answers.sqlite", ".arms/answers.sqlite-wal", ".arms/answers.sqlite-shm", ".arms/started", ".arms/registry",
)  # fmt: skip
_VLMS = ("one", "two", "three", "late")  # the last is in the new pool


@dataclass(frozen=True)
class Run:
    """A flow run as the server sees it."""

    name: str
    state: str
    state_name: str
    message: str

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in FINAL


@dataclass(frozen=True)
class FaultTree(ServicesTree):
    """A tree with services, asked at `server`."""

    server: Hostile = None  # type: ignore[assignment]  # a dataclass field after ones with defaults

    @property
    def api(self) -> str:
        """Prefect's server."""
        return f"http://127.0.0.1:{self.prefect_port}/api"

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST to Prefect's server."""
        return servers.ask(self.api, "POST", path, body or {})

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the tree, with more patience than other trees have."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment() | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def must_up(self) -> None:
        """`make up`; services that run already stay as they are."""
        result = self.up()
        assert result.returncode == 0, result.stdout + result.stderr

    def start(self, deployment: str, *, flow: str = "train-arms", **parameters: Any) -> str:
        """Start a deployment; gives the run's id."""
        found = servers.ask(self.api, "GET", f"deployments/name/{flow}/{deployment}")
        body = {
            "parameters": found["parameters"] | parameters,
            "state": {"type": "SCHEDULED"},
            "idempotency_key": str(uuid.uuid4()),
        }
        return str(self.ask(f"deployments/{found['id']}/create_flow_run", body)["id"])

    def run_state(self, run_id: str) -> Run:
        """A run as it stands."""
        found = servers.ask(self.api, "GET", f"flow_runs/{run_id}")
        state = found["state"] or {}
        return Run(found["name"], found["state_type"], found["state_name"], state.get("message") or "")

    def wait_for_end(self, run_id: str) -> Run:
        """Wait until a run ended."""
        wait_until(lambda: self.run_state(run_id).is_final, every_s=ASK_S)
        return self.run_state(run_id)

    def complete(self, deployment: str, **parameters: Any) -> Run:
        """Start a deployment and wait until it has done its work."""
        run_id = self.start(deployment, **parameters)
        done = self.wait_for_end(run_id)
        assert done.state == "COMPLETED", f"{done}\n{self.log_of(run_id)}"
        return done

    def open_runs(self) -> list[str]:
        """The runs that have not ended, in words."""
        found = self.ask("flow_runs/filter")
        return [f"{run['name']}: {run['state_name']}" for run in found if run["state_type"] not in FINAL]

    def log_of(self, run_id: str) -> str:
        """What a run and its stages said."""
        order = {"sort": "TIMESTAMP_ASC", "limit": 200, "logs": {"flow_run_id": {"any_": [run_id]}}}
        return "\n".join(line["message"] for line in self.ask("logs/filter", order))

    def started(self) -> list[str]:
        """The stages whose process began, in order, a killed one too."""
        return [line.split()[0] for line in self._started_lines()]

    def stage_pid(self, stage: str) -> int | None:
        """The process of a stage that began, has loaded and is at its work."""
        pids = [int(pid) for name, pid in map(str.split, self._started_lines()) if name == stage]
        lock = self.folder / ".arms/locks" / stage
        if not pids or not lock.exists():
            return None
        with suppress(ValueError, psutil.Error):
            is_it = int(lock.read_text()) == pids[-1] and psutil.Process(pids[-1]).status() != psutil.STATUS_ZOMBIE
            return pids[-1] if is_it else None
        return None

    def processes(self) -> list[str]:
        """All that works in this folder, services or not."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.cwd() == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return found

    def _started_lines(self) -> list[str]:
        path = self.folder / STARTED
        return path.read_text().splitlines() if path.exists() else []

    def forget(self, *names: str) -> None:
        """Back to a tree in which nothing ever ran; services and their stores stay.

        Args:
            names: only what these stages made, and what is known of it.
        """
        places: list[str | Path] = list(_MADE)
        if names:
            self._unlock(names)
            known = [f"{place}/{name}" for name in names for place in ("models", ".arms/checkpoints")]
            places = [*names, *known, ".dvc/cache/runs", STARTED]
        for place in places:
            path = self.folder / place
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if "collect" in names:
            for path in (self.folder / ".arms").glob("answers.sqlite*"):
                path.unlink()
        self.server.asked.clear()
        self.server.latency_s = 0.0

    def _unlock(self, names: Iterable[str]) -> None:
        """Take stages out of dvc.lock: what it names, DVC puts back from its cache and runs nothing."""
        path, yaml = self.folder / "dvc.lock", YAML()
        found = yaml.load(path.read_text())
        for name in names:
            del found["stages"][name]
        with path.open("w") as handle:
            yaml.dump(found, handle)

    def restore(self, other: Tree) -> None:
        """Have all results as they stand in `other`; services and their stores stay."""
        self.forget()
        for name in _MADE:
            source, target = other.folder / name, self.folder / name
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
            elif source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        (self.folder / STARTED).unlink(missing_ok=True)

    def asked_again(self) -> dict[str, int]:
        """How many questions each VLM was asked more than once."""
        return {name: len(asked_twice(self.server.questions(name))) for name in _VLMS}


def write_fault_tree(folder: Path, server: Hostile, *, epochs: int = 3) -> FaultTree:
    """A tree of 90 queries and four VLMs that `server` answers for; its stages write down that they began.

    Args:
        folder: holds the tree and what it needs beside it.
        server: answers for all VLMs.
        epochs: of the base router; 150 take seconds, so that they can be disturbed.
    """
    recorded = write_recorded(folder / "recorded")
    answers = dict(recorded.queries.select("image_sha256", "answer").iter_rows())
    server.answer = lambda asked: _answer(asked, answers)
    pools = dict.fromkeys(_VLMS, "base") | {"late": "new"}
    vlms = [
        vlm(name, server.base_url, pool=pool, endpoint={"concurrency": CONCURRENCY, "timeout_s": 30})
        for name, pool in pools.items()
    ]
    train_base = quick_params(recorded.folder)["train_base"]
    train_base["training"] = train_base["training"] | {"epochs": epochs}
    collect = {"source": "endpoint", "max_error_share": 0.0}
    sections = {"vlms": vlms, "collect": collect, "train_base": train_base}
    tree = write_tree(folder / "tree", recorded=recorded.folder, sections=sections)
    _write_starts_down(tree)
    (folder / "home").mkdir(exist_ok=True)
    (tree.folder / ".arms").mkdir(exist_ok=True)
    return FaultTree(tree.folder, folder / "home", server=server)


def copy_tree(tree: FaultTree, folder: Path) -> FaultTree:
    """A copy with all that was made in it, and ports and a home folder of its own."""
    shutil.copytree(tree.folder, folder / "tree", symlinks=True)
    (folder / "home").mkdir()
    return FaultTree(folder / "tree", folder / "home", server=tree.server)


def _answer(asked: Asked, answers: dict[str, str]) -> str:
    """Right for some pictures, another share of them for each VLM, and always the same."""
    right = answers[asked.picture_sha256]
    draw = int(asked.picture_sha256[:6], 16) + 17 * len(asked.model)
    return right if draw % (len(asked.model) - 1) else "I cannot tell"


def _write_starts_down(tree: Tree) -> None:
    path, yaml = tree.folder / "dvc.yaml", YAML()
    yaml.width = 4096
    found = yaml.load(path.read_text())
    for name, stage in found["stages"].items():
        limit = f"ulimit -f $(cat {LIMIT}/{name} 2>/dev/null || echo unlimited)"
        stage["cmd"] = f"echo {name} $$ >> {STARTED} && {limit} && exec {stage['cmd']}"
    with path.open("w") as handle:
        yaml.dump(found, handle)


def wait_until(is_so: Callable[[], object], *, seconds: float = PATIENCE_S, every_s: float = 0.1) -> None:
    """Wait until the call gives something true, with the patience that a busy machine needs."""
    wait(is_so, seconds=seconds, every_s=every_s)


def kill(found: Iterable[psutil.Process]) -> None:
    """kill -9 of all of them in one moment: none sees another one die first."""
    found = list(found)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
    psutil.wait_procs(found, timeout=30)


def service(tree: ServicesTree, name: str) -> psutil.Process:
    """The process of a service."""
    return psutil.Process(processes.recorded(tree.folder)[name].pid)


def kill_group(process: "subprocess.Popen[Any]") -> None:
    """kill -9 of a command that was started in a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def running(tree: Tree, *command: str) -> Any:
    """A command in a session of its own, as from a person's terminal; killed at the end if it still runs."""
    process = subprocess.Popen(
        command,
        cwd=tree.folder,
        env=tree.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_group(process)
        if process.stdout is not None:
            process.stdout.close()
