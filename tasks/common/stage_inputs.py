"""What a stage's outputs are made from, and the key of its run: the same whether asked before, during or after it ran.

A run's key is a hash of the stage's params, code and data, as dvc.yaml names them. `while_running` reads them from
disk; `of_outputs` takes what dvc.lock says the outputs on disk were made from, which stays true when params or code
have been edited since. Both count in DVC's own hashes (md5 of a file; of a folder, of its listing), so they agree.

dvc.yaml, dvc.lock and the listings in DVC's cache are read as files: importing DVC would cost each stage seconds.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from arms_model.errors import ConfigError, DataError

CODE = ("arms_model/", "tasks/", "sandbox/")
_IGNORED = ("__pycache__",)  # as .dvcignore says


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """What a stage reads.

    Attributes:
        params: what stands in params.yaml under the names that dvc.yaml gives, e.g. `split.group_by`.
        deps: path -> md5 as DVC counts it, of code and data.
    """

    params: dict[str, Any]
    deps: dict[str, str]

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits that name the run."""
        content = json.dumps({"params": self.params, "deps": self.deps}, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def data(self) -> dict[str, str]:
        """The deps that are data."""
        return {path: md5 for path, md5 in self.deps.items() if not path.startswith(CODE)}


class StageFiles:
    """The graph of one tree, and the hashes of what stands in it.

    Args:
        tree: the folder with dvc.yaml.
    """

    def __init__(self, tree: Path = Path()) -> None:
        self._tree = tree
        self._stages: dict[str, Any] = _yaml(tree / "dvc.yaml")["stages"]
        self._params = _yaml(tree / "params.yaml")
        lock = tree / "dvc.lock"
        self._lock: dict[str, Any] = (_yaml(lock) or {}).get("stages", {}) if lock.exists() else {}
        self._locked_at = lock.stat().st_mtime if lock.exists() else 0.0

    def while_running(self, stage: str) -> StageInputs:
        """What `stage` reads now.

        Raises:
            DataError: a file that it depends on is missing.
        """
        described = self._stages[stage]
        params = {name: _at(self._params, name) for name in described.get("params", [])}
        return StageInputs(params=params, deps={dep: self.md5(dep) for dep in described["deps"]})

    def of_outputs(self, stage: str) -> StageInputs:
        """What the outputs of `stage` that stand on disk were made from.

        That is what dvc.lock says, as long as it speaks of these outputs; else what the stage would read now.

        Raises:
            DataError: an output is missing.
        """
        for out in self.outputs(stage):
            if not (self._tree / out).exists():
                raise DataError(f"{out} is missing; run stage {stage} (`dvc repro {stage}`).")
        locked = self._lock.get(stage)
        if locked is None or any(self.md5(out["path"]) != out.get("md5") for out in locked.get("outs", [])):
            return self.while_running(stage)
        return StageInputs(
            params=dict(locked.get("params", {}).get("params.yaml", {})),
            deps={dep["path"]: dep["md5"] for dep in locked["deps"]},
        )

    def outputs(self, stage: str) -> list[str]:
        """The paths that dvc.yaml names as what `stage` writes."""
        entries = [entry for kind in ("outs", "metrics", "plots") for entry in self._stages[stage].get(kind, [])]
        return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]

    def md5(self, path: str) -> str:
        """The hash of a file or folder as DVC counts it.

        Raises:
            DataError: nothing stands there.
        """
        place = self._tree / path
        if place.is_file():
            return self._file_md5(path)
        if not place.is_dir():
            raise DataError(f"{path} is missing; run the stage that writes it (`dvc repro`).")
        listing = [
            {"md5": self._file_md5(f"{path}/{relative}"), "relpath": relative} for relative in sorted(_files(place))
        ]
        return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"

    def _file_md5(self, path: str) -> str:
        place = self._tree / path
        known = self._known.get(path)
        if known is not None and place.stat().st_mtime <= self._locked_at:
            return known
        with place.open("rb") as handle:
            return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

    @cached_property
    def _known(self) -> dict[str, str]:
        """Hashes of files that stages wrote, as far as dvc.lock and the listings in DVC's cache give them.

        Thousands of pictures need not be read again. Outputs that have another size than dvc.lock says are left out,
        and `_file_md5` believes none that is newer than dvc.lock.
        """
        known: dict[str, str] = {}
        for out in (out for stage in self._lock.values() for out in stage.get("outs", [])):
            place = self._tree / out["path"]
            if place.is_file() and place.stat().st_size == out.get("size"):
                known[out["path"]] = out["md5"]
            elif place.is_dir() and sum((place / name).stat().st_size for name in _files(place)) == out.get("size"):
                listing = self._tree / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]
                entries = json.loads(listing.read_text()) if listing.exists() else []
                known |= {f"{out['path']}/{entry['relpath']}": entry["md5"] for entry in entries}
        return known


def _files(folder: Path) -> Iterator[str]:
    """The files of `folder` by their paths in it, as DVC counts them."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _IGNORED]
        for name in names:
            if not name.endswith(".pyc"):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _at(params: Any, name: str) -> Any:
    """The value at a dotted path such as `split.group_by`."""
    for part in name.split("."):
        if not isinstance(params, dict) or part not in params:
            raise ConfigError(f"params.yaml: {name} is missing, which dvc.yaml names.")
        params = params[part]
    return params


def _yaml(path: Path) -> Any:
    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}; run from the checkout's top folder or from a workspace.") from None
