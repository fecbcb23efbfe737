"""A team's repository for tests: a bare origin, a DVC remote in a folder, and clones that stand for machines.

A clone shares nothing with another one but origin, the DVC remote and MLflow's server, as machines of a team do.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.conftest import Tree

_WHO = {
    "GIT_AUTHOR_NAME": "Toy Person", "GIT_AUTHOR_EMAIL": "toy@example.org", "GIT_COMMITTER_NAME": "Toy Person",
    "GIT_COMMITTER_EMAIL": "toy@example.org",
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A clone, and the environment that its scripts run in."""

    tree: Tree
    shared: dict[str, str]

    def run(self, *command: str, expected: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone; another exit code than `expected` fails with all that it said."""
        environment = self.tree.environment() | _WHO | self.shared | environment
        result = subprocess.run(
            command, cwd=self.tree.folder, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        if expected is not None and result.returncode != expected:
            raise AssertionError(
                f"{' '.join(command)} ended with {result.returncode}: {result.stdout[-6000:]}{result.stderr[-6000:]}"
            )
        return result

    def git(self, *words: str) -> str:
        """What git prints."""
        return self.run("git", *words).stdout.strip()

    def script(self, name: str, expected: int | None = 0, **environment: str) -> str:
        """Run a script of infra/ci; what it printed."""
        result = self.run(f"infra/ci/{name}.sh", expected=expected, **environment)
        return result.stdout + result.stderr

    def read(self, path: str) -> str:
        """A file of the clone."""
        return (self.tree.folder / path).read_text(encoding="utf-8")

    def change_params(self, change: Callable[[Any], None], message: str) -> str:
        """Edit params.yaml, commit it; the commit."""
        params = self.tree.params()
        change(params)
        self.tree.write_params(params)
        self.git("commit", "--quiet", "--message", message, "--", "params.yaml")
        return self.git("rev-parse", "HEAD")


def make_origin(tree: Tree, folder: Path, shared: dict[str, str]) -> Path:
    """Make a tree the first commit of a team's repository: all stages ran, data and lock are shared.

    Args:
        tree: made by `tests.conftest.write_tree`; becomes a clone.
        folder: gets the bare repository and the DVC remote.
        shared: environment of all machines.

    Returns:
        The bare repository.
    """
    first = Machine(tree, shared)
    (tree.folder / ".dvc/config.local").unlink()  # a workspace has no git of its own; this one does
    first.git("init", "--quiet", "--initial-branch", "main")
    first.run("dvc", "remote", "add", "--default", "team", str(folder / "remote"))
    first.run("dvc", "repro", "--quiet")
    first.git("add", "--all")
    first.git("commit", "--quiet", "--message", "First")
    first.run("dvc", "push", "--quiet", "--run-cache")
    first.git("clone", "--quiet", "--bare", ".", str(folder / "origin.git"))
    return folder / "origin.git"


def clone(origin: Path, folder: Path, shared: dict[str, str]) -> Machine:
    """A further machine."""
    subprocess.run(["git", "clone", "--quiet", str(origin), str(folder)], check=True, timeout=120)
    return Machine(Tree(folder), shared)


def vlms_of(machine: Machine) -> list[str]:
    """The VLMs that the clone's params name."""
    params = YAML(typ="safe").load(machine.read("params.yaml"))
    return [str(vlm["name"]) for vlm in params["vlms"]]
