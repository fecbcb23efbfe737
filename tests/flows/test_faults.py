"""What stands in a run's way: DVC's lock, ten starts at once, MLflow or the remote away, a full disk, restarts.

One tree in which everything ran is made once; each test takes the tree with services back to that state first.
"""

import re
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.trees import identity
from tests.flows.faults import (
    ASK_S,
    CONCURRENCY,
    LIMIT,
    FaultTree,
    copy_tree,
    kill,
    kill_group,
    running,
    service,
    wait_until,
    write_fault_tree,
)
from tests.servers import free_port
from tests.tasks.hostile import Hostile

pytestmark = pytest.mark.slow
AGAIN = {"collect": 1, "label": 1}  # after the answers were lost: latencies differ, labels do not


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Hostile]:
    with Hostile() as server:
        yield server


@pytest.fixture(scope="module")
def finished(endpoint: Hostile, tmp_path_factory: pytest.TempPathFactory) -> FaultTree:
    """A tree in which all stages ran; nothing is written into it."""
    tree = write_fault_tree(tmp_path_factory.mktemp("finished"), endpoint)
    tree.repro()
    return tree


@pytest.fixture(scope="module")
def services(finished: FaultTree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTree]:
    tree = copy_tree(finished, tmp_path_factory.mktemp("disturbed"))
    tree.must_up()
    yield tree
    tree.down()


@pytest.fixture
def tree(services: FaultTree, finished: FaultTree) -> FaultTree:
    """The tree in which all stages ran, with all services."""
    services.must_up()
    services.restore(finished)
    return services


@pytest.mark.parametrize("is_killed", [False, True])
def test_own_repro_of_a_person_is_waited_for_and_nothing_is_done_twice(
    tree: FaultTree, finished: FaultTree, is_killed: bool
) -> None:
    tree.forget("collect")
    tree.server.latency_s = 1.0
    with running(tree, "dvc", "repro", "collect") as person:
        wait_until(lambda: tree.stage_pid("collect"))
        run_id = tree.start("base", pools="single")
        wait_until(lambda: "another process works in this folder" in tree.log_of(run_id), every_s=ASK_S)
        if is_killed:
            kill_group(person)
        tree.server.latency_s = 0.0
        person.wait(300)
    done = tree.wait_for_end(run_id)
    assert done.state == "COMPLETED", done
    assert Counter(tree.started()) == AGAIN | {"collect": 1 + is_killed}
    assert all(again <= is_killed * CONCURRENCY for again in tree.asked_again().values()), tree.asked_again()
    assert tree.sha256("label") == finished.sha256("label")


def test_ten_starts_at_once_do_the_work_once(tree: FaultTree, finished: FaultTree) -> None:
    tree.forget("collect")
    run_ids = [tree.start("base", pools="single") for _ in range(10)]
    runs = [tree.wait_for_end(run_id) for run_id in run_ids]
    assert [run.state for run in runs] == ["COMPLETED"] * 10, runs
    assert Counter(tree.started()) == AGAIN
    assert set(tree.asked_again().values()) == {0}
    assert tree.sha256("label") == finished.sha256("label")
    assert tree.run("dvc", "status", "train_base").stdout.startswith("Data and pipelines are up to date")


def test_without_mlflow_training_goes_on_and_registering_waits(tree: FaultTree) -> None:
    tree.forget("register")
    tree.forget("train_base")
    server = service(tree, "mlflow-server")
    kill([server, *server.children(recursive=True)])
    run_id = tree.start("full", pools="single", promote=False)
    failed = tree.wait_for_end(run_id)
    assert failed.state == "FAILED"
    assert "stage register: " in failed.message
    assert f"127.0.0.1:{tree.mlflow_port}" in failed.message
    assert "Traceback" not in failed.message
    assert Counter(tree.started()) == {"train_base": 1, "register": 1}

    tree.must_up()
    tree.complete("full", pools="single", promote=False)
    assert Counter(tree.started()) == {"train_base": 1, "register": 2}


def test_without_the_remote_nothing_is_begun(tree: FaultTree) -> None:
    tree.forget("collect")
    url = f"http://127.0.0.1:{free_port()}"
    add_remote(tree, "s3://arms/dvc")
    for name, value in {"endpointurl": url, "access_key_id": "any", "secret_access_key": "any"}.items():
        assert tree.run("dvc", "remote", "modify", "team", name, value).returncode == 0
    failed = tree.wait_for_end(tree.start("base", pools="single", sync=True))
    assert failed.state == "FAILED"
    assert url in failed.message
    assert "Nothing was run" in failed.message
    assert "Traceback" not in failed.message
    assert tree.started() == []
    assert tree.server.asked == []


def test_remote_that_goes_away_costs_no_result(tree: FaultTree, tmp_path: Path) -> None:
    tree.forget("collect")
    remote = tmp_path / "remote"
    remote.mkdir()
    add_remote(tree, str(remote))
    tree.server.latency_s = 0.5
    run_id = tree.start("base", pools="single", sync=True)
    wait_until(lambda: tree.stage_pid("collect"))
    remote.rename(tmp_path / "away")
    remote.write_text("a share that is not mounted")
    tree.server.latency_s = 0.0
    failed = tree.wait_for_end(run_id)
    assert failed.state == "FAILED"
    assert "All results stand in this folder; when it is back: `dvc push --run-cache`" in failed.message
    assert Counter(tree.started()) == AGAIN

    remote.unlink()
    (tmp_path / "away").rename(remote)
    assert tree.run("dvc", "push", "--run-cache").returncode == 0
    tree.complete("base", pools="single", sync=True)
    assert Counter(tree.started()) == AGAIN


def add_remote(tree: FaultTree, url: str) -> None:
    """Make it the default remote, in place of any other."""
    result = tree.run("dvc", "remote", "add", "--default", "--force", "team", url)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("stage", "num_blocks"), [("collect", 200), ("label", 1)])
def test_full_disk_fails_the_run_once_and_the_next_goes_on(tree: FaultTree, stage: str, num_blocks: int) -> None:
    tree.forget("collect")
    limit = tree.folder / LIMIT / stage
    limit.parent.mkdir(exist_ok=True)
    limit.write_text(str(num_blocks))
    failed = tree.wait_for_end(tree.start("base", pools="single"))
    assert failed.state == "FAILED"
    assert f"stage {stage}: " in failed.message
    assert "free some space" in failed.message.lower()
    assert "Traceback" not in failed.message
    assert Counter(tree.started())[stage] == 1

    limit.unlink()
    tree.complete("base", pools="single")
    assert Counter(tree.started()) == AGAIN | {stage: 2}
    assert all(again <= 2 * CONCURRENCY for again in tree.asked_again().values()), tree.asked_again()


def test_run_that_waits_for_a_gpu_worker_says_so_and_outlives_the_server(tree: FaultTree) -> None:
    tree.forget("train_base")
    kill([service(tree, "worker-gpu-0")])
    run_id = tree.start("base")
    wait_until(lambda: "sent train_base to pool arms-gpu" in tree.log_of(run_id), every_s=ASK_S)
    wait_until(lambda: "no worker of pool arms-gpu is online" in tree.log_of(run_id), seconds=60, every_s=ASK_S)
    assert "prefect worker start --pool arms-gpu --type process" in tree.log_of(run_id)

    server = service(tree, "prefect-server")
    kill([server, *server.children(recursive=True)])
    repaired = tree.up("--gpu-workers", "0")
    assert repaired.returncode == 0, repaired.stderr
    assert not tree.run_state(run_id).is_final
    assert tree.started() == []

    said = tree.log_of(run_id)
    printed = re.search("`(ARMS_ROOT=.* prefect worker start [^`]*)`", said)
    assert printed is not None, said
    with running(tree, "sh", "-c", printed[1]):
        done = tree.wait_for_end(run_id)
    assert done.state == "COMPLETED", f"{done}\n{tree.log_of(run_id)}"
    assert tree.started() == ["train_base"]


def test_gate_that_fails_on_the_gpu_pool_is_the_asking_runs_own(tree: FaultTree) -> None:
    path, yaml = tree.folder / "dvc.yaml", YAML()
    yaml.width = 4096
    before = path.read_text()
    found = yaml.load(before)
    words = "embed: 1 of 3 gates failed; nothing was published."  # as the stage would say it
    found["stages"]["embed"]["cmd"] = f"echo '{words}'; exit 1"
    with path.open("w") as handle:
        yaml.dump(found, handle)
    try:
        run_id = tree.start("base")
        failed = tree.wait_for_end(run_id)
    finally:
        path.write_text(before)
    assert (failed.state, failed.state_name) == ("FAILED", "GateFailed"), failed
    assert words in failed.message
    pages = tree.ask("artifacts/filter", {"artifacts": {"key": {"any_": ["failed-gate"]}}})
    assert run_id in [page["flow_run_id"] for page in pages]
    wait_until(lambda: told_by(tree, "arms.gate.failed"), seconds=60, every_s=ASK_S)
    assert told_by(tree, "arms.gate.failed") == [run_id]


def told_by(tree: FaultTree, event: str) -> list[str]:
    """The flow runs that told of an event."""
    found = tree.ask("events/filter", {"filter": {"event": {"name": [event]}}})["events"]
    return [one["payload"]["flow_run_id"] for one in found]


def test_run_that_was_planned_otherwise_asks_nobody(tree: FaultTree) -> None:
    tree.forget("collect")
    other = tree.wait_for_end(tree.start("base", pools="single", planned_for="another"))
    dear = tree.wait_for_end(tree.start("base", pools="single", budget_usd=0))
    assert (other.state_name, dear.state_name) == ("Refused", "Refused")
    assert "is not the one that this run was planned for" in other.message
    assert "no price of late, one, three, two is known" in dear.message
    assert tree.server.asked == []


def test_gpu_stages_of_a_run_that_is_gone_are_not_begun(tree: FaultTree) -> None:
    tree.forget("train_base")
    asked_by = asdict(identity(tree.folder))
    gone = str(uuid.uuid4())
    run_id = tree.start("run", flow="gpu-stages", stages=["train_base"], asked_by=asked_by, asking_run=gone)
    failed = tree.wait_for_end(run_id)
    assert failed.message == "the run that asked for stage train_base has ended; it was not begun"
    assert tree.started() == []


def test_run_without_a_server_that_is_killed_leaves_nothing_and_the_next_goes_on(
    finished: FaultTree, tmp_path: Path
) -> None:
    tree = copy_tree(finished, tmp_path)
    tree.forget("collect")
    tree.server.latency_s = 1.0
    with running(tree, "python", "-m", "flows.train_arms", "base") as first:
        wait_until(lambda: tree.stage_pid("collect") is not None and len(tree.server.asked) > 8)
        first.kill()  # it alone: stage and `dvc repro` end by themselves, Prefect's temporary server does not
        tree.server.latency_s = 0.0
        wait_until(lambda: tree.stage_pid("collect") is None, seconds=90)
        second = tree.run("python", "-m", "flows.train_arms", "base")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "processes that a run left behind when it was killed" in second.stdout
    assert "its process is gone, it is marked as crashed" in second.stdout
    assert Counter(tree.started()) == AGAIN | {"collect": 2}
    assert all(again <= CONCURRENCY for again in tree.asked_again().values()), tree.asked_again()
    assert tree.sha256("label") == finished.sha256("label")
    assert tree.processes() == []
