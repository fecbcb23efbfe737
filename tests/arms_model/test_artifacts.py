"""Where the artifacts of a server lie that is not running; the stores themselves are in test_register_own_server."""

from pathlib import Path

import pytest

from arms_model.artifacts import folder_of
from arms_model.errors import StorageError


@pytest.mark.parametrize(
    ("artifact_uri", "tracking_uri", "folder"),
    [
        ("mlflow-artifacts:/1/ab/artifacts", "sqlite:////store/mlflow.db", "/store/artifacts/1/ab/artifacts"),
        ("mlflow-artifacts:/1/a%20b", "sqlite:////store/mlflow.db?timeout=3", "/store/artifacts/1/a b"),
        ("mlflow-artifacts:/", "sqlite:////store/mlflow.db", "/store/artifacts"),
        ("mlflow-artifacts:/1/ab", "http://127.0.0.1:5000", None),
        ("mlflow-artifacts:/1/ab", "postgresql+psycopg2://a:b@c/d", None),
        ("mlflow-artifacts://other:5000/1/ab", "sqlite:////store/mlflow.db", None),
        ("file:///store/artifacts/1", "sqlite:////store/mlflow.db", None),
    ],
)
def test_artifacts_lie_beside_the_file(artifact_uri: str, tracking_uri: str, folder: str | None) -> None:
    assert folder_of(artifact_uri, tracking_uri) == (Path(folder) if folder else None)


@pytest.mark.parametrize("path", ["/../mlflow.db", "/1/../../other", "/%2e%2e/other", "/1/%2e%2e%2f%2e%2e/other"])
def test_address_that_climbs_out_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="climbs out of"):
        folder_of(f"mlflow-artifacts:{path}", f"sqlite:///{tmp_path}/mlflow.db")
