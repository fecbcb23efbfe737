"""Artifacts of a store that is reached through MLflow's server at one time and as a bare SQLite file at another.

What was written through a server has an address `mlflow-artifacts:/...`, and MLflow asks the server for it. Where the
server's database is an SQLite file and its artifacts lie in the folder `artifacts` beside it, the file is enough: here
MLflow is taught to look there while no server is spoken to. Addresses stay what they are, so the server finds what was
written without it.
"""

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from arms_model.errors import StorageError

SCHEME = "mlflow-artifacts"
FOLDER = "artifacts"
_SQLITE = "sqlite:///"


@cache
def find_artifacts_beside_sqlite() -> None:
    """Have MLflow, in this process, look for a server's artifacts beside an SQLite file that it works on directly."""
    from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.tracking import get_tracking_uri

    repositories: dict[str, Any] = get_registered_artifact_repositories()
    through_server = repositories[SCHEME]

    def repository(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
        folder = folder_of(artifact_uri, tracking_uri or get_tracking_uri())
        if folder is None:
            return through_server(artifact_uri, tracking_uri=tracking_uri, registry_uri=registry_uri)
        return LocalArtifactRepository(folder.as_uri())

    repositories[SCHEME] = repository


def folder_of(artifact_uri: str, tracking_uri: str) -> Path | None:
    """Where artifacts lie that a server wrote; None where only a server knows.

    Args:
        artifact_uri: their address, `mlflow-artifacts:/...`.
        tracking_uri: of MLflow.

    Raises:
        StorageError: an address that climbs out of the folder.
    """
    parts = urlsplit(artifact_uri)
    if parts.scheme != SCHEME or parts.netloc or not tracking_uri.startswith(_SQLITE):
        return None
    top = Path(tracking_uri.removeprefix(_SQLITE).partition("?")[0]).absolute().parent / FOLDER
    folder = top / unquote(parts.path).lstrip("/")
    if not folder.resolve().is_relative_to(top.resolve()):
        raise StorageError(f"the address {artifact_uri} climbs out of {top}: somebody changed it in the store.")
    return folder
