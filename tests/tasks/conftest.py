"""Fixtures for tests that ask a server: `queries` runs once a session, each test gets a folder with its output."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from ruamel.yaml import YAML

from tests.conftest import write_recorded
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
