"""Trees with the services of `make up`, on ports of their own and with a home folder that must stay empty."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

import psutil
import pytest

from flows import processes
from tests.conftest import Tree, write_recorded, write_tree
from tests.servers import free_port


@dataclass(frozen=True)
class ServicesTree(Tree):
    """A tree whose services are started and ended as a user does it."""

    home: Path
    prefect_port: int = field(default_factory=free_port)
    mlflow_port: int = field(default_factory=free_port)

    def environment(self) -> dict[str, str]:
        """The tests' own, with an empty home folder, and none of the settings that another server left."""
        kept = {key: value for key, value in super().environment().items() if not key.startswith("PREFECT_")}
        return {key: value for key, value in kept.items() if key != "MLFLOW_TRACKING_URI"} | {"HOME": str(self.home)}

    def up(self, *words: str, **environment: str) -> CompletedProcess[str]:
        """`make up` on this tree's own ports; `words` replace them."""
        ports = ("--prefect-port", str(self.prefect_port), "--mlflow-port", str(self.mlflow_port))
        return self.run("python", "-m", "flows.services", "up", *(words or ports), **environment)

    def down(self) -> CompletedProcess[str]:
        """`make down`."""
        return self.run("python", "-m", "flows.services", "down")

    def pids(self) -> dict[str, int]:
        """The process numbers of the services that are written down."""
        return {name: service.pid for name, service in processes.recorded(self.folder).items()}

    def alive(self) -> list[str]:
        """The commands of all that runs for this tree's services."""
        found = []
        for process in processes.marked(self.folder):
            try:
                found.append(" ".join(process.cmdline()))
            except psutil.NoSuchProcess:
                continue
        return found


def write_services_tree(folder: Path) -> ServicesTree:
    """A small tree that can be trained in a minute, and a home folder beside it."""
    tree = write_tree(folder / "tree", recorded=write_recorded(folder / "recorded").folder)
    (folder / "home").mkdir(exist_ok=True)
    return ServicesTree(tree.folder, folder / "home")


@pytest.fixture(scope="module")
def served_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServicesTree]:
    """A tree whose services run; a test that ends one of them starts it again."""
    tree = write_services_tree(tmp_path_factory.mktemp("served"))
    result = tree.up()
    assert result.returncode == 0, result.stdout + result.stderr
    yield tree
    tree.down()
