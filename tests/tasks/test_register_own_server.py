"""One store, now through MLflow's server and now as the bare file: whoever comes next finds all that is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks import register
from tasks.common import championship
from tests.conftest import Tree
from tests.servers import MlflowServer
from tests.tasks.registering import MODEL, client, promote, versions

if TYPE_CHECKING:
    from collections.abc import Iterator

STORE = Path(".arms/mlflow")
pytestmark = pytest.mark.slow


@pytest.fixture
def tree(finished_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A tree without any record of its runs; it is the current folder."""
    shutil.copytree(
        finished_tree.folder, tmp_path / "tree", symlinks=True, ignore=shutil.ignore_patterns("mlflow", "registry")
    )
    monkeypatch.chdir(tmp_path / "tree")
    (tmp_path / "tree" / STORE).mkdir(parents=True)
    return Tree(tmp_path / "tree")


@pytest.fixture
def server(tree: Tree) -> Iterator[MlflowServer]:
    """MLflow's server over the tree's own store; not started."""
    server = MlflowServer(tree.folder / STORE)
    yield server
    server.kill()


def _register(tree: Tree) -> None:
    """The stage, in a process of its own: MLflow remembers in a process how it reached a run's artifacts."""
    result = tree.stage("register")
    assert result.returncode == 0, result.stderr


def _change_tau(tau: float) -> None:
    path = Path("cascade_eval/selection.json")
    selection = json.loads(path.read_text())
    next(entry for entry in selection["strategies"] if entry["strategy"] == "base + independent")["tau"] = tau
    path.write_text(json.dumps(selection))


def _verified(capsys: pytest.CaptureFixture[str]) -> int:
    """How many versions are whole; a refused one raises."""
    capsys.readouterr()
    register.verify("all")
    return capsys.readouterr().out.count("all files are what was registered")


def _artifacts_of_runs() -> dict[str, list[str]]:
    runs = client().search_runs([experiment.experiment_id for experiment in client().search_experiments()])
    return {run.info.run_name: [file.path for file in client().list_artifacts(run.info.run_id)] for run in runs}


def test_record_made_through_the_server_goes_on_without_it_and_with_it_again(
    tree: Tree, server: MlflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    _register(tree)
    source = str(client().get_model_version(MODEL, "1").source)
    assert source.startswith("mlflow-artifacts:/")  # else nothing is shown here
    runs = _artifacts_of_runs()
    server.kill()

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert _verified(capsys) == 4
    assert _artifacts_of_runs() == runs
    promote(number=3, force=True, why="try it")
    _change_tau(0.65)
    _register(tree)
    assert [version.number for version in versions()] == [1, 2, 3, 4, 5]
    assert str(client().get_model_version(MODEL, "5").source).startswith("mlflow-artifacts:/")
    assert _verified(capsys) == 5
    source = str(client().get_model_version(MODEL, "5").source).removeprefix("mlflow-artifacts:/")
    shutil.rmtree(STORE / "artifacts" / source)
    for run in (STORE / "artifacts/1").iterdir():
        if run.name != "models":
            shutil.rmtree(run)
    _register(tree)  # puts back what is lost, of runs and of the version
    assert _verified(capsys) == 5
    assert _artifacts_of_runs() == runs
    assert not Path("mlruns").exists()

    services = Path(".arms/services/services.json")  # as `make up` writes it
    services.parent.mkdir()
    services.write_text(json.dumps({"prefect": {"url": "http://127.0.0.1:1"}, "mlflow": {"url": server.url}}))
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    assert _artifacts_of_runs() == runs
    register.verify("5")
    register.verify("champion")
    register.history()
    championship.rollback(why="back")
    before = versions()
    _register(tree)
    assert [version.digest for version in versions()] == [version.digest for version in before]
    mirrored = [json.loads(line) for line in Path(".arms/registry/history.jsonl").read_text().splitlines()]
    assert [line["entry"]["action"] for line in mirrored if line["store"] == "sqlite:///.arms/mlflow/mlflow.db"] == [
        "first", "promote", "rollback",
    ]  # fmt: skip


def test_record_made_without_the_server_goes_on_through_it(
    tree: Tree, server: MlflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _register(tree)
    runs = _artifacts_of_runs()
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    assert _verified(capsys) == 4
    assert _artifacts_of_runs() == runs
    _change_tau(0.65)
    _register(tree)
    assert _verified(capsys) == 5
    server.kill()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert _verified(capsys) == 5
