"""kill -9 of the worker, of Prefect's server and of a stage while a run collects, embeds and trains.

Each test goes through the three stages in one tree: killed in `collect`, repaired by `make up`, the deployment started
again unless its run goes on, killed in `embed`, and so on. At the end the results are those of a tree where nothing
happened, byte for byte.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.conftest import Tree
from tests.flows.faults import ASK_S, BASE, CONCURRENCY, RESULTS, FaultTree, kill, service, wait_until, write_fault_tree
from tests.tasks.hostile import Hostile

pytestmark = pytest.mark.slow
STAGES = ("collect", "embed", "train_base")
LATENCY_S = 0.4
EPOCHS = 150


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Hostile]:
    with Hostile() as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(endpoint: Hostile, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree in which plain `dvc repro` ran once, to compare with."""
    tree = write_fault_tree(tmp_path_factory.mktemp("undisturbed"), endpoint, epochs=EPOCHS)
    assert sorted(tree.repro("label", "train_base")) == sorted(BASE)
    return tree


@pytest.fixture(scope="module")
def services(endpoint: Hostile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTree]:
    tree = write_fault_tree(tmp_path_factory.mktemp("killed"), endpoint, epochs=EPOCHS)
    tree.must_up()
    yield tree
    tree.down()


@pytest.fixture
def tree(services: FaultTree, undisturbed: Tree) -> FaultTree:
    """The tree as if nothing had ever run, with all services."""
    services.must_up()
    services.forget()
    return services


def worker_of(tree: FaultTree, stage: str) -> psutil.Process:
    return service(tree, "worker-cpu" if stage == "collect" else "worker-gpu-0")


def kill_worker(tree: FaultTree, stage: str) -> None:
    kill([worker_of(tree, stage)])


def kill_server(tree: FaultTree, stage: str) -> None:
    server = service(tree, "prefect-server")
    kill([server, *server.children(recursive=True)])


def kill_stage(tree: FaultTree, stage: str) -> None:
    pid = tree.stage_pid(stage)
    assert pid is not None, f"{stage} has ended already"
    kill([psutil.Process(pid)])


def kill_worker_and_all_that_it_began(tree: FaultTree, stage: str) -> None:
    worker = worker_of(tree, stage)
    kill([worker, *worker.children(recursive=True)])


@pytest.mark.parametrize("how", [kill_worker, kill_server, kill_stage, kill_worker_and_all_that_it_began])
def test_killed_run_is_gone_on_with_and_ends_as_if_nothing_had_happened(
    tree: FaultTree, undisturbed: Tree, how: Callable[[FaultTree, str], None]
) -> None:
    for stage in STAGES:
        tree.server.latency_s = LATENCY_S
        wait_until(lambda: is_at_work(tree, stage), every_s=0.3)  # noqa: B023 - called at once
        how(tree, stage)
        tree.server.latency_s = 0.0
        if how is kill_worker_and_all_that_it_began and stage == "collect":
            # the server misses heartbeats; later on `make up` is faster
            wait_until(lambda: not tree.open_runs(), every_s=ASK_S)
        tree.must_up()
    wait_until(lambda: not tree.open_runs(), every_s=ASK_S)
    tree.complete("base")

    ran = Counter(tree.started())
    assert set(ran) == set(BASE)
    assert {stage: times for stage, times in ran.items() if stage not in STAGES and times > 1} == {}
    assert all(ran[stage] <= 2 for stage in STAGES), ran
    for path in RESULTS:
        assert tree.sha256(path) == undisturbed.sha256(path), path
    assert all(again <= CONCURRENCY for again in tree.asked_again().values()), tree.asked_again()
    assert {name: len(set(tree.server.questions(name))) for name in tree.asked_again()} == dict.fromkeys(
        tree.asked_again(), 90
    )
    assert tree.open_runs() == []


def is_at_work(tree: FaultTree, stage: str) -> bool:
    """Whether the stage is in the midst of its work; starts the deployment where no run is under way."""
    if tree.stage_pid(stage) is not None:
        return stage != "collect" or len(tree.server.asked) > 60
    assert tree.started().count(stage) < 2, f"{stage} has ended already: {tree.started()}"
    if not tree.open_runs():
        tree.start("base")
    return False
