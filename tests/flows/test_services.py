"""`make up` and `make down` with real servers and workers: started once, repaired after kills, ended without trace."""

import os
import signal
import socket
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows import processes, servers
from flows.overview import flow_runs
from flows.under_way import report_ended
from tests.flows.conftest import ServicesTree, write_services_tree
from tests.servers import free_port, wait_until

pytestmark = pytest.mark.slow
SERVICES = ("mlflow-server", "prefect-server", "worker-cpu", "worker-gpu-0")


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _ask(tree: ServicesTree, path: str, **body: object) -> Any:
    return servers.ask(f"http://127.0.0.1:{tree.prefect_port}/api", "POST", path, body)


def _add_run(tree: ServicesTree, name: str, state: str) -> str:
    """A flow run of which the server knows nothing but its state; gives its id."""
    flow = _ask(tree, "flows/", name="probe")["id"]
    run_id: str = _ask(tree, "flow_runs/", flow_id=flow, name=name)["id"]
    _ask(tree, f"flow_runs/{run_id}/set_state", state={"type": state, "name": state.title()}, force=True)
    return run_id


def test_second_up_starts_nothing(served_tree: ServicesTree) -> None:
    before = served_tree.pids()
    result = served_tree.up("--gpu-workers", "1")  # ports are remembered
    assert result.returncode == 0, result.stderr
    assert "All of it was running already." in result.stdout
    assert f"http://127.0.0.1:{served_tree.prefect_port}" in result.stdout
    assert served_tree.pids() == before
    assert set(before) == set(SERVICES)


def test_up_registers_pools_deployments_and_automations_once(served_tree: ServicesTree) -> None:
    api = f"http://127.0.0.1:{served_tree.prefect_port}/api"
    again = served_tree.run("python", "-m", "flows.pools", "--gpu-slots", "1", PREFECT_API_URL=api)
    assert again.returncode == 0, again.stderr
    assert {pool["name"]: pool["type"] for pool in _ask(served_tree, "work_pools/filter")} == {
        "arms-cpu": "process",
        "arms-gpu": "process",
    }
    queues = {
        str(queue["work_pool_name"]): queue["concurrency_limit"] for queue in _ask(served_tree, "work_queues/filter")
    }
    assert queues == {"arms-cpu": None, "arms-gpu": 1}
    names = [automation["name"] for automation in _ask(served_tree, "automations/filter")]
    assert sorted(map(str, names)) == ["crash runs that never begin", "crash zombie runs"]
    deployments = {str(deployment["name"]): deployment for deployment in _ask(served_tree, "deployments/filter")}
    assert {"base", "incremental", "full", "run"} <= set(deployments)
    for mode in ("base", "incremental", "full"):
        assert deployments[mode]["parameters"] == {"mode": mode}
        assert deployments[mode]["work_pool_name"] == "arms-cpu"
        assert dict(deployments[mode]["global_concurrency_limit"])["limit"] == 1
        assert dict(deployments[mode]["concurrency_options"]) == {
            "collision_strategy": "ENQUEUE",
            "grace_period_seconds": None,
        }
    assert deployments["run"]["work_pool_name"] == "arms-gpu"
    assert str(served_tree.folder) not in str(deployments)  # another checkout's worker runs them in its own folder


def test_all_listen_on_loopback_only(served_tree: ServicesTree) -> None:
    listening = {
        connection.laddr
        for process in processes.marked(served_tree.folder)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {served_tree.prefect_port, served_tree.mlflow_port} <= {address.port for address in listening}


def test_commands_typed_in_the_folder_find_the_server(served_tree: ServicesTree) -> None:
    result = served_tree.run("prefect", "deployment", "ls")
    assert result.returncode == 0, result.stderr
    assert "train-arms/incremental" in result.stdout
    assert not list(served_tree.home.iterdir())


@pytest.mark.parametrize("name", SERVICES)
def test_up_starts_again_what_was_killed(served_tree: ServicesTree, name: str) -> None:
    before = served_tree.pids()
    os.kill(before[name], signal.SIGKILL)
    result = served_tree.up()
    assert result.returncode == 0, result.stdout + result.stderr
    after = served_tree.pids()
    assert {other for other in SERVICES if after[other] != before[other]} == {name}
    assert all(
        processes.is_running(service, root=served_tree.folder)
        for service in processes.recorded(served_tree.folder).values()
    )
    assert _is_open(served_tree.prefect_port)
    assert _is_open(served_tree.mlflow_port)


def test_running_server_is_not_moved(served_tree: ServicesTree) -> None:
    result = served_tree.up("--prefect-port", str(served_tree.prefect_port + 1))
    assert result.returncode == 2
    assert f"runs on port {served_tree.prefect_port} already" in result.stderr
    assert "Traceback" not in result.stderr


def test_run_whose_process_is_gone_is_reported_unless_it_ended_well(served_tree: ServicesTree) -> None:
    runs = {state: _add_run(served_tree, state.lower(), state) for state in ("RUNNING", "PENDING", "COMPLETED")}
    api = f"http://127.0.0.1:{served_tree.prefect_port}/api"
    report_ended(runs.values(), api_url=api)
    found = {run["name"]: (run["state"], run["message"]) for run in flow_runs(api)}
    assert found["running"] == found["pending"] == ("Crashed", "its process was ended by make down or make up")
    assert found["completed"] == ("Completed", None)


def test_prefects_pages_are_served_from_the_project_folder(served_tree: ServicesTree) -> None:
    page = httpx.get(
        f"http://127.0.0.1:{served_tree.prefect_port}/", trust_env=False, follow_redirects=True, timeout=60
    )
    assert page.is_success
    assert "<title>Prefect" in page.text
    assert list((served_tree.folder / ".arms/prefect/ui").rglob("index.html"))


def test_status_shows_what_runs(served_tree: ServicesTree) -> None:
    _add_run(served_tree, "under-way", "RUNNING")
    result = served_tree.run("python", "-m", "flows.overview")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(" up     since ") == len(SERVICES)
    assert "probe/under-way" in result.stdout
    assert "arms-cpu: 1 online; arms-gpu: 1 online" in result.stdout
    assert f"http://127.0.0.1:{served_tree.mlflow_port}" in result.stdout


def test_second_checkout_has_services_of_its_own_and_a_crash_leaves_nothing(
    served_tree: ServicesTree, tmp_path: Path
) -> None:
    tree, first = write_services_tree(tmp_path), served_tree.pids()
    ports = ("--mlflow-port", str(tree.mlflow_port), "--prefect-port")
    refused = tree.up(*ports, str(served_tree.prefect_port))
    assert refused.returncode == 2
    assert f"port {served_tree.prefect_port}" in refused.stderr
    assert f"make up PREFECT_PORT={served_tree.prefect_port + 1}" in refused.stderr
    assert tree.alive() == []

    result = tree.up(*ports, str(tree.prefect_port), MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert set(tree.pids()) == {"prefect-server", "worker-cpu", "worker-gpu-0"}  # the user's own MLflow is used

    os.kill(tree.pids()["prefect-server"], signal.SIGKILL)
    result = tree.up(*ports, str(other := free_port()), MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "worker-cpu was started with another PREFECT_API_URL; it is started again" in result.stdout
    assert f'url = "http://127.0.0.1:{other}/api"' in (tree.folder / "prefect.toml").read_text()

    for name, pid in tree.pids().items():  # everything crashes, and nobody knows any more what there was
        os.kill(pid, signal.SIGKILL)
        (tree.folder / f".arms/services/{name}.json").unlink()
    assert tree.down().returncode == 0
    assert tree.alive() == []
    assert not _is_open(other)
    assert served_tree.pids() == first
    assert len(processes.marked(served_tree.folder)) >= len(first)


def test_up_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    tree = write_services_tree(tmp_path)
    command = ["python", "-m", "flows.services", "up", "--prefect-port", str(tree.prefect_port)]
    starting = subprocess.Popen(command, cwd=tree.folder, env=tree.environment(), stdout=subprocess.PIPE, text=True)
    wait_until(tree.alive, seconds=60)
    starting.send_signal(signal.SIGTERM)
    said, _ = starting.communicate(timeout=90)
    assert "the start did not succeed; ending what was started" in said
    assert starting.returncode == 128 + signal.SIGTERM
    assert tree.alive() == []


def test_down_stops_a_run_under_way_and_leaves_no_trace(served_tree: ServicesTree) -> None:
    tree = served_tree  # the last of this module that needs it
    asked = tree.run("prefect", "deployment", "run", "train-arms/base")
    assert asked.returncode == 0, asked.stderr
    wait_until(lambda: any("-m tasks." in command for command in tree.alive()))

    result = tree.down()
    assert result.returncode == 0, result.stderr
    assert "ended 1 flow run under way" in result.stdout
    assert tree.alive() == []
    assert not _is_open(tree.prefect_port)
    assert not _is_open(tree.mlflow_port)
    assert not (tree.folder / "prefect.toml").exists()
    assert not list((tree.folder / ".arms/services").glob("*.json"))
    with closing(sqlite3.connect(tree.folder / ".arms/prefect/prefect.db")) as database:
        rows = database.execute("SELECT state_type FROM flow_run WHERE deployment_id IS NOT NULL").fetchall()
    assert rows == [("CRASHED",)]
    assert not list(tree.home.iterdir())
    assert "Nothing was running." in tree.down().stdout
