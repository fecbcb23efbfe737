"""Stage register through MLflow's own server, which goes away at bad moments, and with PostgreSQL as the store."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from arms_model.errors import StorageError
from arms_model.registry import MAX_DESCRIPTION, Registry
from tasks import register
from tasks.common import championship
from tasks.common.registering import LOCK
from tests.conftest import Tree
from tests.servers import MlflowServer, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = "arms-router"


def bare_copy(tree: Tree, folder: Path) -> Tree:
    """A copy without any record of its runs."""
    shutil.copytree(tree.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow", "cache", "registry"))
    return Tree(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def bare_tree(finished_tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return bare_copy(finished_tree, tmp_path_factory.mktemp("bare") / "tree")


def open_registry(tree: Tree, server: MlflowServer) -> Registry:
    return Registry(server.url, model=MODEL, lock=tree.folder / LOCK)


def num_versions(server: MlflowServer) -> int:
    """Straight from the server's file: a server that is about to be killed is not asked."""
    with sqlite3.connect(f"file:{server.database}?mode=ro", uri=True) as connection:
        return int(connection.execute("SELECT count(*) FROM model_versions").fetchone()[0])


def start_registering(tree: Tree, server: MlflowServer) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["python", "-m", "tasks.register"], cwd=tree.folder, text=True, stderr=subprocess.PIPE,
        env=tree.environment() | {"MLFLOW_TRACKING_URI": server.url},
    )  # fmt: skip


def test_killed_command_and_killed_server_leave_no_version_twice(bare_tree: Tree, server: MlflowServer) -> None:
    with start_registering(bare_tree, server) as killed:
        wait_until(lambda: num_versions(server) >= 1, seconds=120)
        os.kill(killed.pid, signal.SIGKILL)
    with start_registering(bare_tree, server) as left_alone:
        wait_until(lambda: num_versions(server) >= 2, seconds=120)
        server.kill()
        _, said = left_alone.communicate(timeout=180)
    assert left_alone.returncode == 1, said
    assert f"MLflow at {server.url}" in said
    assert "Traceback" not in said
    server.start()
    for _ in range(2):
        result = bare_tree.run("python", "-m", "tasks.register", MLFLOW_TRACKING_URI=server.url)
        assert result.returncode == 0, result.stderr
    versions = open_registry(bare_tree, server).versions()
    assert len(versions) == len({version.digest for version in versions}) == 4
    assert [version.strategy for version in versions if "champion" in version.aliases] == ["base"]
    assert len(open_registry(bare_tree, server).history().entries) == 1


def test_version_of_a_server_is_verified_and_loaded(bare_tree: Tree, server: MlflowServer) -> None:
    result = bare_tree.run("python", "-m", "tasks.register", "verify", MLFLOW_TRACKING_URI=server.url)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("all files are what was registered") == 4


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")  # MLflow about its own classes
def test_pyfunc_from_a_server_and_its_scoring_give_what_our_own_loading_gives(
    bare_tree: Tree, server: MlflowServer
) -> None:
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    image = next((bare_tree.folder / "queries/images").rglob("*.png"))
    number = open_registry(bare_tree, server).find("challenger").number
    (ours,) = open_registry(bare_tree, server).load("challenger").answer(["How many squares?"], [image])
    mlflow.set_tracking_uri(server.url)
    try:
        model = mlflow.pyfunc.load_model(f"models:/{MODEL}/{number}")
    finally:
        mlflow.set_tracking_uri(None)
    (row,) = model.predict(pd.DataFrame({"question": ["How many squares?"], "image_path": [str(image)]})).to_dict(
        "records"
    )
    assert (row["vlm"], row["reason"]) == (ours.vlm, ours.reason)
    assert row["confidences"] == pytest.approx(ours.confidences, abs=1e-6)
    record = {"question": "How many squares?", "image": base64.b64encode(image.read_bytes()).decode()}
    asked = {"dataframe_records": [record | {"candidates": ["toy-big", "toy-weak-1b"]}]}
    reply = TestClient(scoring_server.init(model)).post("/invocations", json=asked)
    assert reply.status_code == 200, reply.text
    (served,) = reply.json()["predictions"]
    assert served["confidences"] == pytest.approx(
        {vlm: ours.confidences[vlm] for vlm in ("toy-big", "toy-weak-1b")}, abs=1e-6
    )
    assert served["vlm"] in ("toy-big", "toy-weak-1b")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("python_model.pkl", "'python_model.pkl' does not belong there"),
        ("artifacts/served/base/weights.pkl", "'artifacts/served/base/weights.pkl' does not belong there"),
        ("artifacts/more/x.bin", "'artifacts/more' does not belong there"),
    ],
)
def test_file_that_a_server_holds_besides_is_refused_unread(
    name: str, words: str, bare_tree: Tree, server: MlflowServer
) -> None:
    folder = artifacts_of(server, "1")
    added = folder / name
    added.parent.mkdir(exist_ok=True)
    added.write_bytes(b"\x80\x04.")
    try:
        with pytest.raises(StorageError, match=words):
            open_registry(bare_tree, server).load("1")
    finally:
        added.unlink()
        if added.parent.name == "more":
            added.parent.rmdir()


def test_link_and_changed_byte_on_a_server_are_refused(bare_tree: Tree, server: MlflowServer, tmp_path: Path) -> None:
    path = artifacts_of(server, "1") / "artifacts/served/base/weights.safetensors"
    content = path.read_bytes()
    (tmp_path / "other").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    path.unlink()
    path.symlink_to(tmp_path / "other")
    try:
        with pytest.raises(StorageError, match=r"weights\.safetensors"):
            open_registry(bare_tree, server).load("1")
    finally:
        path.unlink()
        path.write_bytes(content)


def artifacts_of(server: MlflowServer, number: str) -> Path:
    """Where the server keeps a version's files."""
    source = MlflowClient(tracking_uri=server.url).get_model_version(MODEL, number).source
    model_id = source.split("/")[-2]
    (folder,) = server.database.parent.rglob(f"{model_id}/artifacts")
    return folder


def test_postgresql_keeps_versions_with_the_longest_card_and_the_history(
    finished_tree: Tree, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = bare_copy(finished_tree, tmp_path / "tree")
    monkeypatch.chdir(tree.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres)
    register.body()
    register.body()
    registry = Registry(postgres, model=MODEL, lock=tree.folder / LOCK)
    assert [version.number for version in registry.versions()] == [1, 2, 3, 4]
    client = MlflowClient(tracking_uri=postgres, registry_uri=postgres)
    client.update_model_version(MODEL, "1", "é" * MAX_DESCRIPTION)  # PostgreSQL refuses one more
    championship.promote(number=2, why="é" * 1000, force=True, yes=True)
    championship.rollback(why="back")
    history = registry.history()
    assert [entry.to_version for entry in history.entries] == [1, 2, 1]
    assert history.problems == ()
    register.verify("all")
