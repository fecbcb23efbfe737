"""Machines that share nothing but Prefect's server, MLflow's server and a DVC remote: clones with workers of their own.

All run on this machine, but each has a folder, a home, an answer store, a DVC cache and workers of its own; a worker's
environment is what docs/other-machines.md tells people to set.
"""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML

from flows import processes, servers
from tasks.common.workspace import make_workspace
from tests.conftest import CHECKOUT, Tree, quick_params
from tests.servers import free_port, wait_until

BASE, NEW, ADDED = ("glyph-reader", "palette-reader"), ("gauge-reader",), "scene-analyst"
NUM_QUERIES = 84
KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
_RUN_S = 900.0
_OUTPUTS = (
    "queries", "profiles", "collect", "label", "split", "embed", "models", "held_out", "metrics", "curves",
    "cascade_eval", "report", "register",
)  # fmt: skip
_ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Hub:
    """What all machines reach: Prefect's server with pools and deployments, MLflow's, and the VLMs' endpoint."""

    root: Path
    prefect_port: int = field(default_factory=free_port)
    mlflow_port: int = field(default_factory=free_port)
    endpoint_port: int = field(default_factory=free_port)
    begun: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def plan(self, root: Path) -> servers.Plan:
        """What a machine with the checkout `root` knows of the servers."""
        return servers.Plan(root=root, prefect_port=self.prefect_port, mlflow_port=self.mlflow_port, gpus=(None,))

    def start(self) -> None:
        """Start the three servers, and tell Prefect's what `make up` tells it."""
        plan = self.plan(self.root)
        for name in plan.servers:
            (self.root / servers.STORE).mkdir(parents=True, exist_ok=True)
            self._start(name, servers.command(plan, name))
        endpoint = [sys.executable, "-m", "sandbox.endpoint", "--port", str(self.endpoint_port)]
        self._start("endpoint", [*endpoint, "--latency-factor", "0"])
        wait_until(lambda: listens(self.endpoint_port))
        wait_until(lambda: servers.answers(servers.PREFECT, self.prefect_port), seconds=300)
        wait_until(lambda: servers.answers(servers.MLFLOW, self.mlflow_port), seconds=300)
        prefect = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file"]
        for command in (
            [sys.executable, "-m", "flows.pools", "--gpu-slots", "1"],
            [*prefect, "infra/prefect.yaml"],
        ):
            done = subprocess.run(
                command, cwd=self.root, env=servers.environment(plan), capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stdout + done.stderr

    def end(self) -> None:
        """End them."""
        processes.end(processes.marked(self.root), rest=lambda: processes.marked(self.root), patience_s=20)
        for process in self.begun:
            process.wait()

    def _start(self, name: str, command: list[str]) -> None:
        environment = servers.environment(self.plan(self.root), name)
        self.begun.append(processes.start(name, command, root=self.root, environment=environment)[1])

    def asked(self) -> dict[str, int]:
        """How many requests the endpoint had since the last call, by VLM, without those that had none."""
        url = f"http://{servers.HOST}:{self.endpoint_port}/sandbox/counters"
        counters: dict[str, int] = httpx.get(url, trust_env=False).raise_for_status().json()
        httpx.delete(url, trust_env=False).raise_for_status()
        return {vlm: number for vlm, number in counters.items() if number}

    def start_run(self, deployment: str, **parameters: Any) -> str:
        """Start a deployment; gives the run's id."""
        found = self._ask("get", f"deployments/name/{deployment}")
        body = {"parameters": parameters, "idempotency_key": uuid.uuid4().hex}
        run = self._ask("post", f"deployments/{found['id']}/create_flow_run", body)
        return str(run["id"])

    def run(self, deployment: str, **parameters: Any) -> "FinishedRun":
        """Start a deployment and wait for the run's end."""
        run_id, until = self.start_run(deployment, **parameters), time.monotonic() + _RUN_S
        while True:
            state = self._ask("get", f"flow_runs/{run_id}")["state"]
            if state["type"] in _ENDS:
                break
            assert time.monotonic() < until, f"{deployment} is {state['name']} after {_RUN_S:.0f} s"
            time.sleep(1)
        return self._finished(run_id, state)

    def gpu_runs(self) -> list["FinishedRun"]:
        """All runs on the pool for GPUs, oldest first."""
        found = self._ask(
            "post", "flow_runs/filter", {"flows": {"name": {"any_": ["gpu-stages"]}}, "sort": "START_TIME_ASC"}
        )
        return [self._finished(run["id"], run["state"]) for run in found]

    def _finished(self, run_id: str, state: Mapping[str, Any]) -> "FinishedRun":
        where = {"flow_run_id": {"any_": [run_id]}}
        tasks: list[dict[str, Any]] = []
        wait_until(lambda: self._tasks(where, tasks), seconds=30)  # their states come as events, a little later
        lines, offset = [], 0
        while page := self._ask("post", "logs/filter", {"logs": where, "sort": "TIMESTAMP_ASC", "offset": offset}):
            lines += [entry["message"] for entry in page]
            offset += len(page)
        return FinishedRun(
            state=state["name"],
            message=state.get("message") or "",
            tasks={task["name"]: (task["state"]["name"], task["state"].get("message") or "") for task in tasks},
            lines=lines,
        )

    def _tasks(self, where: Mapping[str, Any], found: list[dict[str, Any]]) -> bool:
        found[:] = self._ask("post", "task_runs/filter", {"task_runs": where, "sort": "EXPECTED_START_TIME_ASC"})
        return all(task["state"] and task["state"]["type"] in _ENDS for task in found)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return servers.ask(self.plan(self.root).api_url, method, path, body)


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A flow run that ended: its state, its tasks with theirs, and its log."""

    state: str
    message: str
    tasks: dict[str, tuple[str, str]]
    lines: list[str]

    @property
    def ran(self) -> list[str]:
        """The stages whose command DVC really started in this run, in order."""
        return [line.split("'")[1] for line in self.lines if line.startswith("Running stage '")]

    @property
    def restored(self) -> list[str]:
        """The stages whose outputs came from the run cache."""
        return [line.split("'")[1] for line in self.lines if "is cached - skipping run" in line]

    def __str__(self) -> str:
        return "\n".join([f"{self.state}: {self.message}", *map(str, self.tasks.items()), *self.lines])


@dataclass(frozen=True)
class Machine(Tree):
    """A clone with its own home, caches, answer store and workers."""

    home: Path
    hub: Hub

    def environment(self) -> dict[str, str]:
        """What a worker there runs in: as docs/other-machines.md has people set it, with a home of its own."""
        plan = self.hub.plan(self.folder)
        kept = {name: value for name, value in super().environment().items() if not name.startswith("PREFECT_")}
        documented = {
            "PREFECT_API_URL": plan.api_url,
            "MLFLOW_TRACKING_URI": f"http://{servers.HOST}:{self.hub.mlflow_port}",
            "ARMS_ROOT": str(self.folder),
            "PYTHONPATH": str(self.folder),
            "PREFECT_HOME": str(self.folder / ".arms/prefect"),
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        }
        return kept | documented | KEYS | {"HOME": str(self.home)}

    @contextmanager
    def worker(self, pool: str) -> Iterator[None]:
        """A worker of that pool, while the block runs."""
        name = f"{self.folder.name}-{pool}"
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
        words = [*command, "--limit", "1", "--name", name]
        _, process = processes.start(name, words, root=self.folder, environment=self.environment())
        try:
            wait_until(lambda: name in servers.workers_online(self.hub.plan(self.folder).api_url, pool), seconds=180)
            yield
        finally:
            mine = lambda: processes.marked(self.folder, names={name})  # noqa: E731
            processes.end(mine(), rest=mine, patience_s=20)
            process.wait()

    def git(self, *words: str) -> str:
        """Run git in the clone."""
        done = self.run("git", "-c", "user.name=toy", "-c", "user.email=toy@localhost", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def outputs(self) -> dict[str, str]:
        """Hashes of all that stages have written here."""
        return {
            f"{folder}/{name}": digest
            for folder in (
                "queries",
                "collect",
                "label",
                "split",
                "embed",
                "profiles",
                "models",
                "metrics",
                "cascade_eval",
            )
            if (self.folder / folder).exists()
            for name, digest in self.sha256(folder).items()
        }

    @property
    def has_answer_store(self) -> bool:
        return (self.folder / ".arms/answers.sqlite").exists()


@dataclass(frozen=True)
class Team:
    """Clones of one repository, whose tracked `.dvc/config` names the remote that they share."""

    folder: Path
    hub: Hub

    def found(self, *, model: str, remote: str, remote_settings: Mapping[str, str] | None = None) -> None:
        """Make the repository.

        Args:
            model: the registry's name for the team's routers.
            remote: URL of the DVC remote; empty for none.
            remote_settings: of the remote, e.g. `endpointurl`.
        """
        first = self.folder / "seed"
        preset = self.folder / "quick.yaml"
        with preset.open("w") as handle:
            YAML().dump(_params(self.hub, model=model), handle)
        make_workspace(preset, checkout=CHECKOUT, folder=first)
        (first / ".arms/README.md").write_bytes((CHECKOUT / ".arms/README.md").read_bytes())
        (first / ".dvc/config.local").unlink()
        tree = Machine(first, self.folder, self.hub)
        tree.git("init", "--quiet", "--initial-branch", "main")
        if remote:
            commands = [["remote", "add", "--default", "team", remote]]
            commands += [["remote", "modify", "team", *item] for item in (remote_settings or {}).items()]
            for words in commands:
                done = tree.run("dvc", *words)
                assert done.returncode == 0, done.stderr
        tree.git("add", "--all")
        tree.git("commit", "--quiet", "--message", "first")
        tree.git("clone", "--quiet", "--bare", ".", str(self.folder / "origin.git"))

    def machine(self, name: str) -> Machine:
        """A new clone."""
        folder, home = self.folder / name, self.folder / f"home-of-{name}"
        home.mkdir()
        command = ["git", "clone", "--quiet", str(self.folder / "origin.git"), str(folder)]
        subprocess.run(command, check=True, timeout=60, env=os.environ | {"HOME": str(home)})
        return Machine(folder, home, self.hub)


def write_checkout(folder: Path) -> None:
    """The checkout's tree, as the machine has it that runs the servers."""
    make_workspace(CHECKOUT / "params.yaml", checkout=CHECKOUT, folder=folder)
    (folder / ".arms/README.md").write_bytes((CHECKOUT / ".arms/README.md").read_bytes())


def add_vlm(author: Machine, name: str) -> None:
    """Write a block into params.yaml, commit and push it."""
    blocks = YAML(typ="safe").load((CHECKOUT / "params.yaml").read_text())["vlms"]
    params = author.params()
    params["vlms"].append(_block_of(author.hub, blocks, name))
    author.write_params(params)
    author.git("commit", "--quiet", "--message", f"Add {name}", "--", "params.yaml")
    author.git("push", "--quiet", "origin", "HEAD")


def listens(port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((servers.HOST, port)) == 0


def _params(hub: Hub, *, model: str) -> dict[str, Any]:
    """The sandbox, cut down: few queries, few VLMs, training for seconds."""
    blocks = YAML(typ="safe").load((CHECKOUT / "params.yaml").read_text())["vlms"]
    params = quick_params(Path("none"))
    params["vlms"] = [_block_of(hub, blocks, name) for name in (*BASE, *NEW)]
    params["queries"] = {"source": "sandbox", "sandbox": {"seed": 0, "num_queries": NUM_QUERIES}}
    params["collect"] = {"source": "endpoint", "max_error_share": 0.0}
    params["register"] = {"model": model, "draws": 200}
    return params


def _block_of(hub: Hub, blocks: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """A VLM's block of the checkout's params, asked at the hub's endpoint."""
    block = next(block for block in blocks if block["name"] == name)
    pool = "base" if name in BASE else "new"
    base_url = f"http://{servers.HOST}:{hub.endpoint_port}/v1"
    return block | {"pool": pool, "endpoint": dict(block["endpoint"]) | {"base_url": base_url}}
