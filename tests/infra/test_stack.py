"""What infra/ says is done here as far as it can be without Docker and without a cluster.

Commands and environment of the servers and of the worker are those of infra/compose.yaml; only hosts, ports and folders
are exchanged. PostgreSQL is a real one, the S3-compatible storage is moto. Prefect's server is told all by
infra/register.sh, and an event that a failed gate emits pauses the schedule.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
import psycopg2
import pytest
from ruamel.yaml import YAML

from tests.servers import free_port, postgres_cluster, wait_until

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = YAML(typ="safe").load((ROOT / "infra/compose.yaml").read_text())
CHOSEN = {"POSTGRES_PASSWORD": "any", "S3_ACCESS_KEY": "access", "S3_SECRET_KEY": "secret"}
NIGHTLY = "train-arms/nightly-recollect"

pytestmark = pytest.mark.slow


@dataclass(kw_only=True)
class Stack:
    """The services of the compose file, as processes of this machine."""

    folder: Path
    exchanged: dict[str, str]  # text of the compose file: what it is here
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def words(self, value: str) -> str:
        """A text of the compose file as compose would read it, with hosts, ports and folders of this machine."""
        value = re.sub(r"\$\{(\w+):(?:\?[^}]*|-([^}]*))\}", lambda found: CHOSEN.get(found[1], found[2] or ""), value)
        for theirs, ours in self.exchanged.items():
            value = value.replace(theirs, ours)
        return value.replace("$$", "$")

    def environment(self, service: str) -> dict[str, str]:
        """What the service sees; of this machine's environment only what every process needs."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        image = {"ARMS_ROOT": str(ROOT), "PYTHONPATH": str(ROOT), "HOME": str(self.folder), "DO_NOT_TRACK": "1"}
        image |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        image |= {"DVC_NO_ANALYTICS": "1", "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1"}
        image |= {"PREFECT_WORKER_WEBSERVER_PORT": self.exchanged["127.0.0.1:8080"].split(":")[1]}
        own = COMPOSE["services"][service]["environment"]
        return kept | image | {name: self.words(value) for name, value in own.items()}

    def command(self, service: str) -> list[str]:
        found = COMPOSE["services"][service]
        words = [self.words(word) for word in [*found.get("entrypoint", []), *found["command"]]]
        ports = {"4200": self.exchanged["127.0.0.1:4200"], "5000": self.exchanged["127.0.0.1:5000"]}
        return [ports[word].split(":")[1] if word in ports else word for word in words]

    def start(self, service: str) -> subprocess.Popen[bytes]:
        """Start it and wait until the compose file's own health check is content."""
        with (self.folder / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(
                self.command(service),
                cwd=ROOT,
                env=self.environment(service),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        wait_until(lambda: process.poll() is not None or self.is_healthy(service), seconds=400)
        assert process.poll() is None, (self.folder / f"{service}.log").read_text()
        return process

    def is_healthy(self, service: str) -> bool:
        time.sleep(1)  # each check is a process
        test = [self.words(word) for word in COMPOSE["services"][service]["healthcheck"]["test"][1:]]
        return subprocess.run(test, env=self.environment(service), capture_output=True, timeout=60).returncode == 0

    def run(self, words: Sequence[str], *, like: str, timeout: int = 600) -> subprocess.CompletedProcess[str]:
        """Run a command in the environment of a service."""
        environment = self.environment(like)
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask Prefect's API."""
        url = f"http://{self.exchanged['127.0.0.1:4200']}/api/{path}"
        answer = httpx.get(url, timeout=30) if body is None else httpx.post(url, json=body, timeout=30)
        return answer.raise_for_status().json()

    def end(self) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    folder = Path(tempfile.mkdtemp(prefix="arms-stack-"))  # the user `postgres` must be able to enter it
    folder.chmod(0o755)
    (folder / "postgres").mkdir()
    (folder / "dvc").mkdir()
    (folder / "dvc/config").write_text(COMPOSE["configs"]["dvc-remote"]["content"])
    s3, prefect, mlflow, health = (f"127.0.0.1:{free_port()}" for _ in range(4))
    with contextlib.ExitStack() as ending:
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        address = ending.enter_context(postgres_cluster(folder / "postgres"))
        where = address.split("@")[1].split("/")[0]
        _make_databases(address)
        exchanged = {"postgres:5432": where, "s3:8333": s3, "prefect:4200": prefect, "127.0.0.1:4200": prefect}
        exchanged |= {"//mlflow:5000": f"//{mlflow}", "127.0.0.1:5000": mlflow, "127.0.0.1:8080": health}
        exchanged |= {"0.0.0.0": "127.0.0.1", "/etc/dvc": str(folder / "dvc")}  # noqa: S104
        exchanged |= {"/tmp/prefect": str(folder / "prefect"), "/arms/.arms/prefect": str(folder / "worker")}  # noqa: S108
        found = Stack(folder=folder, exchanged=exchanged)
        ending.callback(found.end)
        storage = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", s3.split(":")[1]]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        found.processes.append(subprocess.Popen(storage, start_new_session=True, **quiet))
        wait_until(lambda: _answers(f"http://{s3}/"))
        result = found.run(found.command("bucket"), like="bucket")
        assert result.returncode == 0, result.stderr
        found.start("prefect")
        found.start("mlflow")
        yield found


def _make_databases(address: str) -> None:
    """As the image of PostgreSQL does: the database that its environment names, then the scripts."""
    with contextlib.closing(psycopg2.connect(address.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {COMPOSE['services']['postgres']['environment']['POSTGRES_DB']}")
            cursor.execute(COMPOSE["configs"]["databases"]["content"])


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).is_success
    return False


def _keys(stack: Stack) -> list[str]:
    own = stack.environment("bucket")
    client = boto3.client(
        "s3",
        endpoint_url=own["AWS_ENDPOINT_URL_S3"],
        region_name=own["AWS_DEFAULT_REGION"],
        aws_access_key_id=own["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=own["AWS_SECRET_ACCESS_KEY"],
    )
    return [found["Key"] for found in client.list_objects_v2(Bucket="arms").get("Contents", [])]


def test_bucket_is_made_once(stack: Stack) -> None:
    again = stack.run(stack.command("bucket"), like="bucket")
    assert again.returncode == 0, again.stderr


def test_mlflow_keeps_runs_in_postgresql_and_artifacts_in_the_storage(stack: Stack) -> None:
    script = "import mlflow; run = mlflow.start_run(); mlflow.log_text('kept', 'note.txt'); print(run.info.run_id)"
    result = stack.run([sys.executable, "-c", script], like="worker-cpu")
    assert result.returncode == 0, result.stderr
    run_id = re.findall(r"^[0-9a-f]{32}$", result.stdout, flags=re.MULTILINE)[0]
    assert [key for key in _keys(stack) if key.startswith("mlflow/") and key.endswith(f"{run_id}/artifacts/note.txt")]


def test_mlflow_answers_to_no_strange_name(stack: Stack) -> None:
    address = f"http://{stack.exchanged['127.0.0.1:5000']}/api/2.0/mlflow/experiments/search?max_results=1"
    codes = {host: httpx.get(address, headers={"Host": host}).status_code for host in ("mlflow:5000", "evil.example")}
    assert codes == {"mlflow:5000": 200, "evil.example": 403}


def test_dvc_of_a_worker_shares_through_the_storage_without_a_line_in_the_checkout(stack: Stack) -> None:
    tree = stack.folder / "tree"
    tree.mkdir()
    (tree / "data.txt").write_text("shared")
    script = "git init -q && dvc init -q && dvc config core.analytics false && dvc add -q data.txt && dvc push -q"
    result = subprocess.run(["sh", "-euc", script], cwd=tree, env=stack.environment("worker-cpu"), capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert [key for key in _keys(stack) if key.startswith("dvc/files/md5/")]


@pytest.fixture(scope="module")
def registered(stack: Stack) -> Stack:
    """The same, told of pools, automations and deployments."""
    result = stack.run(stack.command("register"), like="register")
    assert result.returncode == 0, result.stdout + result.stderr
    return stack


def test_registered_server_has_pools_limit_automations_and_deployments(registered: Stack) -> None:
    stack = registered
    template = json.loads((ROOT / "infra/pools/process.json").read_text())
    assert all(stack.ask(f"work_pools/arms-{pool}")["base_job_template"] == template for pool in ("cpu", "gpu"))
    assert stack.ask("work_pools/arms-gpu/queues/default")["concurrency_limit"] == 1
    names = {found["name"] for found in stack.ask("automations/filter", {})}
    assert {"crash zombie runs", "pause schedule after failed gate"} <= names
    schedules = stack.ask(f"deployments/name/{NIGHTLY}")["schedules"]
    assert [(found["schedule"]["cron"], found["active"]) for found in schedules] == [("0 3 * * *", False)]


def test_worker_is_well_by_its_own_health_check(registered: Stack) -> None:
    stack = registered
    process = stack.start("worker-cpu")
    wait_until(lambda: stack.ask("work_pools/arms-cpu/workers/filter", {}), seconds=180)
    (worker,) = stack.ask("work_pools/arms-cpu/workers/filter", {})
    assert (worker["name"], worker["status"]) == ("worker-cpu", "ONLINE")
    process.terminate()
    assert process.wait(60) == 0  # it would make its pool again where another test removes it


GATE = """if True:
    import sys
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow
    from flows.results import tell_gate_failed

    @flow
    def run(mode, force):
        tell_gate_failed("stage collect: 2 rows", flow_run_id=sys.argv[1])

    with get_client(sync_client=True) as client:
        run_flow(run, flow_run=client.read_flow_run(sys.argv[1]))
"""


def test_event_of_a_failed_gate_pauses_the_schedule_and_no_run_by_hand(registered: Stack) -> None:
    stack = registered
    deployment = stack.ask(f"deployments/name/{NIGHTLY}")
    assert deployment["paused"] is False
    run = stack.ask(f"deployments/{deployment['id']}/create_flow_run", {})
    # what flows/results.py does in a run of this deployment when an invariant was broken
    result = stack.run([sys.executable, "-c", GATE, run["id"]], like="register")
    assert result.returncode == 0, result.stderr
    wait_until(lambda: stack.ask(f"deployments/name/{NIGHTLY}")["paused"], seconds=180)
    by_hand = stack.ask(f"deployments/{deployment['id']}/create_flow_run", {})
    assert by_hand["state_type"] == "SCHEDULED"


def test_keys_in_secret_blocks_reach_containers(registered: Stack) -> None:
    script = """if True:
        import asyncio, json, pathlib
        from prefect.blocks.system import Secret
        from prefect_docker.worker import DockerWorkerJobConfiguration as Configuration
        Secret(value="word").save("openai")
        template = json.loads(pathlib.Path("infra/pools/docker-cpu.json").read_text())
        template["variables"]["properties"]["env"]["default"]["KEY"] = "{{ prefect.blocks.secret.openai }}"
        print("KEY is", asyncio.run(Configuration.from_template_and_values(template, {})).env["KEY"])
    """
    result = registered.run([sys.executable, "-c", script], like="register")
    assert "KEY is word" in result.stdout, result.stderr


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_server_takes_templates_of_other_types(registered: Stack, kind: str) -> None:
    for pool in ("cpu", "gpu"):
        gone = registered.run(["prefect", "--no-prompt", "work-pool", "delete", f"arms-{pool}"], like="register")
        assert gone.returncode == 0, gone.stdout + gone.stderr
    words = ["env", "ARMS_IMAGE=registry.example/arms:1", "bash", "infra/register.sh", kind, "1"]
    result = registered.run(words, like="register")
    assert result.returncode == 0, result.stdout + result.stderr
    for pool, image in (("cpu", "registry.example/arms:1"), ("gpu", "arms-pipeline-cuda:latest")):
        expected = json.loads((ROOT / f"infra/pools/{kind}-{pool}.json").read_text())
        expected["variables"]["properties"]["image"]["default"] = image
        found = registered.ask(f"work_pools/arms-{pool}")
        assert (found["type"], found["base_job_template"]) == (kind, expected)
    names = [found["name"] for found in registered.ask("automations/filter", {})]
    assert len(names) == len(set(names))  # telling it again makes none twice


def test_register_refuses_an_unknown_type_in_a_sentence(stack: Stack) -> None:
    result = stack.run(["bash", "infra/register.sh", "podman", "1"], like="register")
    assert (result.returncode, "there is no template for pools of type 'podman'" in result.stderr) == (2, True)
