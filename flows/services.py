"""Prefect's server, MLflow's server and the workers of this checkout: `make up`, `make down`.

    python -m flows.services up [--prefect-port 4200] [--mlflow-port 5000] [--gpu-workers N]
    python -m flows.services down

All listens on 127.0.0.1 and lives in `.arms/`. `up` starts only what does not run, so it is also the repair after a
crash: no service ends another one. `down` ends everything that this checkout's services are or began, recorded or not.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import filelock
import httpx
import psutil

from flows import addresses, processes, registration, servers, under_way
from flows.registration import ServiceError, say
from flows.servers import HOST, MLFLOW, PREFECT, Plan

_VARIABLES = {PREFECT: "PREFECT_PORT", MLFLOW: "MLFLOW_PORT"}
_TITLES = {PREFECT: "Prefect's server", MLFLOW: "MLflow's server"}
_START_S, _SAY_S = 300.0, 5.0
_SERVERS_OF_A_WORKER = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
_CLOSE_S = 20.0  # a server closes its database


def up(plan: Plan) -> None:
    """Start what does not run, tell Prefect's server what it must know, and say what can be typed next.

    Args:
        plan: what is to run.

    Raises:
        ServiceError: a port is a stranger's, or something did not start; then what this call started is ended.
    """
    with _one_at_a_time(plan.root):
        begun: dict[str, subprocess.Popen[bytes]] = {}
        _end_outdated(plan)
        try:
            _start_servers(plan, begun)
            registration.register(plan)
            if num_dead := under_way.report_dead(api_url=plan.api_url):
                say(f"  {num_dead} flow runs were said to be running; their processes are gone, they count as crashed")
            for name in plan.workers:
                _start(plan, name, begun)
            _wait(plan, begun, {_title(name): _is_online(plan, name) for name in plan.workers})
            _wait(plan, begun, {_TITLES[name]: _is_well(plan, name) for name in plan.servers})
            has_settings = addresses.write(plan, registered=registration.digest(plan))
        except BaseException:
            if begun:
                say("  the start did not succeed; ending what was started")
                _end(plan.root, names=set(begun))
            raise
        _say_next(plan, begun)
        if not has_settings:
            say(f"prefect.toml is your own and was left as it is; its api.url must be {plan.api_url}")


def _end_outdated(plan: Plan) -> None:
    """End workers that speak to another server than this plan's: one that crashed and has moved, a record elsewhere.

    Raises:
        ServiceError: such a worker has a run under way.
    """
    for name in set(plan.workers) & set(_running(plan.root)):
        wanted = servers.environment(plan, name)
        differing = [key for key in _SERVERS_OF_A_WORKER if _variable(plan.root, name, key) != wanted[key]]
        if not differing:
            continue
        if PREFECT in _running(plan.root) and under_way.runs_here(plan.root, names={name}):
            raise ServiceError(
                f"{name} was started with another {differing[0]} and has a run under way; wait for its end, or end it "
                "by `make down`, then `make up` again.",
                code=2,
            )
        say(f"  {name} was started with another {differing[0]}; it is started again")
        _end(plan.root, names={name})


def _variable(root: Path, name: str, key: str) -> str | None:
    try:
        found: str | None = psutil.Process(_running(root)[name].pid).environ().get(key)
    except (psutil.Error, KeyError):
        return None
    return found


def _start_servers(plan: Plan, begun: "dict[str, subprocess.Popen[bytes]]") -> None:
    running = _running(plan.root)
    for server in plan.servers:
        if server not in running:
            _end_leftovers(plan, server)
            _refuse_taken(plan, server)
    _start(plan, PREFECT, begun)
    if MLFLOW in plan.servers:
        registration.make_store(plan)  # while Prefect's server comes up
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
        say(f"  ending {len(left)} processes that an earlier {_title(name)} left")
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
            say(f"  waiting for {', '.join(left)}: {now - began:.0f} s")
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


def _say_next(plan: Plan, begun: "dict[str, subprocess.Popen[bytes]]") -> None:
    say(f"Started: {', '.join(map(_title, begun))}." if begun else "All of it was running already.")
    gpus = ", ".join(gpu for gpu in plan.gpus if gpu is not None)
    say(f"  Prefect   {plan.url(PREFECT)}")
    say(f"  MLflow    {plan.url(MLFLOW) if MLFLOW in plan.servers else 'as MLFLOW_TRACKING_URI says'}")
    say(f"  workers   1 for {servers.CPU_POOL}, {len(plan.gpus)} for {servers.GPU_POOL} ({gpus or 'no GPU'})")
    say("Next, with .venv/bin on your PATH:")
    say("  prefect deployment run train-arms/base --watch          data stages and the base router")
    say("  prefect deployment run train-arms/incremental --watch   what the newest VLM list makes stale")
    say("  make status                                             what runs, what is stale, who is champion")
    say("  make down                                               end all of it")
    foreign = os.environ.get("PREFECT_API_URL")
    if foreign and foreign != plan.api_url:
        say(
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
        num = _end(root, names=None)
        for path in (root / processes.FOLDER).glob("*.json"):
            path.unlink(missing_ok=True)
        addresses.remove(root)
        still = [port for port in sorted(ports) if _is_open(port)]
    if still:
        raise ServiceError(f"something that `make up` did not start listens on {HOST}, port {still[0]}")
    closed = f"; closed: {', '.join(f'port {port}' for port in sorted(ports))}" if ports else ""
    say(f"{num} processes ended{closed}. Nothing of this checkout runs any more." if num else "Nothing was running.")


def _end(root: Path, *, names: set[str] | None) -> int:
    """End services with all that they began; workers first, so that runs under way can tell the server.

    Args:
        root: the checkout.
        names: of the services; None for all, recorded or not.

    Returns:
        How many processes there were.
    """
    kept = processes.family(processes.marked(root, names=names))  # also what carries no mark, while it has a parent
    running = _running(root)
    worker_pids = {service.pid for name, service in running.items() if name.startswith("worker")}
    workers = [process for process in kept if process.pid in worker_pids]
    api_url = f"http://{HOST}:{running[PREFECT].port}/api" if PREFECT in running else None
    num_runs = under_way.end_runs(root, names=names, api_url=api_url, workers=workers, each_wait=_say_wait)
    if num_runs:
        runs = "1 flow run" if num_runs == 1 else f"{num_runs} flow runs"
        say(f"  ended {runs} under way; the next run goes on from what is finished")

    def rest() -> list[psutil.Process]:
        return list({process.pid: process for process in [*kept, *processes.marked(root, names=names)]}.values())

    processes.end(workers, rest=lambda: workers, patience_s=_CLOSE_S)
    processes.end(rest(), rest=rest, patience_s=_CLOSE_S)
    return len(kept)


def _say_wait(waited_s: float, num_left: int) -> None:
    if waited_s >= _SAY_S and int(waited_s) % int(_SAY_S) == 0:
        say(f"  waiting for stages under way to end ({num_left} processes): {waited_s:.0f} s")


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
        say("another make up or make down works in this folder; waiting for it")
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
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _raise_stopped)
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
