"""`python -m flows.retrain` as it is typed, in a git repository in which no stage has run yet."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conftest import BLOCKS, VLMS, Tree, write_recorded, write_tree

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Three commits: no params, params that are no YAML, and good ones; a VLM more stands in the folder."""
    folder = tmp_path_factory.mktemp("repository")
    tree = write_tree(folder / "tree", recorded=write_recorded(folder / "recorded").folder)
    good = (tree.folder / "params.yaml").read_text()
    git(tree, "init", "--quiet", "-b", "main")
    for tag, content in (("none", None), ("broken", "vlms: ["), ("listless", "base: {}\n"), ("good", good)):
        (tree.folder / "params.yaml").write_text(content or "")
        git(tree, "add", "--all", *([] if content else ["--", ":!params.yaml"]))
        git(tree, "commit", "--quiet", "--message", tag)
        git(tree, "tag", tag)
    return tree


def git(tree: Tree, *words: str) -> None:
    who = {f"GIT_{role}_{what}": "toy@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["git", *words], cwd=tree.folder, env=dict(os.environ) | who, check=True, timeout=60)


def retrain(tree: Tree, *words: str) -> subprocess.CompletedProcess[str]:
    return tree.run("python", "-m", "flows.retrain", *words)


@pytest.mark.parametrize(
    ("since", "words"),
    [
        ("no-such-commit", "git knows no commit 'no-such-commit'"),
        ("--help", "git knows no commit '--help'"),
        ("none", "there was no params.yaml at none"),
        ("broken", "params.yaml at broken is no valid YAML"),
        ("listless", "vlms of the old params is no list of blocks with names"),
    ],
)
def test_commit_that_cannot_be_compared_with_ends_with_2(repository: Tree, since: str, words: str) -> None:
    result = retrain(repository, f"--since={since}", "--dry-run")
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("budget", ["-1", "nan", "inf", "a lot"])
def test_budget_that_is_no_amount_ends_with_2(repository: Tree, budget: str) -> None:
    result = retrain(repository, "--since", "good", f"--budget-usd={budget}")
    assert result.returncode == 2
    assert "--budget-usd" in result.stderr


def test_block_with_a_mistake_ends_with_2_and_names_it(repository: Tree) -> None:
    before = (repository.folder / "params.yaml").read_text()
    params = repository.params()
    params["vlms"][0]["pol"] = "base"
    repository.write_params(params)
    result = retrain(repository, "--since", "good", "--dry-run")
    (repository.folder / "params.yaml").write_text(before)
    assert result.returncode == 2
    assert "vlms[0].pol: unknown key; did you mean 'pool'?" in result.stderr


def test_dry_run_before_the_first_run_says_what_is_new_and_starts_nothing(repository: Tree, tmp_path: Path) -> None:
    before = (repository.folder / "params.yaml").read_text()
    params = repository.params()
    params["vlms"].append(VLMS[-1])
    repository.write_params(params)
    result = retrain(repository, "--since", "good", "--dry-run", "--markdown", str(tmp_path / "new/plan.md"))
    (repository.folder / "params.yaml").write_text(before)
    assert result.returncode == 0, result.stderr
    assert "none yet; compared with the list of VLMs at good alone" in result.stdout
    assert "toy-late (pool new): it alone is asked" in result.stdout
    assert "start         train-arms/incremental" in result.stdout
    assert "| start | train-arms/incremental |" in (tmp_path / "new/plan.md").read_text()
    assert len(BLOCKS) + 1 == len(VLMS)
    assert not [stage for stage in ("queries", "profiles", "models") if (repository.folder / stage).exists()]
