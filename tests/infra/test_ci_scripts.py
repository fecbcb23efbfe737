"""The workflows' steps: scripts that are there, with what they need; and those of them that need no pipeline."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SCRIPTS = sorted((ROOT / "infra/ci").glob("*.sh"))
TOKEN = "a-token-that-nobody-may-see"  # noqa: S105
RETRAIN = YAML(typ="safe").load((ROOT / ".github/workflows/retrain.yml").read_text())


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "infra/ci" / f"{script}.sh"), *arguments]
    environment = dict(os.environ) | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_follows_the_published_schema(workflow: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_workflows_run_only_verbs_and_scripts_of_the_repository() -> None:
    commands = [
        step["run"]
        for workflow in WORKFLOWS
        for job in YAML(typ="safe").load(workflow.read_text())["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    assert commands
    for command in commands:
        assert "\n" not in command.strip()
        word = command.split()[0]
        assert command == "make install" or os.access(ROOT / word, os.X_OK), command
        assert "${{" not in command  # what people type never becomes part of a command


def test_retrain_gives_its_scripts_every_variable_that_they_read() -> None:
    read = {name for script in SCRIPTS for name in re.findall(r"\$\{?(ARMS_[A-Z_]+)", script.read_text())}
    given = {name for name in RETRAIN["jobs"]["retrain"]["env"] if name.startswith("ARMS_")}
    assert given == read


def test_retrain_watches_params_and_lets_only_our_own_pull_requests_spend() -> None:
    events = RETRAIN.get("on", RETRAIN.get(True))
    assert events["push"] == {"branches": ["main"], "paths": ["params.yaml"]}
    assert events["pull_request"]["paths"] == ["params.yaml"]
    assert "labeled" in events["pull_request"]["types"]
    assert "head.repo.full_name == github.repository" in RETRAIN["jobs"]["retrain"]["if"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_executable_strict_and_says_how_to_run_it(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert os.access(script, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    assert "set -euo pipefail" in lines
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


class Api(http.server.BaseHTTPRequestHandler):
    """Takes comments as GitHub does; refuses a wrong token."""

    posted: list[tuple[str, dict[str, Any]]]

    def do_POST(self) -> None:
        """Keep what was posted."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        is_known = self.headers["authorization"] == f"Bearer {TOKEN}"
        if is_known:
            self.posted.append((self.path, body))
        self.send_response(201 if is_known else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def api() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """A server that takes comments: its URL and what was posted."""
    handler = type("Handler", (Api,), {"posted": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.posted
        server.shutdown()
        thread.join()


def github(url: str, **more: str) -> dict[str, str]:
    own = {"GITHUB_API_URL": url, "GITHUB_REPOSITORY": "toy/arms", "GITHUB_TOKEN": TOKEN, "GITHUB_SHA": "abc123"}
    return own | {"no_proxy": "127.0.0.1", "ARMS_PULL_REQUEST": ""} | more


def test_comment_joins_the_files_that_are_there(api: tuple[str, list[Any]], tmp_path: Path) -> None:
    url, posted = api
    (tmp_path / "plan.md").write_text('### Plan\n\n| "a" | ü |\n')
    (tmp_path / "result.md").write_text("### Result\n")
    files = [str(tmp_path / name) for name in ("plan.md", "missing.md", "result.md")]
    on_pull_request = run("comment", *files, **github(url, ARMS_PULL_REQUEST="7"))
    on_commit = run("comment", *files, **github(url))
    assert (on_pull_request.returncode, on_commit.returncode) == (0, 0), on_pull_request.stderr + on_commit.stderr
    text = '### Plan\n\n| "a" | ü |\n\n### Result'
    assert posted == [
        ("/repos/toy/arms/issues/7/comments", {"body": text}),
        ("/repos/toy/arms/commits/abc123/comments", {"body": text}),
    ]
    assert TOKEN not in on_commit.stdout + on_commit.stderr


def test_comment_without_files_posts_nothing(api: tuple[str, list[Any]], tmp_path: Path) -> None:
    url, posted = api
    result = run("comment", str(tmp_path / "missing.md"), **github(url))
    assert (result.returncode, posted) == (0, [])
    assert "nothing to say" in result.stdout


def test_comment_that_is_too_long_is_cut(api: tuple[str, list[Any]], tmp_path: Path) -> None:
    url, posted = api
    (tmp_path / "plan.md").write_text("x" * 200_000)
    assert run("comment", str(tmp_path / "plan.md"), **github(url)).returncode == 0
    ((_, body),) = posted
    assert len(body["body"]) < 65536
    assert body["body"].endswith("the run's log has it all)")


def test_comment_that_is_refused_fails(api: tuple[str, list[Any]], tmp_path: Path) -> None:
    url, posted = api
    (tmp_path / "plan.md").write_text("text")
    result = run("comment", str(tmp_path / "plan.md"), **github(url, GITHUB_TOKEN="another"))  # noqa: S106
    assert (result.returncode != 0, posted) == (True, [])
    assert "401" in result.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository of two commits with the scripts in it."""
    folder = tmp_path / "repository"
    (folder / "infra").mkdir(parents=True)
    (folder / "infra/ci").symlink_to(ROOT / "infra/ci")
    who = ["-c", "user.name=Toy", "-c", "user.email=toy@example.org"]
    for words in (["init", "--quiet", "-b", "main"], *([*who, "commit", "--quiet", "--allow-empty", "-m", "x"],) * 2):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("since", ["0" * 40, "1234567890" * 4, "no-such-branch", "--all"])
def test_commit_that_git_does_not_know_falls_back_to_the_one_before(repository: Path, since: str) -> None:
    script = repository / "infra/ci/since.sh"
    environment = dict(os.environ) | {"ARMS_SINCE": since}
    result = subprocess.run(
        ["bash", "-c", f"cd '{repository}' && {script.relative_to(repository)}"], env=environment, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.stdout.strip() == git(repository, "rev-parse", "HEAD~1"), result.stderr
    assert "comparing with the commit before this one" in result.stderr
