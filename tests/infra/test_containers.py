"""The images: what goes in is a commit and the lock file, and the build's commands do what they are there for."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "infra/containers/Dockerfile"
TEXT = DOCKERFILE.read_text()


def stages() -> dict[str, str]:
    """Each stage's commands, lines joined."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", TEXT.replace("\\\n", " "), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_linter_finds_nothing() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    result = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout


def test_stages_are_made_from_known_ones() -> None:
    known = {"base", *stages()}
    used = set(re.findall(r"^FROM (\S+) AS", TEXT, flags=re.MULTILINE)) | set(re.findall(r"--from=(\S+)", TEXT))
    assert {name for name in used if not name.startswith("python:")} <= known


def test_targets_that_others_name_exist() -> None:
    services = YAML(typ="safe").load((ROOT / "infra/compose.yaml").read_text())["services"].values()
    targets = {service["build"]["target"]: service["image"] for service in services if "build" in service}
    assert targets.keys() <= stages().keys()
    assert targets == {"servers": "arms-servers", "pipeline": "arms-pipeline", "cuda": "arms-pipeline-cuda"}
    assert all(f"--target {target}" in TEXT for target in targets)


def test_groups_of_dependencies_exist() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    named = set(re.findall(r"--(?:only|no)-group (\S+)", TEXT))
    assert named == {"pipeline", "dev"}
    assert named <= groups.keys()


def test_python_is_one_that_the_project_supports() -> None:
    python = re.search(r"^ARG PYTHON=(\S+)$", TEXT, flags=re.MULTILINE)
    assert python is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {python[1]}" in project["classifiers"]


@pytest.mark.parametrize("target", ["servers", "pipeline"])
def test_image_does_not_run_as_root(target: str) -> None:
    assert re.findall(r"^USER (\S+)$", stages()[target], flags=re.MULTILINE) == ["1000:1000"]


def test_nothing_of_the_folder_but_commits_and_lock_file_is_sent_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert [line for line in lines if line.startswith("!")] == ["!.git", "!pyproject.toml", "!uv.lock"]
    assert ".git/config" in lines  # a token may stand in it


def test_code_in_the_image_is_the_commit_and_stays_clean_under_its_volumes(tmp_path: Path) -> None:
    # the commands of stage `code`, run here on a context as .dockerignore leaves it
    source, target = tmp_path / "source", tmp_path / "arms"
    left_out = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith(".git/")]
    subprocess.run(["git", "clone", "--quiet", "--bare", str(ROOT), str(source / ".git")], check=True, timeout=60)
    for name in left_out:
        path = source / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (run,) = re.findall(r"^RUN (.*)$", stages()["code"], flags=re.MULTILINE)
    script = re.sub(r"--mount=\S+", "", run).replace("/source", str(source)).replace("/arms", str(target))
    environment = os.environ | {"GIT_CONFIG_SYSTEM": str(tmp_path / "gitconfig")}
    subprocess.run(["sh", "-euc", script], check=True, env=environment, timeout=60)

    shutil.rmtree(target / ".arms")
    (target / ".arms").mkdir()  # the volume that is mounted there

    def git(folder: Path, *words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()

    assert git(target, "rev-parse", "HEAD") == git(ROOT, "rev-parse", "HEAD")
    assert git(target, "status", "--porcelain") == ""
    assert (target / ".dvc/cache").is_dir()
