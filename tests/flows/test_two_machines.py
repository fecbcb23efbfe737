"""Two and more machines share through the DVC remote: nothing runs twice, nobody is asked twice.

Each machine is a clone with workers of its own. The second one repeats no stage, with a folder as the remote and with
an S3-compatible server; a box with a GPU runs the stages that want one, and nothing else.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.flows.machines import (
    ADDED,
    BASE,
    NEW,
    NUM_QUERIES,
    FinishedRun,
    Hub,
    Machine,
    Team,
    add_vlm,
    listens,
    write_checkout,
)
from tests.servers import free_port, wait_until

pytestmark = pytest.mark.slow
ASKED_ONCE = dict.fromkeys([*BASE, *NEW], NUM_QUERIES)
BASE_STAGES = {"queries", "profiles", "collect", "label", "split", "embed", "train_base"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("hub") / "tree")
    try:
        write_checkout(hub.root)
        hub.start()
        yield hub
    finally:
        hub.end()


@dataclass(frozen=True)
class FirstRun:
    """What the first machine, with a GPU box at its side, has done and shared."""

    team: Team
    machine: Machine
    gpu_box: Machine
    run: FinishedRun
    asked: dict[str, int]


@pytest.fixture(scope="module")
def first_run(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """Base run of a machine that has no GPU worker; the one of the GPU box takes what wants a GPU."""
    team = Team(tmp_path_factory.mktemp("team"), hub)
    team.found(model="router-of-folder", remote=str(team.folder / "remote"))
    machine, gpu_box = team.machine("laptop"), team.machine("gpu-box")
    with machine.worker("arms-cpu"), gpu_box.worker("arms-gpu"):
        run = hub.run("train-arms/base", sync=True)
    assert run.state == "Completed", str(run)
    return FirstRun(team, machine, gpu_box, run, hub.asked())


def test_gpu_box_runs_the_gpu_stages_and_nothing_else(hub: Hub, first_run: FirstRun) -> None:
    (there,) = hub.gpu_runs()
    assert there.ran == ["embed", "train_base"], str(there)
    assert there.restored == []
    assert set(first_run.run.ran) == BASE_STAGES - {"embed", "train_base"}
    assert first_run.run.restored == ["embed", "train_base"]
    assert first_run.asked == ASKED_ONCE
    assert first_run.machine.has_answer_store
    assert not first_run.gpu_box.has_answer_store
    assert first_run.gpu_box.outputs() == first_run.machine.outputs()


def test_second_machine_repeats_no_stage_and_asks_nobody(hub: Hub, first_run: FirstRun) -> None:
    second, num_sent = first_run.team.machine("second"), len(hub.gpu_runs())
    with second.worker("arms-cpu"):  # nobody is there for GPU stages, and nobody is needed
        run = hub.run("train-arms/base", sync=True)
        again = hub.run("train-arms/base", sync=True)
    assert run.state == "Completed", str(run)
    assert run.ran == []
    assert set(run.restored) == BASE_STAGES
    assert second.outputs() == first_run.machine.outputs()
    assert again.message == f"{len(BASE_STAGES)} had nothing to do", str(again)
    assert hub.asked() == {}
    assert len(hub.gpu_runs()) == num_sent


def test_machine_that_never_collected_asks_the_added_vlm_alone(hub: Hub, first_run: FirstRun) -> None:
    add_vlm(first_run.team.machine("author"), ADDED)
    third = first_run.team.machine("third")
    assert not (third.folder / "dvc.lock").exists()  # nobody has committed one
    with third.worker("arms-cpu"):
        run = hub.run("train-arms/base", sync=True)
    assert run.state == "Completed", str(run)
    assert run.ran == ["profiles", "collect", "label"]
    assert hub.asked() == {ADDED: NUM_QUERIES}
    answered = third.table("collect/new").group_by("vlm").len().sort("vlm").rows()
    assert answered == [(vlm, NUM_QUERIES) for vlm in sorted([*NEW, ADDED])]
    before = first_run.machine.outputs()
    assert {path for path, digest in third.outputs().items() if before[path] != digest} == {
        "profiles/new.parquet", "collect/new.parquet", "label/new.parquet",
    }  # fmt: skip


def test_sync_without_a_remote_is_refused(hub: Hub, first_run: FirstRun) -> None:
    lonely = first_run.team.machine("lonely")
    assert lonely.run("dvc", "remote", "remove", "team").returncode == 0
    result = lonely.run("python", "-m", "flows.train_arms", "base", "--sync")
    assert result.returncode != 0
    assert "`dvc remote add --default NAME URL`" in result.stdout, result.stdout + result.stderr
    assert hub.asked() == {}


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[str]:
    """The URL of an S3-compatible server with a bucket `arms`."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (tmp_path / "s3.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
    try:
        wait_until(lambda: listens(port))
        url = f"http://127.0.0.1:{port}"
        httpx.put(f"{url}/arms", trust_env=False).raise_for_status()  # makes the bucket
        yield url
    finally:
        server.kill()
        server.wait()


def test_s3_server_serves_as_remote(hub: Hub, s3: str, tmp_path: Path) -> None:
    team = Team(tmp_path, hub)
    team.found(model="router-of-s3", remote="s3://arms/dvc", remote_settings={"endpointurl": s3})
    first, second = team.machine("first"), team.machine("second")
    with first.worker("arms-cpu"):
        run = hub.run("train-arms/base", pools="single")
        shared = hub.run("train-arms/base", sync=True)
    assert run.state == "Completed", str(run)
    assert set(run.ran) == BASE_STAGES
    assert shared.message == f"{len(BASE_STAGES)} had nothing to do", str(shared)  # it shares what was done before
    assert hub.asked() == ASKED_ONCE
    with second.worker("arms-cpu"):
        repeated = hub.run("train-arms/base", sync=True)
    assert repeated.state == "Completed", str(repeated)
    assert repeated.ran == []
    assert set(repeated.restored) == BASE_STAGES
    assert hub.asked() == {}
    assert second.outputs() == first.outputs()
