"""`make ui`: MLflow's pages on loopback, their addresses, and what is said where there is nothing to serve."""

import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, MakeTree, Tree
from tests.servers import free_port, wait_until

COMPLETE = "from tasks.common.tracking import complete_records, tracking_uri; complete_records(tracking_uri())"
MODE = "?workflowType=machine_learning"
MODULE = ("python", "-m", "tasks.common.ui", "--port")


@pytest.fixture(scope="module")
def recorded_tree(finished_tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A finished tree whose record is complete."""
    folder = tmp_path_factory.mktemp("ui") / "tree"
    shutil.copytree(finished_tree.folder, folder, symlinks=True)
    shutil.rmtree(folder / ".arms/mlflow", ignore_errors=True)
    result = Tree(folder).run("python", "-c", COMPLETE)
    assert result.returncode == 0, result.stderr
    return Tree(folder)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_pages_are_served_on_loopback_until_ctrl_c(recorded_tree: Tree, tmp_path: Path) -> None:
    port, said = free_port(), tmp_path / "said"
    environment = recorded_tree.environment() | {"PYTHONUNBUFFERED": "1"}
    with said.open("w") as out:
        process = subprocess.Popen(
            [*MODULE, str(port)], cwd=recorded_tree.folder, env=environment, stdout=out, start_new_session=True
        )
    try:
        wait_until(lambda: "Ctrl-C" in said.read_text() or process.poll() is not None)
        assert said.read_text().splitlines() == [
            f"  all experiments   http://127.0.0.1:{port}/#/experiments{MODE}",
            f"  this query set    http://127.0.0.1:{port}/#/experiments/1/runs{MODE}",
            f"  registered model  http://127.0.0.1:{port}/#/models/arms-router{MODE}",
            "Ctrl-C ends it.",
        ]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
            assert b"MLflow" in page.read()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(30) == 0
        assert not _answers(port)
    finally:
        process.kill()
        process.wait()


def test_taken_port_is_said_with_another_to_take(recorded_tree: Tree, taken: int) -> None:
    result = recorded_tree.run(*MODULE, str(taken))
    assert result.returncode == 2
    assert f"port {taken} cannot be used (Address already in use)" in result.stderr
    assert f"choose another: make ui PORT={taken + 1}" in result.stderr


def test_tree_without_a_record_is_told_what_to_run(make_tree: MakeTree) -> None:
    result = make_tree().run(*MODULE, str(free_port()))
    assert result.returncode == 1
    assert "nothing is recorded in" in result.stderr
    assert "python -m tasks.register" in result.stderr


def test_server_of_others_is_named_and_none_is_started(recorded_tree: Tree, mlflow_server: str) -> None:
    done = recorded_tree.run("python", "-c", COMPLETE, MLFLOW_TRACKING_URI=mlflow_server)
    assert done.returncode == 0, done.stderr
    result = recorded_tree.run(*MODULE, str(free_port()), MLFLOW_TRACKING_URI=mlflow_server)
    assert result.returncode == 0
    first, *pages = result.stdout.splitlines()
    assert first == "MLFLOW_TRACKING_URI names a server, which has the pages:"
    assert pages[0] == f"  all experiments   {mlflow_server}/#/experiments{MODE}"
    assert pages[1].startswith(f"  this query set    {mlflow_server}/#/experiments/")


def test_uri_of_no_store_is_said_with_what_to_write(recorded_tree: Tree) -> None:
    result = recorded_tree.run(*MODULE, str(free_port()), MLFLOW_TRACKING_URI="./mlruns")
    assert result.returncode == 2
    assert result.stderr.startswith("ui: MLFLOW_TRACKING_URI: './mlruns' is no store that can be used here; write ")


def test_make_passes_workspace_and_port_on() -> None:
    result = subprocess.run(
        ["make", "-n", "ui", "WORKSPACE=workspaces/real", "PORT=5001"], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert 'cd "workspaces/real" && python -m tasks.common.ui --port 5001' in result.stdout
