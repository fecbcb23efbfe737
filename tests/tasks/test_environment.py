"""Where a run ran: the checkout's state, and nothing that says who or where."""

import getpass
import json
import socket
import subprocess
from pathlib import Path

import pytest

from tasks.common.environment import environment, git_state


def _git(*arguments: str) -> str:
    who = ["-c", "user.name=Toy", "-c", "user.email=toy@example.org"]
    return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    _git("init", "-q")
    Path(".gitignore").write_text("/workspaces/\n")
    Path("code.py").write_text("one\n")
    _git("add", ".")
    _git("commit", "-q", "-m", "one")
    return tmp_path


def test_commit_and_cleanliness_are_those_of_the_checkout(checkout: Path) -> None:
    assert git_state() == {"commit": _git("rev-parse", "HEAD"), "dirty": "no"}


def test_changed_and_new_files_make_it_dirty(checkout: Path) -> None:
    Path("code.py").write_text("two\n")
    assert git_state()["dirty"] == "yes"
    _git("commit", "-q", "-a", "-m", "two")
    assert git_state()["dirty"] == "no"
    Path("new.py").touch()
    assert git_state()["dirty"] == "yes"


def test_what_dvc_writes_makes_nothing_dirty(checkout: Path) -> None:
    Path(".dvc").mkdir()
    for name in ("dvc.lock", ".dvc/.gitignore"):
        Path(name).touch()
    assert git_state()["dirty"] == "no"
    _git("add", ".")
    _git("commit", "-q", "-m", "with DVC")
    Path("dvc.lock").write_text("of the next run\n")
    assert git_state()["dirty"] == "no"
    Path("new.py").touch()
    assert git_state()["dirty"] == "yes"
    Path("new.py").unlink()
    Path("code.py").write_text("two\n")
    assert git_state()["dirty"] == "yes"


def test_workspace_has_the_state_of_the_checkout_around_it(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("workspaces/toy")
    folder.mkdir(parents=True)
    (folder / "output").touch()
    monkeypatch.chdir(folder)
    assert git_state() == {"commit": _git("rev-parse", "HEAD"), "dirty": "no"}
    (checkout / "code.py").write_text("two\n")
    assert git_state()["dirty"] == "yes"


def test_folder_outside_git_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert git_state() == {"commit": "none: no git checkout, or one without a commit", "dirty": "unknown"}


def test_environment_names_versions_and_neither_host_nor_user() -> None:
    found = environment()
    assert set(found) == {"python", "platform", "num_cpus", "gpus", "packages"}
    assert found["packages"]["torch"].startswith("2.")
    text = json.dumps(found)
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert f"/{getpass.getuser()}" not in text
