"""Retraining through the Prefect server of `make up`: a run of the deployment, whose end decides the exit code."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conftest import VLMS

if TYPE_CHECKING:
    from tests.flows.conftest import ServicesTree

pytestmark = pytest.mark.slow


def git(tree: ServicesTree, *words: str) -> None:
    who = {f"GIT_{role}_{what}": "toy@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["git", *words], cwd=tree.folder, env=dict(os.environ) | who, check=True, timeout=60)


def test_run_on_the_server_that_fails_is_waited_for_and_ends_with_1(served_tree: ServicesTree) -> None:
    git(served_tree, "init", "--quiet", "-b", "main")
    git(served_tree, "add", "params.yaml")
    git(served_tree, "commit", "--quiet", "--message", "First")
    params = served_tree.params()
    params["vlms"].append(VLMS[-1])
    params["queries"]["folder"] = str(served_tree.folder / "nowhere")
    served_tree.write_params(params)
    result = served_tree.run("python", "-m", "flows.retrain", "--since", "HEAD", "--watch", "--no-promote")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "started train-arms/incremental as run" in result.stdout
    assert "Failed: " in result.stdout
    assert "nowhere" in result.stdout
    assert "Traceback" not in result.stderr
