"""A registry in a store of the test's own, and how to tamper with what lies in it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from arms_model.registry import Origin, Registry, Version

MODEL = "arms-router"


@dataclass
class Store:
    """A registry with one experiment and one run.

    Attributes:
        folder: for the lock, the store and its artifacts.
        uri: of MLflow.
    """

    folder: Path
    uri: str
    registry: Registry = field(init=False)
    client: MlflowClient = field(init=False)
    origin: Origin = field(init=False)

    def __post_init__(self) -> None:
        self.registry = Registry(self.uri, model=MODEL, lock=self.folder / "lock")
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        local = self.uri.startswith("sqlite")
        location = (self.folder / "artifacts").as_uri() if local else None
        experiment = self.client.create_experiment(f"toys of {self.folder.name}", artifact_location=location)
        run = self.client.create_run(experiment).info.run_id
        self.origin = Origin(
            experiment_id=experiment,
            run_id=run,
            tags={"arms.vlms": "a, c"},
            description="# A card",
            requirements=("arms-router",),
        )

    def register(self, save: Callable[..., str], **settings: Any) -> Version:
        """Register what `save` puts into a folder."""
        folder = self.folder / f"served-{len(list(self.folder.glob('served-*')))}"
        save(folder, **settings)
        return self.registry.register(folder, self.origin)[0]

    def promote(self, version: Version, why: str = "because") -> None:
        champion = self.registry.alias("champion")
        version = self.registry.find(str(version.number))
        self.registry.promote(version, who="Ada", when="2026-01-01T00:00:00+00:00", why=why, champion=champion)


def sqlite_store(folder: Path) -> Store:
    folder.mkdir(parents=True, exist_ok=True)
    return Store(folder, f"sqlite:///{folder}/mlflow.db")


@dataclass(frozen=True)
class Logged:
    """The files of one registered version in a local store, to be spoiled and put back.

    Attributes:
        store: where it is.
        version: the version.
        folder: its files.
    """

    store: Store
    version: Version
    folder: Path
    backup: Path

    @property
    def served(self) -> Path:
        return self.folder / "artifacts/served"

    def edit_json(self, name: str, change: Callable[[Any], Any]) -> None:
        """Change a JSON file of the served folder."""
        path = self.served / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    def tag(self, key: str, value: str) -> None:
        self.store.client.set_model_version_tag(MODEL, str(self.version.number), key, value)

    def seal_weights(self, role: str = "base") -> None:
        """Make config.json name the weights that lie beside it."""
        sha256 = _sha256(self.served / role / "weights.safetensors")
        self.edit_json(f"{role}/config.json", lambda config: config | {"weights_sha256": sha256})

    def seal(self, *, but: tuple[str, ...] = ()) -> None:
        """Make every hash fit what lies there, as somebody would who may write tags: served.json and both tags."""
        if "served.json" not in but:
            files = {
                path.relative_to(self.served).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                for path in self.served.rglob("*")
                if path.is_file() and path.name != "served.json"
            }
            self.edit_json("served.json", lambda manifest: manifest | {"files": files})
        found = {
            path.relative_to(self.folder).as_posix(): [path.stat().st_size, _sha256(path)]
            for path in self.folder.rglob("*")
            if path.is_file()
        }
        self.tag("arms.files", json.dumps(found))
        self.tag("arms.digest", _sha256(self.served / "served.json"))

    def restore(self) -> None:
        """Put files and tags back."""
        if self.folder.is_symlink():
            self.folder.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.backup, self.folder)
        for key in ("arms.files", "arms.digest"):
            self.tag(key, self.version.tags[key])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
