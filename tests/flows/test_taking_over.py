"""A GPU box works for a run elsewhere only where both stand alike, and takes just what the stages read."""

import dataclasses
import logging
import shutil
from pathlib import Path

import pytest

from flows import sharing
from flows.gpu_stages import take_over
from flows.stage_runs import repro
from flows.trees import UserError, alone_in, identity
from tests.flows.mini import dvc, write_mini_tree

LOG = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the run that asks, with all that `train` reads, pushed to the remote, and that of the box."""
    folder = tmp_path_factory.mktemp("template")
    asking = write_machine(folder / "asking")
    write_machine(folder / "box")
    for stage in ("first", "label", "apart"):
        repro(stage, folder=asking, log=LOG)
    sharing.push(asking, log=LOG)
    return folder


@pytest.fixture
def asking(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path / "asking"


@pytest.fixture
def box(asking: Path) -> Path:
    return asking.parent / "box"


def write_machine(folder: Path) -> Path:
    write_mini_tree(folder)
    dvc(folder, "remote", "add", "--quiet", "--default", "team", "../remote")
    (folder / "tasks").mkdir()
    (folder / "tasks/train.py").write_text("pass\n")
    return folder


def over(box: Path, asking: Path, *, is_shared: bool = True) -> None:
    lock = (asking / "dvc.lock").read_text() if is_shared else None
    take_over(["train"], box, asked_by=identity(asking), lock=lock, log=LOG)


def test_box_takes_what_the_stages_read_and_nothing_else(asking: Path, box: Path) -> None:
    over(box, asking)
    assert (box / "labels.txt").read_bytes() == (asking / "labels.txt").read_bytes()
    assert not (box / "apart.txt").exists()
    done = repro("train", folder=box, log=LOG, pull=True)
    sharing.push(box, log=LOG)
    sharing.fetch(asking, log=LOG)
    assert done.outcome == "ran"
    assert repro("train", folder=asking, log=LOG, pull=True).outcome == "restored"


@pytest.mark.parametrize(
    ("path", "content", "named"),
    [
        ("params.yaml", "train: 2\nvlms: [a, b]\n", "params.yaml of this GPU worker's folder"),
        ("tasks/train.py", "print()\n", "the code of this GPU worker's folder"),
        ("tasks/more.json", "{}\n", "the code of this GPU worker's folder"),
    ],
)
def test_box_that_stands_elsewhere_is_refused(asking: Path, box: Path, path: str, content: str, named: str) -> None:
    (box / path).write_text(content)
    with pytest.raises(UserError, match=named) as caught:
        over(box, asking)
    assert "`git pull` here" in str(caught.value)
    assert not (box / "dvc.lock").exists()


def test_both_that_differ_are_named(asking: Path, box: Path) -> None:
    (box / "params.yaml").write_text("train: 2\nvlms: [a, b]\n")
    (box / "dvc.yaml").write_text((box / "dvc.yaml").read_text() + "\n")
    with pytest.raises(UserError, match=r"params\.yaml and dvc\.yaml of this"):
        over(box, asking)


def test_run_that_shares_nothing_is_refused(asking: Path, box: Path) -> None:
    with pytest.raises(UserError, match=r"the run shares nothing.*sync: true"):
        over(box, asking, is_shared=False)


def test_box_without_a_remote_is_refused(asking: Path, box: Path) -> None:
    dvc(box, "remote", "remove", "team")
    with pytest.raises(UserError, match="DVC has no default remote here"):
        over(box, asking)


def test_data_that_is_not_in_the_remote_is_named(asking: Path, box: Path, tmp_path: Path) -> None:
    (tmp_path / "remote").rename(tmp_path / "moved")
    with pytest.raises(sharing.RemoteError, match="did not give the outputs of first, label"):
        over(box, asking)


def test_source_file_that_differs_makes_no_stage_run_on_other_data(asking: Path, box: Path) -> None:
    (box / "source.txt").write_text("other\n")
    with pytest.raises(UserError, match="stages first are stale here"):
        over(box, asking)


def test_copy_of_a_folder_is_another_place(asking: Path, box: Path) -> None:
    here = identity(asking)
    (box / ".arms").mkdir(exist_ok=True)
    (box / ".arms/place").write_bytes((asking / ".arms/place").read_bytes())
    assert identity(box).place != here.place
    assert dataclasses.replace(identity(box), place=here.place) == here
    assert identity(asking) == here


def test_folder_in_use_is_refused_and_not_waited_for(box: Path) -> None:
    refused = pytest.raises(UserError, match=r"another run works in .*box; start this one again when it is done")
    with alone_in(box, log=LOG), refused, alone_in(box, log=LOG, is_waiting=False):
        pass
    with alone_in(box, log=LOG, is_waiting=False):
        assert (box / ".arms/locks/train-arms").exists()
