"""Fixtures of several tests of stages.

For those that ask a server, `queries` runs once a session and each test gets a folder with its output; for those of the
registry, `register` does.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from ruamel.yaml import YAML

from tasks import register
from tests.conftest import Tree, write_recorded
from tests.tasks.asking import AskingFolder
from tests.tasks.hostile import Hostile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def queries_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which stage `queries` ran over the recorded toy set: 90 queries of three benchmarks."""
    folder = tmp_path_factory.mktemp("queries")
    recorded = write_recorded(tmp_path_factory.mktemp("recorded"))
    source = {"source": "recorded", "folder": str(recorded.folder)}
    with (folder / "params.yaml").open("w") as handle:
        YAML().dump({"base": {"seed": 0}, "queries": source, "gates": {"queries": {}}}, handle)
    subprocess.run([sys.executable, "-m", "tasks.queries"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def asking(queries_made: Path, tmp_path: Path) -> AskingFolder:
    """A folder of the test's own in which `collect` can ask."""
    shutil.copytree(queries_made, tmp_path / "asking")
    return AskingFolder(tmp_path / "asking")


@pytest.fixture
def server() -> Iterator[Hostile]:
    """A server that does as its script says."""
    with Hostile() as server:
        yield server


@pytest.fixture(scope="session")
def registered_tree(finished_tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A copy of the finished tree with a store of its own, in which the stage ran; copied by each test.

    The store's artifacts stay in this folder, wherever its database is copied to.
    """
    folder = tmp_path_factory.mktemp("registered") / "tree"
    shutil.copytree(
        finished_tree.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow", "cache", "registry")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register.body()
    return Tree(folder)


@pytest.fixture
def registered_copy(registered_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A tree of the test's own in which `register` ran; it is the current folder."""
    shutil.copytree(registered_tree.folder, tmp_path / "tree", symlinks=True)
    monkeypatch.chdir(tmp_path / "tree")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tree(tmp_path / "tree")
