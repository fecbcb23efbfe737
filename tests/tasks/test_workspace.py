from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from arms_model.errors import ConfigError
from tasks.common.workspace import make_workspace

if TYPE_CHECKING:
    from tests.conftest import Recorded

ROOT = Path(__file__).resolve().parents[2]
DVC = "# the stages\nstages:\n  queries:\n    cmd: run\n    deps: [a.py]\n  collect:\n    cmd: run\n    deps: [a.py]\n"
PRESET = "# a comment\nqueries: {source: recorded, folder: null}  # which\ncollect: {source: recorded, folder: null}\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small git checkout: one file committed, one new, one ignored."""
    folder = tmp_path / "checkout"
    (folder / "presets").mkdir(parents=True)
    (folder / "presets/toy.yaml").write_text(PRESET)
    (folder / "params.yaml").write_text("queries: {source: recorded, folder: elsewhere}\n")
    (folder / "dvc.yaml").write_text(DVC)
    (folder / "dvc.lock").write_text("the checkout's own\n")
    (folder / "a.py").write_text("a = 1\n")
    (folder / ".gitignore").write_text("/workspaces/\n/.arms/\nignored.txt\n")
    (folder / "ignored.txt").write_text("not for the workspace")
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "add", "--all"], check=True)
    (folder / "new.py").write_text("new = 1\n")
    return folder


@pytest.fixture(autouse=True)
def _source(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARMS_REAL_DATA", str(recorded.folder))


def _make(checkout: Path) -> Path:
    folder = checkout / "workspaces/toy"
    make_workspace(checkout / "presets/toy.yaml", checkout=checkout, folder=folder)
    return folder


def _yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


def test_workspace_has_what_git_tracks_or_would_track(checkout: Path) -> None:
    folder = _make(checkout)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        ".arms/workspace.json", ".dvc/config.local", ".gitignore", "a.py", "dvc.yaml", "new.py", "params.yaml",
        "presets/toy.yaml",
    }  # fmt: skip


def test_preset_becomes_the_params_with_the_resolved_folder(checkout: Path, recorded: Recorded) -> None:
    folder = _make(checkout)
    params = _yaml(folder / "params.yaml")
    assert params["queries"]["folder"] == params["collect"]["folder"] == str(recorded.folder.resolve())
    assert "# a comment" in (folder / "params.yaml").read_text()
    assert (checkout / "presets/toy.yaml").read_text() == PRESET
    assert "elsewhere" in (checkout / "params.yaml").read_text()


def test_source_files_become_deps_in_the_workspace_only(checkout: Path, recorded: Recorded) -> None:
    folder = _make(checkout)
    stages = _yaml(folder / "dvc.yaml")["stages"]
    source = recorded.folder.resolve()
    assert stages["queries"]["deps"] == ["a.py", str(source / "queries.parquet"), str(source / "images")]
    assert stages["collect"]["deps"] == ["a.py", str(source / "outputs.parquet")]
    assert (checkout / "dvc.yaml").read_text() == DVC


def test_relative_folder_is_resolved_from_the_checkout(checkout: Path, recorded: Recorded) -> None:
    preset = checkout / "presets/toy.yaml"
    preset.write_text(PRESET.replace("null", os.path.relpath(recorded.folder, checkout)))
    assert _yaml(_make(checkout) / "params.yaml")["queries"]["folder"] == str(recorded.folder.resolve())


def test_relative_environment_variable_is_made_absolute(
    checkout: Path, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recorded.folder.parent)
    monkeypatch.setenv("ARMS_REAL_DATA", recorded.folder.name)
    assert _yaml(_make(checkout) / "params.yaml")["queries"]["folder"] == str(recorded.folder.resolve())


def test_second_call_touches_no_file_with_the_same_content(checkout: Path) -> None:
    folder = _make(checkout)
    before = {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and ".arms" not in path.parts
    }
    (checkout / "a.py").write_text("a = 2\n")
    _make(checkout)
    changed = [path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp]
    assert changed == ["a.py"]
    assert (folder / "a.py").read_text() == "a = 2\n"


def test_file_that_left_the_tree_leaves_the_workspace_and_stages_results_stay(checkout: Path) -> None:
    folder = _make(checkout)
    kept = ["dvc.lock", "queries/queries.parquet", ".arms/vectors/shard", ".dvc/cache/files"]
    for name in kept:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("made by a stage")
    (checkout / "new.py").unlink()
    _make(checkout)
    assert not (folder / "new.py").exists()
    assert {(folder / name).read_text() for name in kept} == {"made by a stage"}


def test_file_deleted_but_not_committed_is_left_out(checkout: Path) -> None:
    (checkout / "a.py").unlink()
    assert not (_make(checkout) / "a.py").exists()


def test_executable_stays_executable(checkout: Path) -> None:
    (checkout / "a.py").chmod(0o755)
    assert os.access(_make(checkout) / "a.py", os.X_OK)


def test_unset_source_is_refused_before_anything_is_made(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARMS_REAL_DATA")
    with pytest.raises(ConfigError, match="Set ARMS_REAL_DATA to a folder"):
        _make(checkout)
    assert not (checkout / "workspaces").exists()


def test_preset_that_is_missing_or_broken_is_named(checkout: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*gone\.yaml; name a params file"):
        make_workspace(checkout / "gone.yaml", checkout=checkout, folder=checkout / "workspaces/gone")
    (checkout / "presets/toy.yaml").write_text("queries: {source")
    with pytest.raises(ConfigError, match=r"toy\.yaml is no valid YAML"):
        _make(checkout)


def test_folder_that_is_no_checkout_is_refused(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="git cannot list the files"):
        make_workspace(checkout / "presets/toy.yaml", checkout=tmp_path, folder=tmp_path / "workspace")


def test_command_prints_the_folder_and_nothing_else(checkout: Path) -> None:
    command = [sys.executable, "-m", "tasks.common.workspace", "presets/toy.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "workspaces/toy\n")
    made = (checkout / "workspaces/toy/params.yaml").stat()
    (checkout / "presets/toy.yaml").write_text("queries: {source: other}\n")
    result = subprocess.run([*command, "--where"], cwd=checkout, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "workspaces/toy\n")
    assert (checkout / "workspaces/toy/params.yaml").stat() == made
    for options in ([], ["--where"]):
        strange = [*command[:-1], "gone.yaml", *options]
        result = subprocess.run(strange, cwd=checkout, env=environment, capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (2, "")
        assert "there is no gone.yaml" in result.stderr


def test_tables_of_a_preset_become_deps_and_their_paths_absolute(checkout: Path, tmp_path: Path) -> None:
    (checkout / "presets/toy.yaml").write_text(
        "queries: {source: table, table: {file: mine/q.csv, images: mine/pictures, columns: {query_id: id}}}\n"
        f"collect: {{source: table, table: {{file: {tmp_path}/a.parquet, columns: {{query_id: id}}}}}}\n"
    )
    folder = _make(checkout)
    params = _yaml(folder / "params.yaml")
    mine = checkout.resolve() / "mine"
    assert params["queries"]["table"] == {
        "file": str(mine / "q.csv"), "images": str(mine / "pictures"), "columns": {"query_id": "id"},
    }  # fmt: skip
    stages = _yaml(folder / "dvc.yaml")["stages"]
    assert stages["queries"]["deps"] == ["a.py", str(mine / "q.csv"), str(mine / "pictures")]
    assert stages["collect"]["deps"] == ["a.py", str(tmp_path.resolve() / "a.parquet")]
