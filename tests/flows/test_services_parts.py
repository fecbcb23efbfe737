"""What `make up` and `make down` are made of: processes that are found again, plans, refusals, the pull step."""

import json
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows import addresses, processes, registration, servers, services
from flows.steps import enter_checkout
from tests.conftest import CHECKOUT, MakeTree
from tests.servers import free_port, wait_until

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"

Start = Callable[..., "tuple[processes.Service, subprocess.Popen[bytes]]"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    """Start a service `toy` that says when it is up; all are ended after the test."""
    begun = []

    def start_toy(code: str = PARENT) -> tuple[processes.Service, "subprocess.Popen[bytes]"]:
        found = processes.start("toy", [sys.executable, "-c", code], root=root, environment=os.environ)
        begun.append(found[1])
        wait_until(lambda: "up" in processes.log_path(root, "toy").read_text(), seconds=30)
        return found

    yield start_toy
    processes.end([], rest=lambda: processes.marked(root), patience_s=0)
    for process in begun:
        process.wait()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "CUDA_VISIBLE_DEVICES", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)


def _plan(root: Path, **asked: int | None) -> servers.Plan:
    wanted = {"prefect_port": None, "mlflow_port": None, "num_gpu_workers": None} | asked
    return services.make_plan(root, **wanted)


def test_started_process_is_found_again_from_its_record(root: Path, start: Start) -> None:
    service, process = start()
    assert processes.recorded(root) == {"toy": service}
    assert processes.is_running(service, root=root)
    assert os.getsid(process.pid) == process.pid  # the shell that ends takes its own session along, not this one
    assert len(processes.marked(root)) == 2  # what it began is ours as well


def test_lost_record_hides_no_process(root: Path, start: Start) -> None:
    _, process = start()
    (root / ".arms/services/toy.json").unlink()
    process.kill()
    process.wait()
    left = processes.marked(root)
    assert len(left) == 1  # its child, which init has now
    assert processes.end(left, rest=lambda: processes.marked(root), patience_s=10) == 0
    assert processes.marked(root) == []


def test_what_ignores_sigterm_is_killed(root: Path, start: Start) -> None:
    start(STUBBORN)
    assert processes.end(processes.marked(root), rest=lambda: processes.marked(root), patience_s=0.5) == 1
    assert processes.marked(root) == []


def test_reused_process_number_is_no_service(root: Path, start: Start) -> None:
    me = psutil.Process()
    stranger = processes.Service(name="toy", pid=me.pid, started_at=me.create_time(), command=[])
    assert not processes.is_running(stranger, root=root)  # the start time is right, the mark is missing
    service, _ = start()
    earlier = processes.Service(name="toy", pid=service.pid, started_at=service.started_at - 3600, command=[])
    assert not processes.is_running(earlier, root=root)


def test_another_checkouts_processes_are_strangers(start: Start, tmp_path_factory: pytest.TempPathFactory) -> None:
    start()
    assert processes.marked(tmp_path_factory.mktemp("other")) == []


def test_broken_record_is_no_service(root: Path) -> None:
    folder = root / processes.FOLDER
    folder.mkdir(parents=True)
    (folder / "toy.json").write_text('{"name": "toy"')
    (folder / "services.json").write_text('{"prefect": {"url": "http://127.0.0.1:4200"}}')
    assert processes.recorded(root) == {}


def test_ports_default_to_those_of_the_last_time(root: Path) -> None:
    assert (_plan(root).prefect_port, _plan(root).mlflow_port) == (4200, 5000)
    old = processes.Service(name="prefect-server", pid=2**22 + 1, started_at=0.0, command=[], port=4321)
    processes.write_whole(root / processes.FOLDER / "prefect-server.json", json.dumps(vars(old)))
    assert _plan(root).prefect_port == 4321
    assert _plan(root, prefect_port=4400).prefect_port == 4400  # it does not run, so it may move


def test_addresses_are_written_and_taken_back(root: Path) -> None:
    assert addresses.write(_plan(root), registered="d")
    assert tomllib.loads((root / "prefect.toml").read_text()) == {"api": {"url": "http://127.0.0.1:4200/api"}}
    assert addresses.read(root) == {
        "prefect": {"url": "http://127.0.0.1:4200"},
        "mlflow": {"url": "http://127.0.0.1:5000"},
        "registered": "d",
        "services": ["prefect-server", "mlflow-server", "worker-cpu", "worker-gpu-0"],
    }
    addresses.remove(root)
    assert not (root / "prefect.toml").exists()
    assert addresses.read(root) == {}


def test_prefect_toml_of_the_users_own_is_left_alone(root: Path) -> None:
    (root / "prefect.toml").write_text("[api]\nurl = 'http://elsewhere/api'\n")
    assert not addresses.write(_plan(root), registered="d")
    addresses.remove(root)
    assert "elsewhere" in (root / "prefect.toml").read_text()


def test_registration_depends_on_flows_deployments_and_gpus(make_tree: MakeTree) -> None:
    folder = make_tree().folder
    plans = [_plan(folder, num_gpu_workers=number) for number in (1, 2)]
    first, more = map(registration.digest, plans)
    assert first != more
    with (folder / "infra/prefect.yaml").open("a") as handle:
        handle.write("# changed\n")
    assert registration.digest(plans[0]) != first


@pytest.mark.parametrize(
    ("visible", "asked", "expected"),
    [
        ("0,1", None, ("0", "1")),
        ("GPU-abc", None, ("GPU-abc",)),
        ("0,1", 1, ("0",)),
        ("", None, (None,)),
        ("-1", 2, (None, None)),
        ("0", 0, ()),
    ],
)
def test_each_gpu_has_one_worker(
    root: Path, monkeypatch: pytest.MonkeyPatch, visible: str, asked: int | None, expected: tuple[str | None, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    plan = _plan(root, num_gpu_workers=asked)
    assert plan.gpus == expected
    seen = [servers.environment(plan, name).get("CUDA_VISIBLE_DEVICES") for name in plan.workers[1:]]
    assert seen == [visible if gpu is None else gpu for gpu in expected]


def test_more_workers_than_gpus_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(services.ServiceError, match="2 GPU workers were asked for and there are 1 GPUs"):
        _plan(root, num_gpu_workers=2)


def test_gpus_are_those_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: One (UUID: GPU-1)'\necho 'GPU 1: Two (UUID: GPU-2)'\necho '  MIG 1g'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert servers.gpus_here() == ("0", "1")


def test_password_of_the_record_is_in_no_command(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://arms:secret@host/db")
    plan = _plan(root)
    assert plan.servers == ("prefect-server",)
    for name in (*plan.servers, *plan.workers):
        assert "secret" not in " ".join(servers.command(plan, name))
    assert "secret" in servers.environment(plan, "worker-cpu")["MLFLOW_TRACKING_URI"]


def test_settings_of_another_prefect_server_are_left_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_API_URL", "PREFECT_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "DEBUG")
    environment = servers.environment(_plan(root), "worker-cpu")
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert environment["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert not {"PREFECT_API_KEY", "PREFECT_PROFILE"} & set(environment)


def test_port_of_a_stranger_is_named_with_its_variable(make_tree: MakeTree) -> None:
    folder = make_tree().folder
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        result = _run(folder, "up", "--mlflow-port", str(port), "--prefect-port", str(free_port()))
    assert result.returncode == 2
    assert f"port {port}, where MLflow's server is to listen, cannot be used" in result.stderr
    assert f"make up MLFLOW_PORT={port + 1}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("verb", ["up", "down"])
def test_folder_that_is_no_checkout_is_refused(tmp_path: Path, verb: str) -> None:
    result = _run(tmp_path, verb, PYTHONPATH=str(CHECKOUT))
    assert result.returncode == 2
    assert "is no checkout of this project" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("--prefect-port", "0"), ("--mlflow-port", "many"), ("--gpu-workers", "-1")])
def test_senseless_numbers_are_refused(words: tuple[str, str]) -> None:
    result = _run(CHECKOUT, "up", *words)
    assert result.returncode == 2
    assert f"argument {words[0]}: invalid" in result.stderr


def _run(folder: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flows.services", *words]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_pull_step_enters_the_workers_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARMS_ROOT", str(CHECKOUT))
    assert enter_checkout() == {"directory": str(CHECKOUT)}
    assert Path.cwd() == CHECKOUT


def test_pull_step_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ARMS_ROOT", raising=False)
    with pytest.raises(RuntimeError, match="ARMS_ROOT is not set"):
        enter_checkout()
    monkeypatch.setenv("ARMS_ROOT", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"no dvc\.yaml, no params\.yaml"):
        enter_checkout()


def test_tag_of_a_process_is_told_from_one_of_a_stranger_with_its_number() -> None:
    mine = processes.process_tag()
    *place, pid, started = mine.split(":")
    assert not processes.is_tag_of_the_dead(mine)
    assert not processes.is_tag_of_the_dead(":".join([*place, pid, str(int(started) + 5)]))  # the clock was set
    assert processes.is_tag_of_the_dead(":".join([*place, pid, str(int(started) - 3600)]))  # the number was given again
    assert not processes.is_tag_of_the_dead(":".join(["process", "elsewhere", pid, "0"]))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert processes.is_tag_of_the_dead(":".join([*place, str(ended.pid), started]))
    for strange in ("", "nightly", "process:only"):
        assert not processes.is_tag_of_the_dead(strange)
