"""`dvc repro` of one stage: what came of it, and DVC's lock in the way."""

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dvc.exceptions import DvcException
from ruamel.yaml import YAML

from flows.command import CommandTimeoutError
from flows.stage_runs import StageError, graph_of, repro
from tests.flows.mini import dvc, write_mini_tree
from tests.servers import wait_until

LOG = logging.getLogger(__name__)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_mini_tree(tmp_path / "tree")


def set_command(tree: Path, stage: str, command: str) -> None:
    """Have the stage do something else before its work."""
    path = tree / "dvc.yaml"
    lines = path.read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if line.strip().startswith(f"{stage}:"))
    lines[number] = lines[number].replace("{cmd: ", f"{{cmd: '{command}', was: ").replace(", was: ", ", meta: ")
    path.write_text("\n".join(lines))


def test_outcome_says_whether_the_stage_ran(tree: Path) -> None:
    assert repro("first", folder=tree, log=LOG).outcome == "ran"
    assert repro("first", folder=tree, log=LOG).outcome == "unchanged"
    assert repro("first", folder=tree, log=LOG, force=True).outcome == "ran"


def test_known_result_is_taken_from_the_run_cache(tree: Path) -> None:
    repro("first", folder=tree, log=LOG)
    (tree / "source.txt").write_text("other\n")
    repro("first", folder=tree, log=LOG)
    (tree / "source.txt").write_text("b\na\n")
    assert repro("first", folder=tree, log=LOG).outcome == "restored"
    assert (tree / "first.txt").read_text() == "b\na\n"


def test_only_the_named_stage_runs(tree: Path) -> None:
    repro("first", folder=tree, log=LOG)
    (tree / "source.txt").write_text("other\n")
    repro("label", folder=tree, log=LOG)
    assert (tree / "first.txt").read_text() == "b\na\n"


@pytest.mark.parametrize(("code", "again"), [(1, True), (2, False), (143, False)])
def test_failure_carries_the_words_and_the_exit_code_of_the_stage(tree: Path, code: int, again: bool) -> None:
    set_command(tree, "first", f"echo no picture for q7 >&2; exit {code}")
    with pytest.raises(StageError, match="no picture for q7") as caught:
        repro("first", folder=tree, log=LOG)
    assert (caught.value.stage, caught.value.code, caught.value.can_be_tried_again) == ("first", code, again)
    assert not caught.value.is_gate


def test_killed_stage_is_said_to_be_killed(tree: Path) -> None:
    set_command(tree, "first", "kill -9 $$; true")
    with pytest.raises(StageError, match="ended by signal 9"):
        repro("first", folder=tree, log=LOG)


@pytest.mark.parametrize(
    ("words", "is_gate"),
    [
        ("1 of 4 gates failed; nothing was published.", True),
        ("could not write: No space left on device.", False),
        ("the answer store .arms/answers.sqlite: disk I/O error. Free some space, and run again.", False),
    ],
)
def test_failed_gate_and_full_disk_are_not_tried_again(tree: Path, words: str, is_gate: bool) -> None:
    set_command(tree, "first", f'echo "{words}"; exit 1')
    with pytest.raises(StageError) as caught:
        repro("first", folder=tree, log=LOG)
    assert caught.value.is_gate == is_gate
    assert not caught.value.can_be_tried_again


def test_stage_that_takes_too_long_is_stopped(tree: Path) -> None:
    set_command(tree, "first", "sleep 60")
    with pytest.raises(CommandTimeoutError):
        repro("first", folder=tree, log=LOG, timeout_s=5)


def test_lock_of_another_process_is_waited_for(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    set_command(tree, "first", "touch began; sleep 8; cp source.txt first.txt")
    other = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "first"], cwd=tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: (tree / "began").exists())
    with caplog.at_level(logging.INFO):
        done = repro("first", folder=tree, log=LOG)
    assert other.wait(60) == 0
    assert done.outcome == "unchanged"
    assert "another process works in this folder; stage first is tried again" in caplog.text


def test_lock_of_a_dead_process_is_no_obstacle(tree: Path) -> None:
    set_command(tree, "first", "touch began; sleep 30; cp source.txt first.txt")
    other = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "first"],
        cwd=tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: (tree / "began").exists())
    os.killpg(other.pid, signal.SIGKILL)
    other.wait()
    set_command(tree, "label", "true")
    (tree / "dvc.yaml").write_text((tree / "dvc.yaml").read_text().replace("sleep 30; ", ""))
    assert repro("first", folder=tree, log=LOG).outcome == "ran"
    assert dvc(tree, "status", "first").startswith("Data and pipelines are up to date")


def test_what_is_stale_is_asked_again_until_the_lock_is_free(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    hold = "from dvc.repo import Repo; lock = Repo().lock; lock.lock(); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        threading.Timer(5, other.kill).start()
        with caplog.at_level(logging.INFO):
            graph = graph_of(tree, log=LOG)
        assert other.wait() == -signal.SIGKILL
    assert "first" in graph.changes
    assert "another process works in this folder; DVC is asked again" in caplog.text


def test_dvc_lock_that_another_process_is_writing_is_not_read(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    dvc(tree, "repro", "--quiet")
    whole = (tree / "dvc.lock").read_text()
    assert not graph_of(tree, log=LOG).changes
    write = (
        "import time; from dvc.repo import Repo; lock = Repo().lock; lock.lock(); whole = open('dvc.lock').read(); "
        "open('dvc.lock', 'w').write(whole[:whole.index('hash:') + 5]); print('half', flush=True); time.sleep(5); "
        "open('dvc.lock', 'w').write(whole); lock.unlock()"
    )
    with subprocess.Popen([sys.executable, "-c", write], cwd=tree, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "half\n"
        with caplog.at_level(logging.INFO):
            graph = graph_of(tree, log=LOG)
        assert other.wait() == 0
    assert (tree / "dvc.lock").read_text() == whole
    assert not graph.changes
    assert "another process works in this folder; DVC is asked again" in caplog.text


def test_dvc_lock_that_a_killed_process_left_half_written_is_set_aside(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dvc(tree, "repro", "--quiet")
    whole = (tree / "dvc.lock").read_text()
    (tree / "dvc.lock").write_text(whole[: whole.index("hash:") + 5])
    assert "first" in graph_of(tree, log=LOG).changes
    assert "dvc.lock is damaged" in caplog.text
    assert whole.startswith((tree / ".arms/dvc.lock.damaged").read_text())
    for stage in graph_of(tree, log=LOG).order:
        assert repro(stage, folder=tree, log=LOG).outcome == "restored"
    assert YAML().load(tree / "dvc.lock") == YAML().load(whole)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "dvc.lock",
            "<<<<<<< ours\nschema: '2.0'\n=======\nschema: '2.1'\n>>>>>>> theirs\n",
            "dvc.lock.* is corrupted",
        ),
        ("dvc.yaml", "stages:\n  first: nothing\n", "dvc.yaml.* validation failed"),
    ],
)
def test_file_that_a_person_spoilt_stays_where_it_is(tree: Path, name: str, text: str, expected: str) -> None:
    dvc(tree, "repro", "--quiet")
    (tree / name).write_text(text)
    with pytest.raises(DvcException, match=expected):
        graph_of(tree, log=LOG)
    assert (tree / name).read_text() == text
