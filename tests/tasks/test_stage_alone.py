"""A stage is never at work twice in one tree: it ends with its `dvc repro`, and a second copy waits for the first.

The stage here is a toy in a copied tree; DVC, its shells and the kills are real.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from tests.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MakeTree, Tree

TOY = """
import os, sys, time
from pathlib import Path

def body():
    with open("worked", "a") as lines:
        lines.write(f"{os.getpid()}\\n")
    try:
        while Path("work").exists():
            time.sleep(0.05)
    finally:
        Path("unwound").touch()
    Path("toy.txt").write_text("done")

def refuse(pid):
    raise OSError(38, "Function not implemented")

if os.environ.get("TOY_OLD_KERNEL"):
    os.pidfd_open = refuse

if __name__ == "__main__":
    Path("loading").write_text(str(os.getpid()))
    from tasks.common.stage import run_stage
    time.sleep(float(os.environ.get("TOY_IMPORTS_S", "0")))
    sys.exit(run_stage("toy", body))
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
STAYING_SHELL = '#!/bin/sh\n/bin/sh "$@"\nexit $?\n'  # does not become the command, as most shells do


@pytest.fixture
def toy(make_tree: MakeTree) -> Tree:
    """A tree with one stage, which works as long as the file `work` is there."""
    tree = make_tree()
    (tree.folder / "tasks/toy.py").write_text(TOY)
    with (tree.folder / "dvc.yaml").open("w") as handle:
        YAML().dump({"stages": {"toy": {"cmd": "python -m tasks.toy", "outs": ["toy.txt"]}}}, handle)
    (tree.folder / "work").touch()
    (tree.folder / "shell").write_text(STAYING_SHELL)
    (tree.folder / "shell").chmod(0o755)
    return tree


@pytest.fixture
def started(toy: Tree) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ended with the test, as is a stage that one of them left at work."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    (toy.folder / "work").unlink(missing_ok=True)
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _start(toy: Tree, started: list[subprocess.Popen[str]], *command: str, **environment: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command, cwd=toy.folder, env=toy.environment() | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    started.append(process)
    return process


def _at_work(toy: Tree) -> list[int]:
    """Ids of the processes that began to work, in order."""
    path = toy.folder / "worked"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("shell", "old_kernel"),
    [("/bin/sh", ""), ("/bin/bash", ""), ("staying", ""), ("/bin/sh", "yes"), ("/bin/bash", "yes")],
)
def test_stage_ends_with_the_dvc_that_is_killed(
    toy: Tree, started: list[subprocess.Popen[str]], shell: str, old_kernel: str
) -> None:
    shell = str(toy.folder / "shell") if shell == "staying" else shell
    dvc = _start(toy, started, "dvc", "repro", SHELL=shell, TOY_OLD_KERNEL=old_kernel)
    wait_until(lambda: _at_work(toy), seconds=180)
    (pid,) = _at_work(toy)
    dvc.kill()
    if old_kernel:
        dvc.wait()  # else its process id is still there
    wait_until(lambda: not _is_alive(pid), seconds=20)
    assert (toy.folder / "unwound").exists()  # as by Ctrl-C: what was in the making is cleaned up
    assert not (toy.folder / "toy.txt").exists()


@pytest.mark.parametrize("shell", ["/bin/sh", "staying"])
def test_stage_whose_dvc_is_killed_while_it_loads_does_not_start(
    toy: Tree, started: list[subprocess.Popen[str]], shell: str
) -> None:
    shell = str(toy.folder / "shell") if shell == "staying" else shell
    dvc = _start(toy, started, "dvc", "repro", SHELL=shell, TOY_IMPORTS_S="3")
    wait_until(lambda: (toy.folder / "loading").exists() and (toy.folder / "loading").read_text(), seconds=180)
    pid = int((toy.folder / "loading").read_text())
    dvc.kill()
    dvc.wait()
    assert _is_alive(pid)  # else the kill came too late to show anything
    wait_until(lambda: not _is_alive(pid), seconds=20)
    assert _at_work(toy) == []


@pytest.mark.parametrize("shell", ["/bin/sh", "staying"])
def test_stage_that_dvc_runs_to_its_end_is_left_in_peace(
    toy: Tree, started: list[subprocess.Popen[str]], shell: str
) -> None:
    shell = str(toy.folder / "shell") if shell == "staying" else shell
    dvc = _start(toy, started, "dvc", "repro", SHELL=shell)
    wait_until(lambda: _at_work(toy), seconds=180)
    time.sleep(1)
    (toy.folder / "work").unlink()
    output, errors = dvc.communicate(timeout=60)
    assert dvc.returncode == 0, output + errors
    assert (toy.folder / "toy.txt").read_text() == "done"
    assert "is gone" not in errors


def test_stage_started_by_hand_outlives_its_shell(toy: Tree, started: list[subprocess.Popen[str]]) -> None:
    shell = _start(toy, started, "/bin/sh", "-c", "python -m tasks.toy >/dev/null 2>&1 & echo $!")
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    shell.wait()
    wait_until(lambda: _at_work(toy), seconds=180)
    try:
        time.sleep(2)
        assert _is_alive(pid)
        (toy.folder / "work").unlink()
        wait_until(lambda: (toy.folder / "toy.txt").exists(), seconds=20)
    finally:
        if _is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_second_copy_of_a_stage_waits_for_the_first_and_says_for_whom(
    toy: Tree, started: list[subprocess.Popen[str]]
) -> None:
    first = _start(toy, started, "python", "-m", "tasks.toy")
    wait_until(lambda: _at_work(toy) == [first.pid], seconds=180)
    second = _start(toy, started, "python", "-m", "tasks.toy")
    assert second.stderr is not None
    line = second.stderr.readline()
    assert line == (
        f"toy: stage toy is at work in this folder already (process {first.pid}); waiting until it is done\n"
    )
    time.sleep(1)
    assert _at_work(toy) == [first.pid]
    first.kill()  # nothing of it has to be cleared away
    wait_until(lambda: _at_work(toy) == [first.pid, second.pid], seconds=10)
    (toy.folder / "work").unlink()
    second.communicate(timeout=20)
    assert second.returncode == 0


def test_stage_that_waits_for_another_copy_ends_at_ctrl_c(toy: Tree, started: list[subprocess.Popen[str]]) -> None:
    first = _start(toy, started, "python", "-m", "tasks.toy")
    wait_until(lambda: _at_work(toy), seconds=180)
    second = _start(toy, started, "python", "-m", "tasks.toy")
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    second.send_signal(signal.SIGINT)
    _, errors = second.communicate(timeout=10)
    assert second.returncode == 130
    assert "stopped by Ctrl-C" in errors
    assert first.poll() is None


def test_other_stage_does_not_wait(toy: Tree, started: list[subprocess.Popen[str]]) -> None:
    (toy.folder / "tasks/other.py").write_text(TOY.replace('"toy"', '"other"'))
    first = _start(toy, started, "python", "-m", "tasks.toy")
    other = _start(toy, started, "python", "-m", "tasks.other")
    wait_until(lambda: set(_at_work(toy)) == {first.pid, other.pid}, seconds=180)
