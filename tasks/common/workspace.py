"""A workspace: a copy of the tracked tree with a preset as its params, so that the checkout's own dvc.lock stays clean.

    python -m tasks.common.workspace presets/real.yaml      # makes or updates workspaces/real, prints its path

What git tracks, and what is new and not ignored, is copied into workspaces/<preset's name>; the preset becomes its
params.yaml. Where the preset reads recorded outputs or a table, the resolved paths are written into those params and
the source files become dependencies of the stages that read them, in the workspace's dvc.yaml: the tracked dvc.yaml
cannot name a path that only this machine has. A later call brings the copy up to date and leaves alone what the stages
made there (dvc.lock, outputs, `.arms`), files whose content is the same, and the copy's `.dvc/cache`.

Why a copy and not DVC's own ways: docs/decisions/0001-workspaces.md.
"""

import argparse
import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from arms_model.errors import ConfigError
from tasks.common.files import read_json, write_json, written_whole
from tasks.common.mapped import source_paths
from tasks.common.recorded import SOURCE_FILES, source_folder
from tasks.common.stage import run_command

log = logging.getLogger(__name__)
WORKSPACES = Path("workspaces")
MANIFEST = Path(".arms/workspace.json")  # the files that an earlier call wrote; what left the tree is removed by it
_OWN = (
    "params.yaml",
    "dvc.lock",
    "workspaces/",
    ".arms/",
)  # of the tree's paths, those that a workspace has of its own
_DVC_LOCAL = b"[core]\n    no_scm = true\n"  # the copy lies in a folder that git ignores


def make_workspace(preset: Path, *, checkout: Path, folder: Path) -> None:
    """Make `folder` a copy of `checkout` with `preset` as its params, or bring it up to date.

    Args:
        preset: a whole params file.
        checkout: the top folder of a git checkout.
        folder: the workspace; made where it does not exist.

    Raises:
        ConfigError: no such preset, no git checkout, or a preset that reads recorded outputs that nobody names.
        StorageError: the disk is full.
    """
    params = _read_yaml(preset)
    sources = _resolve_sources(params, checkout)
    files = {name: (checkout / name).read_bytes() for name in _tree(checkout)}
    files["params.yaml"] = _as_yaml(params)
    files["dvc.yaml"] = _as_yaml(_with_sources(_read_yaml(checkout / "dvc.yaml"), sources))
    files[".dvc/config.local"] = _DVC_LOCAL
    manifest = folder / MANIFEST
    for name in set(read_json(manifest) if manifest.exists() else []) - set(files):
        (folder / name).unlink(missing_ok=True)
        log.info("removed %s, which left the tree", name)
    changed = sum(_write_if_changed(folder / name, content, like=checkout / name) for name, content in files.items())
    write_json(manifest, sorted(files))
    log.info("%d of %d files were new or changed", changed, len(files))


def _tree(checkout: Path) -> list[str]:
    """What git tracks or would track under `checkout`, as far as it stands there."""
    command = [
        "git",
        "-C",
        str(checkout),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "--deduplicate",
    ]
    result = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    if result.returncode:
        raise ConfigError(
            f"git cannot list the files of {checkout} ({result.stderr.decode().strip()}); a workspace is a copy of a "
            "git checkout's tree, so run this from the top folder of one."
        )
    names = [name for name in result.stdout.decode().split("\0") if name and not name.startswith(_OWN)]
    return [name for name in names if (checkout / name).is_file()]


def _resolve_sources(params: Any, checkout: Path) -> dict[str, list[str]]:
    """Write the absolute paths of recorded folders and tables into `params`; say which files each stage reads."""
    sources = {}
    for stage, names in SOURCE_FILES.items():
        section = params.get(stage) if isinstance(params, dict) else None
        if not isinstance(section, dict):
            continue
        if section.get("source") == "recorded":
            given = section.get("folder")
            folder = source_folder(str(checkout / given) if given else None, where=f"{stage}.folder")
            section["folder"] = str(folder)
            sources[stage] = [str(folder / name) for name in names]
        elif section.get("source") == "table" and isinstance(section.get("table"), dict):
            paths = source_paths(section["table"], checkout)
            section["table"].update(paths)
            sources[stage] = list(paths.values())
    return sources


def _with_sources(dvc: Any, sources: dict[str, list[str]]) -> Any:
    """`dvc.yaml` with the source files among the deps of the stages that read them."""
    for stage, paths in sources.items():
        dvc["stages"][stage]["deps"].extend(paths)
    return dvc


def _refuse_missing(preset: Path) -> None:
    if not preset.is_file():
        raise ConfigError(f"there is no {preset}; name a params file such as presets/real.yaml.")


def _read_yaml(path: Path) -> Any:
    _refuse_missing(path)
    try:
        return YAML().load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from None


def _as_yaml(value: Any) -> bytes:
    """YAML with the comments it was read with."""
    stream = io.BytesIO()
    yaml = YAML()
    yaml.width = 4096
    yaml.dump(value, stream)
    return stream.getvalue()


def _write_if_changed(path: Path, content: bytes, *, like: Path) -> bool:
    """Write `content` unless the file holds it already: an untouched time stamp spares DVC the hashing."""
    if path.is_file() and path.read_bytes() == content:
        return False
    with written_whole(path) as temporary:
        temporary.write_bytes(content)
        if like.is_file():
            temporary.chmod(like.stat().st_mode & 0o777)
    return True


def main() -> int:
    """Make the workspace that the command line names and print its folder; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasks.common.workspace", description="Make or update a workspace.")
    parser.add_argument("preset", type=Path, help="a whole params file, e.g. presets/real.yaml")
    parser.add_argument("--where", action="store_true", help="only print its folder; nothing is made")
    options = parser.parse_args()
    preset, folder = options.preset, WORKSPACES / options.preset.stem

    def body() -> None:
        if options.where:
            _refuse_missing(preset)
        else:
            make_workspace(preset, checkout=Path.cwd(), folder=folder)
        print(os.fspath(folder))

    return run_command("workspace", body)


if __name__ == "__main__":
    sys.exit(main())
