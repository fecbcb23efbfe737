"""Prefect's server, MLflow's server and the workers of this checkout: `make up`, `make down`.

    python -m flows.services up [--prefect-port 4200] [--mlflow-port 5000] [--gpu-workers N]
    python -m flows.services down

All listens on 127.0.0.1 and lives in `.arms/`. `up` starts only what does not run, so it is also the repair after a
crash: no service ends another one. `down` ends everything that this checkout's services are or began, recorded or not.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import filelock
import httpx
import psutil

from flows import processes, servers, under_way
from flows.servers import HOST, MLFLOW, PREFECT, Plan

ADDRESSES = processes.FOLDER / "services.json"
_SETTINGS = Path("prefect.toml")
_OURS = "# Written by `make up`, removed by `make down`: the server that Prefect's commands typed in this folder use.\n"
_VARIABLES = {PREFECT: "PREFECT_PORT", MLFLOW: "MLFLOW_PORT"}
_TITLES = {PREFECT: "Prefect's server", MLFLOW: "MLflow's server"}
_START_S, _SAY_S = 300.0, 5.0
_CLOSE_S = 20.0  # a server closes its database


class ServiceError(Exception):
    """What stopped `up` or `down`, in words for people; `code` is the exit code."""

    def __init__(self, text: str, *, code: int = 1) -> None:
        """Say what happened and what to do."""
        super().__init__(text)
        self.code = code


def up(plan: Plan) -> None:
    """Start what does not run, tell Prefect's server what it must know, and say what can be typed next.

    Args:
        plan: what is to run.

    Raises:
        ServiceError: a port is a stranger's, or something did not start; then what this call started is ended.
    """
    with _one_at_a_time(plan.root):
        begun: dict[str, subprocess.Popen[bytes]] = {}
        try:
            _start_servers(plan, begun)
            _register(plan)
            for name in plan.workers:
                _start(plan, name, begun)
            _wait(plan, begun, {_title(name): _is_online(plan, name) for name in plan.workers})
            _wait(plan, begun, {_TITLES[name]: _is_well(plan, name) for name in plan.servers})
            _write_addresses(plan)
        except BaseException:
            _end(plan.root, names=set(begun), because="the start did not succeed")
            raise
        _say_next(plan, begun)


def _start_servers(plan: Plan, begun: "dict[str, subprocess.Popen[bytes]]") -> None:
    running = _running(plan.root)
    for server in plan.servers:
        if server not in running:
            _end_leftovers(plan, server)
            _refuse_taken(plan, server)
    _start(plan, PREFECT, begun)
    if MLFLOW in plan.servers:
        _make_store(plan)  # while Prefect's server comes up
        _start(plan, MLFLOW, begun)
    _wait(plan, begun, {_TITLES[PREFECT]: _is_well(plan, PREFECT)})


def _running(root: Path) -> dict[str, processes.Service]:
    found = processes.recorded(root)
    return {name: service for name, service in found.items() if processes.is_running(service, root=root)}


def _start(plan: Plan, name: str, begun: "dict[str, subprocess.Popen[bytes]]") -> None:
    if name in _running(plan.root):
        return
    _end_leftovers(plan, name)
    port = plan.port(name) if name in plan.servers else None
    environment = servers.environment(plan, name)
    _, begun[name] = processes.start(
        name, servers.command(plan, name), root=plan.root, environment=environment, port=port
    )


def _end_leftovers(plan: Plan, name: str) -> None:
    """End what a service that was killed has left: its own children, a flow run that nobody watches any more."""
    left = processes.marked(plan.root, names={name})
    if left:
        print(f"  ending {len(left)} processes that an earlier {_title(name)} left", flush=True)
        api_url = plan.api_url if servers.answers(PREFECT, plan.prefect_port) else None
        under_way.end_runs(plan.root, names={name}, api_url=api_url, each_wait=_say_wait)
        processes.end(left, rest=lambda: processes.marked(plan.root, names={name}), patience_s=_CLOSE_S)


def _refuse_taken(plan: Plan, server: str) -> None:
    port, variable = plan.port(server), _VARIABLES[server]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServiceError(
                f"port {port}, where {_TITLES[server]} is to listen, cannot be used ({error.strerror}): another "
                f"program has it, perhaps another checkout's services. Choose another: make up {variable}={port + 1}.",
                code=2,
            ) from None


def _make_store(plan: Plan) -> None:
    """Make MLflow's tables under another name first: a server killed on the way would leave a half-made store."""
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


def _register(plan: Plan) -> None:
    """Pools, the automation and the deployments; nothing where the server has them as they are here."""
    digest = _digest(plan)
    if _read_addresses(plan.root).get("registered") == digest and _has_deployments(plan):
        return
    print("  pools, automation, deployments ...", flush=True)
    slots = str(len(plan.gpus))
    _run(plan, [sys.executable, "-m", "flows.pools", "--gpu-slots", slots], "the pools could not be made")
    words = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml"]
    _run(plan, words, "the deployments could not be registered")


def _digest(plan: Plan) -> str:
    """What decides what is registered: the deployments, the flows with their parameters, the number of GPU workers."""
    files = [plan.root / "infra/prefect.yaml", *sorted((plan.root / "flows").glob("*.py"))]
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


def _is_well(plan: Plan, server: str) -> Callable[[], bool]:
    return lambda: servers.answers(server, plan.port(server))


def _is_online(plan: Plan, worker: str) -> Callable[[], bool]:
    pool = servers.CPU_POOL if worker == servers.CPU_WORKER else servers.GPU_POOL
    since = processes.recorded(plan.root)[worker].started_at  # one that was killed counts as online for a while

    def is_online() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return servers.workers_online(plan.api_url, pool).get(worker, 0.0) >= since
        return False

    return is_online


def _wait(plan: Plan, begun: "dict[str, subprocess.Popen[bytes]]", signs: dict[str, Callable[[], bool]]) -> None:
    """Wait until all signs are there, and say every few seconds what is waited for.

    Raises:
        ServiceError: a process that this call started has ended, or it takes too long.
    """
    began = said = time.monotonic()
    left = dict(signs)
    while left := {name: is_so for name, is_so in left.items() if not is_so()}:
        now = time.monotonic()
        for name, process in begun.items():
            if process.poll() is not None:
                raise ServiceError(_last_words(plan, name, f"ended with {process.returncode} while it started"))
        if now - began > _START_S:
            raise ServiceError(f"no answer within {_START_S:.0f} s from {', '.join(left)}; {_logs(plan.root)}")
        if now - said >= _SAY_S:
            print(f"  waiting for {', '.join(left)}: {now - began:.0f} s", flush=True)
            said = now
        time.sleep(0.3)


def _last_words(plan: Plan, name: str, what: str) -> str:
    log = processes.log_path(plan.root, name)
    last = "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:])
    return f"{_title(name)} {what}. Its last words, of {log.relative_to(plan.root)}:\n{last}"


def _logs(root: Path) -> str:
    return f"the services' own words stand in {processes.log_path(root, 'x').parent.relative_to(root)}"


def _title(name: str) -> str:
    return _TITLES.get(name, name)


def _write_addresses(plan: Plan) -> None:
    """Say where the servers are: to Prefect's commands typed in this folder, and to the flows."""
    found: dict[str, Any] = {"prefect": {"url": plan.url(PREFECT)}, "registered": _digest(plan)}
    if MLFLOW in plan.servers:
        found["mlflow"] = {"url": plan.url(MLFLOW)}
    processes.write_whole(plan.root / ADDRESSES, json.dumps(found, indent=1) + "\n")
    settings = plan.root / _SETTINGS
    if settings.exists() and not settings.read_text(encoding="utf-8").startswith(_OURS):
        print(f"  {_SETTINGS} is your own and was left as it is; its api.url must be {plan.api_url}")
        return
    processes.write_whole(settings, f'{_OURS}[api]\nurl = "{plan.api_url}"\n')


def _read_addresses(root: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((root / ADDRESSES).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _say_next(plan: Plan, begun: "dict[str, subprocess.Popen[bytes]]") -> None:
    print(f"Started: {', '.join(map(_title, begun))}." if begun else "All of it was running already.")
    gpus = ", ".join(gpu for gpu in plan.gpus if gpu is not None)
    print(f"  Prefect   {plan.url(PREFECT)}")
    print(f"  MLflow    {plan.url(MLFLOW) if MLFLOW in plan.servers else 'as MLFLOW_TRACKING_URI says'}")
    print(f"  workers   1 for {servers.CPU_POOL}, {len(plan.gpus)} for {servers.GPU_POOL} ({gpus or 'no GPU'})")
    print("Next, with .venv/bin on your PATH:")
    print("  prefect deployment run train-arms/base --watch          data stages and the base router")
    print("  prefect deployment run train-arms/incremental --watch   what the newest VLM list makes stale")
    print("  make status                                             what runs, what is stale, who is champion")
    print("  make down                                               end all of it")
    foreign = os.environ.get("PREFECT_API_URL")
    if foreign and foreign != plan.api_url:
        print(
            f"PREFECT_API_URL is set in this shell, to another server than this one: unset it, or export {plan.api_url}"
        )


def down(root: Path) -> None:
    """End all that runs for this checkout's services, and say so.

    Args:
        root: the checkout.

    Raises:
        ServiceError: a port is still open afterwards.
    """
    with _one_at_a_time(root):
        ports = {service.port for service in processes.recorded(root).values() if service.port is not None}
        num = _end(root, names=None, because="")
        for path in (root / processes.FOLDER).glob("*.json"):
            path.unlink(missing_ok=True)
        settings = root / _SETTINGS
        if settings.exists() and settings.read_text(encoding="utf-8").startswith(_OURS):
            settings.unlink()
        still = [port for port in sorted(ports) if _is_open(port)]
    if still:
        raise ServiceError(f"something that `make up` did not start listens on {HOST}, port {still[0]}")
    closed = f"; closed: {', '.join(f'port {port}' for port in sorted(ports))}" if ports else ""
    print(f"{num} processes ended{closed}. Nothing of this checkout runs any more." if num else "Nothing was running.")


def _end(root: Path, *, names: set[str] | None, because: str) -> int:
    """End services with all that they began; workers first, so that runs under way can tell the server.

    Args:
        root: the checkout.
        names: of the services; None for all, recorded or not.
        because: why, for the message; empty says nothing.

    Returns:
        How many processes there were.
    """
    if names is not None and not names:
        return 0
    if because:
        print(f"  {because}; ending what was started", flush=True)
    kept = processes.family(processes.marked(root, names=names))  # also what carries no mark, while it has a parent
    running = _running(root)
    worker_pids = {service.pid for name, service in running.items() if name.startswith("worker")}
    workers = [process for process in kept if process.pid in worker_pids]
    api_url = f"http://{HOST}:{running[PREFECT].port}/api" if PREFECT in running else None
    num_runs = under_way.end_runs(root, names=names, api_url=api_url, workers=workers, each_wait=_say_wait)
    if num_runs:
        print(
            f"  ended {num_runs} flow runs that were under way; the next run goes on from what they finished",
            flush=True,
        )

    def rest() -> list[psutil.Process]:
        return list({process.pid: process for process in [*kept, *processes.marked(root, names=names)]}.values())

    processes.end(workers, rest=lambda: workers, patience_s=_CLOSE_S)
    processes.end(rest(), rest=rest, patience_s=_CLOSE_S)
    return len(kept)


def _say_wait(waited_s: float, num_left: int) -> None:
    if waited_s >= _SAY_S and int(waited_s) % int(_SAY_S) == 0:
        print(f"  waiting for stages under way to end ({num_left} processes): {waited_s:.0f} s", flush=True)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2.0)
        return probe.connect_ex((HOST, port)) == 0


@contextlib.contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """One `up` or `down` at a time in a checkout."""
    path = root / processes.FOLDER / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print("another make up or make down works in this folder; waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_plan(root: Path, *, prefect_port: int | None, mlflow_port: int | None, num_gpu_workers: int | None) -> Plan:
    """What is to run in a checkout.

    Args:
        root: the checkout.
        prefect_port: of Prefect's server; None for the one it had, or 4200.
        mlflow_port: of MLflow's server; None for the one it had, or 5000.
        num_gpu_workers: None for one a GPU, or one where there is no GPU.

    Raises:
        ServiceError: no such number of GPU workers, or a server that runs would have to move.
    """
    known, running = processes.recorded(root), _running(root)
    ports = {}
    for server, asked in ((PREFECT, prefect_port), (MLFLOW, mlflow_port)):
        had = known[server].port if server in known else None
        if asked is not None and server in running and had != asked:
            raise ServiceError(
                f"{_TITLES[server]} runs on port {had} already, not on {asked}; `make down` ends it, then it can move.",
                code=2,
            )
        ports[server] = asked or had or servers.DEFAULT_PORTS[server]
    return Plan(
        root=root,
        prefect_port=ports[PREFECT],
        mlflow_port=ports[MLFLOW],
        gpus=_gpus(num_gpu_workers),
        mlflow_uri=os.environ.get("MLFLOW_TRACKING_URI") or None,
    )


def _gpus(num_workers: int | None) -> tuple[str | None, ...]:
    """What each GPU worker sees."""
    here = servers.gpus_here()
    if num_workers is None:
        return here or (None,)
    if here and num_workers > len(here):
        raise ServiceError(
            f"{num_workers} GPU workers were asked for and there are {len(here)} GPUs; a GPU takes one worker: two "
            f"stages on one would fight for its memory. Ask for at most {len(here)}.",
            code=2,
        )
    return here[:num_workers] if here else (None,) * num_workers


def _checkout() -> Path:
    root = Path.cwd().resolve()
    missing = [name for name in ("dvc.yaml", "flows/services.py", "infra/prefect.yaml") if not (root / name).is_file()]
    if missing:
        raise ServiceError(f"{root} is no checkout of this project: no {missing[0]}. Go to its top folder.", code=2)
    return root


def _raise_stopped(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise ValueError
    return number


def main() -> int:
    """Do what the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.services", description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("up", help="start what does not run")
    verb.add_argument("--prefect-port", type=_port, help="default: the one it had, or 4200")
    verb.add_argument("--mlflow-port", type=_port, help="default: the one it had, or 5000")
    verb.add_argument(
        "--gpu-workers", type=_count, metavar="N", help="default: one a GPU, or one where there is no GPU"
    )
    verbs.add_parser("down", help="end all of it")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _raise_stopped)
    try:
        root = _checkout()
        if given.verb == "down":
            down(root)
        else:
            ports = {"prefect_port": given.prefect_port, "mlflow_port": given.mlflow_port}
            up(make_plan(root, **ports, num_gpu_workers=given.gpu_workers))
    except ServiceError as error:
        print(f"{given.verb}: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
