"""What the servers of `make up` must hold before a run can start: MLflow's tables, Prefect's pools and deployments."""

import contextlib
import hashlib
import subprocess
import sys

import filelock
import httpx

from flows import addresses, processes, servers
from flows.servers import Plan


class ServiceError(Exception):
    """What stopped `up` or `down`, in words for people; `code` is the exit code."""

    def __init__(self, text: str, *, code: int = 1) -> None:
        """Say what happened and what to do."""
        super().__init__(text)
        self.code = code


def say(text: str) -> None:
    """Print a line at once; that nobody reads it any more stops nothing."""
    with contextlib.suppress(OSError):  # a closed pipe, a terminal that is gone
        print(text, flush=True)


def make_store(plan: Plan) -> None:
    """Make MLflow's tables, under another name first: a server killed on the way would leave a half-made store.

    Args:
        plan: what is to run.

    Raises:
        ServiceError: MLflow could not.
    """
    store = plan.root / servers.STORE / "mlflow.db"
    lock = plan.root / ".arms/tracking/lock"  # the one that stages take before they make it
    store.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
        if store.exists():
            return
        temporary = store.with_name(".mlflow.db.up.tmp")
        temporary.unlink(missing_ok=True)
        words = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{temporary}"]
        _run(plan, words, "MLflow's store could not be made")
        temporary.replace(store)


def register(plan: Plan) -> None:
    """Pools, the automations and the deployments; nothing where the server has them as they are here.

    Args:
        plan: what is to run.

    Raises:
        ServiceError: the server did not take them.
    """
    now = digest(plan)
    if addresses.read(plan.root).get("registered") == now and _has_deployments(plan):
        return
    say("  pools, automation, deployments ...")
    slots = str(len(plan.gpus))
    _run(plan, [sys.executable, "-m", "flows.pools", "--gpu-slots", slots], "the pools could not be made")
    words = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml"]
    _run(plan, words, "the deployments could not be registered")


def digest(plan: Plan) -> str:
    """What decides what is registered: the deployments, the flows with their parameters, the number of GPU workers.

    Args:
        plan: what is to run.
    """
    infra = plan.root / "infra"
    files = [infra / "prefect.yaml", infra / "pools/process.json", *sorted((plan.root / "flows").glob("*.py"))]
    found = hashlib.sha256(str(len(plan.gpus)).encode())
    for path in files:
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def _has_deployments(plan: Plan) -> bool:
    """Whether the server still has what was registered; its database may have been removed."""
    with contextlib.suppress(httpx.HTTPError):
        url = f"{plan.api_url}/deployments/name/gpu-stages/run"
        return httpx.get(url, timeout=10.0, trust_env=False).is_success
    return False


def _run(plan: Plan, words: list[str], trouble: str) -> None:
    """Run a command that must succeed.

    Raises:
        ServiceError: it did not.
    """
    result = subprocess.run(
        words,
        cwd=plan.root,
        env=servers.environment(plan) | {processes.MARK: str(plan.root), processes.NAME: "up"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        last = "\n".join((result.stdout + result.stderr).strip().splitlines()[-15:])
        raise ServiceError(f"{trouble}; `{' '.join(words[2:])}` ended with {result.returncode}:\n{last}")
