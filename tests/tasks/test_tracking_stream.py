"""Curves on record while training runs; whatever MLflow does, training ends as it would without it."""

import contextlib
import csv
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tasks.common.files import read_json
from tasks.common.stage_inputs import StageFiles
from tests.conftest import Tree
from tests.servers import MlflowServer, wait_until

STAGE = "train_base"
COMPLETE = "from tasks.common.tracking import complete_records, tracking_uri; complete_records(tracking_uri())"
LONG = {"epochs": 200, "batching": "by_query", "batch_size": 4, "learning_rate": 0.0001, "checkpoint_every_s": 0.2}
SAID = "Training does not wait for it; `python -m tasks.register` completes the record."


@dataclass
class Training:
    """A train stage as a process, with pipes as a shell or a scheduler would have them."""

    tree: Tree
    process: subprocess.Popen[str]

    def followers(self) -> list[int]:
        """Processes that follow this tree's journals."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                command, folder = (place / "cmdline").read_bytes(), (place / "cwd").readlink()
            except OSError:
                continue
            if b"tasks.common.following" in command and folder == self.tree.folder:
                found.append(int(place.name))
        return found

    def state(self) -> dict[str, Any]:
        path = self.tree.folder / f".arms/tracking/{STAGE}.state.json"
        return dict(read_json(path)) if path.exists() else {}

    def num_epochs(self) -> int:
        """Epochs in the journal."""
        path = self.tree.folder / f".arms/tracking/{STAGE}.jsonl"
        return path.read_text().count('"epoch"') if path.exists() else 0

    @contextlib.contextmanager
    def held(self, *, beyond: int = 2) -> Iterator[None]:
        """Hold the training after more than `beyond` epochs until the block is done: its child may take its time."""
        checkpoint = self.tree.folder / f".arms/checkpoints/{STAGE}/member0.safetensors"
        wait_until(lambda: self.num_epochs() > beyond and checkpoint.exists())
        self.process.send_signal(signal.SIGSTOP)
        try:
            assert self.process.poll() is None
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def end(self, *, by: signal.Signals | None = None) -> tuple[int, str]:
        """Wait for its end, or bring it about; the exit code and what it said. Its pipes must be free then."""
        if by is not None:
            self.process.send_signal(by)
        said = self.process.communicate(timeout=120)[1]
        return self.process.returncode, said

    def kill(self) -> None:
        """Leave nothing behind, whatever the test has found."""
        self.process.kill()
        self.process.communicate()


Start = Callable[[Tree, str | None], Training]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start stage train_base in a tree, with MLflow at a URI."""
    started: list[Training] = []

    def call(tree: Tree, uri: str | None) -> Training:
        started.append(_start(tree, uri))
        return started[-1]

    yield call
    for training in started:
        training.kill()


def _start(tree: Tree, uri: str | None) -> Training:
    for left in (tree.folder / ".arms").glob("tracking/*"):  # so that what is seen there is this training's
        left.unlink()
    environment = tree.environment() | ({"MLFLOW_TRACKING_URI": uri} if uri else {})
    pipe = subprocess.PIPE
    command = ["python", "-m", f"tasks.{STAGE}"]
    process = subprocess.Popen(command, cwd=tree.folder, env=environment, stdout=pipe, stderr=pipe, text=True)
    return Training(tree, process)


@pytest.fixture(scope="module")
def ready(finished_tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree in which train_base takes long enough to look at, with curves streamed; copied by each test."""
    folder = tmp_path_factory.mktemp("streams") / "tree"
    shutil.copytree(finished_tree.folder, folder, symlinks=True)
    tree = Tree(folder)
    shutil.rmtree(folder / "models" / STAGE)
    params = tree.params()
    params["tracking"] = {"stream": True}
    params[STAGE]["training"] = LONG
    tree.write_params(params)
    return tree


@pytest.fixture
def tree(ready: Tree, tmp_path: Path) -> Tree:
    shutil.copytree(ready.folder, tmp_path / "tree", symlinks=True)
    return Tree(tmp_path / "tree")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def hanging() -> Iterator[str]:
    """The URL of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def _runs(server: MlflowServer) -> Any:
    client = MlflowClient(tracking_uri=server.url)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return [run for run in client.search_runs(experiments) if run.data.tags.get("arms.kind") == "training"]


def _num_points(server: MlflowServer) -> int:
    client = MlflowClient(tracking_uri=server.url)
    names = [f"train_loss/member{number}" for number in range(2)]
    return sum(
        len(client.get_metric_history(run.info.run_id, name))
        for run in _runs(server)
        for name in names
        if name in run.data.metrics
    )


@pytest.fixture(scope="module")
def untracked(ready: Tree, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of what the stage writes without any MLflow."""
    folder = tmp_path_factory.mktemp("untracked") / "tree"
    shutil.copytree(ready.folder, folder, symlinks=True)
    tree = Tree(folder)
    params = tree.params()
    params["tracking"] = {"stream": False}
    tree.write_params(params)
    assert tree.stage(STAGE).returncode == 0
    return _written(tree)


def _written(tree: Tree) -> dict[str, str]:
    places = (f"models/{STAGE}", f"metrics/{STAGE}.json", f"curves/{STAGE}.csv", f"held_out/{STAGE}.parquet")
    return {f"{place}/{name}": sha256 for place in places for name, sha256 in tree.sha256(place).items()}


def _assert_complete(tree: Tree, server: MlflowServer) -> None:
    """The server has one run of the stage, finished, with each point of the curves' file once."""
    [run] = [run for run in _runs(server) if run.info.run_name == STAGE]
    assert run.info.status == "FINISHED"
    client = MlflowClient(tracking_uri=server.url)
    with (tree.folder / f"curves/{STAGE}.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    for member in ("0", "1"):
        expected = [(int(float(row["epoch"])), float(row["train_loss"])) for row in rows if row["member"] == member]
        points = client.get_metric_history(run.info.run_id, f"train_loss/member{member}")
        assert sorted((point.step, point.value) for point in points) == expected
    assert run.data.metrics["num_vlms"] == 4


def test_stopped_resumed_and_orphaned_training_is_one_complete_run(
    start: Start, tree: Tree, server: MlflowServer, untracked: dict[str, str]
) -> None:
    # live points; Ctrl-C; resumed in the same run; server killed during training; server back afterwards
    first = start(tree, server.url)
    with first.held():
        wait_until(lambda: _num_points(server) >= 3)
        [run] = _runs(server)
        assert (run.info.run_name, run.info.status) == (STAGE, "RUNNING")
        assert run.data.params["training.epochs"] == "200"
        assert run.data.tags["arms.recorded_by"] == "training"
    code, said = first.end(by=signal.SIGINT)
    assert (code, first.followers()) == (130, [])
    assert SAID not in said  # MLflow had answered

    second = start(tree, server.url)
    num_points = _num_points(server)
    with second.held(beyond=num_points):
        wait_until(lambda: _num_points(server) > num_points)
        assert [again.info.run_id for again in _runs(server)] == [run.info.run_id]
        server.kill()
    with second.held(beyond=second.num_epochs()):
        wait_until(lambda: second.state().get("problem"))
    code, said = second.end()
    assert code == 0
    assert "resumed at epoch" in said
    assert said.count(SAID) == 1
    assert f"MLflow takes no curves at the moment: {server.url}: nothing listens there" in said
    assert second.followers() == []
    assert _written(tree) == untracked

    away = tree.run("python", "-c", COMPLETE, MLFLOW_TRACKING_URI=server.url)
    assert away.returncode != 0
    assert "EndpointError" in away.stderr
    server.start()
    for _ in range(2):
        done = tree.run("python", "-c", COMPLETE, MLFLOW_TRACKING_URI=server.url)
        assert done.returncode == 0, done.stderr
        _assert_complete(tree, server)
        assert [again.info.run_id for again in _runs(server) if again.info.run_name == STAGE] == [run.info.run_id]


def test_training_that_never_saw_its_server_is_completed_once_it_is_there(
    start: Start, tree: Tree, tmp_path: Path, untracked: dict[str, str]
) -> None:
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")  # its port is closed
    training = start(tree, server.url)
    with training.held():
        wait_until(lambda: training.state().get("problem"))
    code, said = training.end()
    assert code == 0
    assert said.count(SAID) == 1
    assert f"MLflow takes no curves at the moment: {server.url}: nothing listens there" in said
    assert training.followers() == []
    assert _written(tree) == untracked
    try:
        server.start()
        for _ in range(2):
            done = tree.run("python", "-c", COMPLETE, MLFLOW_TRACKING_URI=server.url)
            assert done.returncode == 0, done.stderr
            _assert_complete(tree, server)
    finally:
        server.kill()


def test_run_is_that_of_the_params_that_training_started_with(start: Start, tree: Tree, server: MlflowServer) -> None:
    server.kill()
    training = start(tree, server.url)
    with training.held():
        wait_until(lambda: training.state().get("problem"))
        expected = StageFiles(tree.folder).while_running(STAGE).key
        params = tree.params()
        params["queries"]["folder"], params[STAGE]["training"] = "elsewhere", LONG | {"epochs": 201}
        tree.write_params(params)
        server.start()
        wait_until(lambda: _num_points(server) >= 3)
        [run] = _runs(server)
    training.end(by=signal.SIGTERM)
    assert run.data.tags["arms.key"] == expected
    assert run.data.params["training.epochs"] == "200"
    experiment = MlflowClient(tracking_uri=server.url).get_experiment(run.info.experiment_id)
    assert "elsewhere" not in experiment.name


def test_uri_of_no_store_is_said_once_and_stops_no_training(
    start: Start, tree: Tree, untracked: dict[str, str]
) -> None:
    training = start(tree, "mysql://host/arms")
    with training.held():
        wait_until(lambda: training.state().get("problem"))
    code, said = training.end()
    assert code == 0
    assert said.count(SAID) == 1
    assert "at the moment: MLFLOW_TRACKING_URI: 'mysql://host/arms' is no store that can be used here" in said
    assert _written(tree) == untracked


def test_training_ends_while_the_server_still_hangs(
    start: Start, tree: Tree, hanging: str, untracked: dict[str, str]
) -> None:
    training = start(tree, hanging)
    code, said = training.end()
    assert code == 0
    assert said.count(SAID) == 1
    assert training.followers() == []
    assert _written(tree) == untracked


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_is_left_however_the_stage_is_stopped(
    start: Start, tree: Tree, hanging: str, how: signal.Signals
) -> None:
    training = start(tree, hanging)
    with training.held():
        wait_until(training.followers)
    code, _ = training.end(by=how)  # its pipes close: the child holds none of them
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[how]
    wait_until(lambda: not training.followers(), seconds=5)


def test_full_store_is_said_once_while_training_goes_on(start: Start, tree: Tree, server: MlflowServer) -> None:
    client = MlflowClient(tracking_uri=server.url)
    client.create_experiment("so that the server has made its tables")
    server.kill()
    server.start(is_full=True)
    training = start(tree, server.url)
    with training.held():
        wait_until(lambda: training.state().get("problem"))
    code, said = training.end(by=signal.SIGTERM)
    assert code == 143
    assert said.count(SAID) == 1
    assert f"MLflow takes no curves at the moment: {server.url}: " in said


def test_journal_that_cannot_be_written_stops_no_training(start: Start, tree: Tree, untracked: dict[str, str]) -> None:
    place = tree.folder / ".arms/tracking"
    shutil.rmtree(place, ignore_errors=True)
    place.write_text("a file where the folder should be")
    code, said = start(tree, None).end()
    assert code == 0
    assert said.count(SAID) == 1
    assert "the curves cannot be streamed to MLflow (File exists)" in said
    assert _written(tree) == untracked


def test_unknown_setting_of_tracking_is_refused_by_its_path(start: Start, tree: Tree) -> None:
    params = tree.params()
    params["tracking"] = {"streams": True}
    tree.write_params(params)
    code, said = start(tree, None).end()
    assert code == 2
    assert "tracking.streams" in said


def test_child_yields_to_the_training(start: Start, tree: Tree, hanging: str) -> None:
    training = start(tree, hanging)
    with training.held():
        wait_until(lambda: [os.getpriority(os.PRIO_PROCESS, pid) for pid in training.followers()] == [10])
    training.end(by=signal.SIGTERM)
