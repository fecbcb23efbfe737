"""What `make up` starts: the command and environment of each service, and how it is seen to be well.

Prefect's own settings come from here alone: a user's PREFECT_* variables speak of another server. Passwords travel by
environment, never as arguments, which others on the machine can see.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

HOST = "127.0.0.1"
CPU_POOL, GPU_POOL = "arms-cpu", "arms-gpu"
PREFECT, MLFLOW, CPU_WORKER, GPU_WORKER = "prefect-server", "mlflow-server", "worker-cpu", "worker-gpu"
DEFAULT_PORTS = {PREFECT: 4200, MLFLOW: 5000}
STORE = Path(".arms/mlflow")
_HEALTH = {PREFECT: "/api/health", MLFLOW: "/health"}
_KEPT = "PREFECT_LOGGING_"
_BUSY_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one checkout's services are.

    Attributes:
        root: the checkout.
        prefect_port: of Prefect's server.
        mlflow_port: of MLflow's server.
        gpus: for each GPU worker what CUDA_VISIBLE_DEVICES is to be; None where it is left alone.
        mlflow_uri: where stages keep their record if the user named a place; else None, and a server is started.
    """

    root: Path
    prefect_port: int
    mlflow_port: int
    gpus: tuple[str | None, ...]
    mlflow_uri: str | None = None

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers that are ours to start."""
        return (PREFECT,) if self.mlflow_uri else (PREFECT, MLFLOW)

    @property
    def workers(self) -> tuple[str, ...]:
        """The workers."""
        return (CPU_WORKER, *(f"{GPU_WORKER}-{number}" for number in range(len(self.gpus))))

    def port(self, server: str) -> int:
        """Where a server listens."""
        return {PREFECT: self.prefect_port, MLFLOW: self.mlflow_port}[server]

    def url(self, server: str) -> str:
        """Where a server is."""
        return f"http://{HOST}:{self.port(server)}"

    @property
    def api_url(self) -> str:
        """What PREFECT_API_URL must be."""
        return f"{self.url(PREFECT)}/api"


def command(plan: Plan, name: str) -> list[str]:
    """The words that start a service.

    Args:
        plan: what is to run.
        name: one of its servers or workers.
    """
    if name == PREFECT:
        return [*_python("prefect"), "server", "start", "--host", HOST, "--port", str(plan.prefect_port)]
    if name == MLFLOW:
        words = ["server", "--host", HOST, "--port", str(plan.mlflow_port), "--workers", "1"]
        return [*_python("mlflow"), *words, "--artifacts-destination", str(plan.root / STORE / "artifacts")]
    pool = CPU_POOL if name == CPU_WORKER else GPU_POOL
    limit = [] if name == CPU_WORKER else ["--limit", "1"]
    words = ["worker", "start", "--pool", pool, "--type", "process", "--name", name, "--install-policy", "never"]
    return [*_python("prefect"), *words, *limit]


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def environment(plan: Plan, name: str | None = None) -> dict[str, str]:
    """All environment variables of a service.

    Args:
        plan: what is to run.
        name: one of its servers or workers; None for a command of Prefect's that speaks to the server.
    """
    own = client_environment(plan.root, plan.api_url)
    if name == MLFLOW:
        return own | {
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{plan.root / STORE / 'mlflow.db'}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
    if name in plan.workers:
        own |= {"MLFLOW_TRACKING_URI": plan.mlflow_uri or plan.url(MLFLOW)}
        gpu = None if name == CPU_WORKER else plan.gpus[plan.workers.index(name) - 1]
        return own if gpu is None else own | {"CUDA_VISIBLE_DEVICES": gpu}
    return own


def client_environment(root: Path, api_url: str, *, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a process that speaks to Prefect's server of this checkout runs in.

    Args:
        root: the checkout.
        api_url: of the server.
        base: what is taken over, but for Prefect's settings.
    """
    kept = {key: value for key, value in base.items() if not key.startswith("PREFECT_") or key.startswith(_KEPT)}
    home = root / ".arms/prefect"
    python_path = [str(root), *filter(None, [base.get("PYTHONPATH")])]
    return kept | {
        "ARMS_ROOT": str(root),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), base.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(python_path),
        "PYTHONUNBUFFERED": "1",
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),  # else the pages are copied into the installed package
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # of runs; the automation for silent ones counts on it
    }


def answers(server: str, port: int) -> bool:
    """Whether the server on that port of this machine is well."""
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://{HOST}:{port}{_HEALTH[server]}", timeout=5.0, trust_env=False).is_success
    return False


def api_answers(api_url: str) -> bool:
    """Whether the Prefect server that a user named is well, reached as Prefect's own client reaches it.

    Args:
        api_url: what PREFECT_API_URL says.
    """
    with contextlib.suppress(httpx.HTTPError, httpx.InvalidURL):
        return httpx.get(f"{api_url}/health", timeout=5.0).is_success
    return False


def ask(api_url: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Ask Prefect's server on this machine; one whose database is busy answers 503 and is asked again for a while.

    Args:
        api_url: of the server.
        method: of HTTP.
        path: below it.
        body: sent as JSON.

    Raises:
        httpx.HTTPError: the server is away, or refuses.
        json.JSONDecodeError: it is no server of Prefect's.
    """
    until = time.monotonic() + _BUSY_S
    while True:
        answer = httpx.request(
            method,
            f"{api_url}/{path}",
            json=body,
            timeout=30.0,
            trust_env=False,
            verify=api_url.startswith("https:"),  # reading certificates takes longer than the rest of a request
        )
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > until:
            return answer.raise_for_status().json()
        time.sleep(0.5)


def workers_online(api_url: str, pool: str) -> dict[str, float]:
    """The workers of a pool that report, by name, with when each last did so, in seconds since 1970.

    Raises:
        httpx.HTTPError: the server is away.
    """
    found = ask(api_url, "POST", f"work_pools/{pool}/workers/filter", {})
    online = [worker for worker in found if worker["status"] == "ONLINE"]
    return {worker["name"]: datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() for worker in online}


def gpus_here() -> tuple[str, ...]:
    """The GPUs that this user may use: those that CUDA_VISIBLE_DEVICES names, else all that the driver lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(part.strip() for part in named.split(",") if part.strip() not in ("", "-1", "NoDevFiles"))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
    except subprocess.TimeoutExpired:
        return ()
    return tuple(str(number) for number, line in enumerate(line for line in listed.splitlines() if _is_gpu(line)))


def _is_gpu(line: str) -> bool:
    return line.startswith("GPU ")
