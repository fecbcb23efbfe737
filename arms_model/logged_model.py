"""A version's files: MLflow's form of a served folder, which files it consists of, and how exactly those are fetched.

MLflow puts its own description and a file of code beside the served folder. A version consists of these files and no
others; a tag of the version holds the size and sha256 of each. MLflow is imported when it is needed.
"""

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from arms_model.errors import StorageError
from arms_model.served import ROLES, SERVED, check_files, file_sha256
from arms_model.storage import CONFIG, WEIGHTS

FILES = "arms.files"  # the tag
MAX_DESCRIPTION = 5000  # characters: the column's width in MLflow's store; PostgreSQL refuses more
CODE = "pyfunc_model.py"
INSIDE = "artifacts/served"
_NO_BYTE_CODE = "__pycache__"  # an empty file: Python then leaves no byte code in a store that pyfunc loads from
_NOTE = "registered_model_meta"  # MLflow's note, written into a local store when pyfunc loads from it
_OWN = ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", CODE, _NO_BYTE_CODE)  # beside our folder
_ALLOWED = frozenset(
    [*_OWN, f"{INSIDE}/{SERVED}", *(f"{INSIDE}/{role}/{name}" for role in ROLES for name in (CONFIG, WEIGHTS))]
)


def save_pyfunc(
    package: Path, folder: Path, *, model_id: str, run_id: str, requirements: Sequence[str]
) -> dict[str, list[int | str]]:
    """Write MLflow's form of a served folder, without the paths of this machine that MLflow would put into it.

    Args:
        package: the folder to write; it does not exist.
        folder: as `save_served` wrote it.
        model_id: MLflow's name for the logged model.
        run_id: of the run that it belongs to.
        requirements: pip requirements under which MLflow can load it.

    Returns:
        Size and sha256 of every file, by path.

    Raises:
        StorageError: MLflow put more into it than it should.
    """
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array, Map

    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec("string", "question"),
                ColSpec("binary", "image", required=False),
                ColSpec("string", "image_path", required=False),
                ColSpec(Array(DataType.string), "choices", required=False),
                ColSpec(Array(DataType.string), "candidates", required=False),
            ]
        ),
        outputs=Schema(
            [ColSpec(Map(DataType.double), "confidences"), ColSpec("string", "vlm"), ColSpec("string", "reason")]
        ),
    )
    with tempfile.TemporaryDirectory(prefix="arms-registry-") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it would like an example; ours would be a picture
        shutil.copytree(folder, Path(temporary) / "served")  # MLflow takes the folder's own name
        mlflow.pyfunc.save_model(
            package,
            python_model=str(Path(__file__).with_name(CODE)),
            artifacts={"served": f"{temporary}/served"},
            signature=signature,
            pip_requirements=list(requirements),
            mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
        )
    described = Model.load(str(package / "MLmodel"))
    flavour = described.flavors["python_function"]
    flavour["model_code_path"] = CODE
    flavour["artifacts"]["served"]["uri"] = INSIDE
    described.save(str(package / "MLmodel"))
    (package / _NO_BYTE_CODE).touch()
    return _described(package)


def _described(package: Path) -> dict[str, list[int | str]]:
    """Size and sha256 of every file of a logged model, by path; it holds what it should and nothing else."""
    files = sorted(path for path in package.rglob("*") if path.is_file())
    found: dict[str, list[int | str]] = {
        path.relative_to(package).as_posix(): [path.stat().st_size, file_sha256(path)] for path in files
    }
    if strangers := sorted(set(found) - _ALLOWED):
        raise StorageError(f"MLflow put {', '.join(strangers)} into the model, which no version may hold.")
    return found


def expected_files(described: str | None) -> dict[str, tuple[int, str]]:
    """The files that a version consists of: size and sha256 by path.

    Args:
        described: its tag `arms.files`; None where it has none.

    Raises:
        StorageError: the tag is missing, damaged, or names what no version may hold.
    """
    where = f"tag {FILES}"
    if described is None:
        raise StorageError(f"{where} is missing, so nothing can be checked; register again.")
    try:
        files = {str(n): (int(size), str(sha256)) for n, (size, sha256) in json.loads(described).items()}
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise StorageError(f"{where} is not as it is written; register again.") from None
    for name in files:
        if name not in _ALLOWED:
            raise StorageError(f"{where} names '{name}', which no version may hold.")
    for name in (*_OWN, f"{INSIDE}/{SERVED}"):
        if name not in files:
            raise StorageError(f"{where} does not name {name}, which every version holds.")
    return files


def download(uri: str, expected: Mapping[str, tuple[int, str]], folder: Path, *, tracking_uri: str) -> None:
    """Fetch exactly the expected files; what the store holds besides, or in another size, is refused unread.

    Args:
        uri: where the store keeps the version.
        expected: its files.
        folder: where they are put, under their paths; exists and is empty.
        tracking_uri: of MLflow.

    Raises:
        StorageError: the first file that is missing or does not belong there.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    repository = get_artifact_repository(uri, tracking_uri=tracking_uri)
    if isinstance(repository, LocalArtifactRepository):  # links are seen here only, not in a listing
        check_files(Path(repository.artifact_dir), dict.fromkeys(expected), ignored=(_NOTE,))
    for name, size in _listed(repository, expected):
        if size is not None and size != expected[name][0]:
            raise StorageError(f"{name} has {size:,} bytes, expected {expected[name][0]:,}.")
    for name in expected:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        repository.download_artifacts(name, str(folder))  # type: ignore[no-untyped-call]


def remove_all(uri: str, *, tracking_uri: str) -> None:
    """Remove whatever the store keeps of a version: what is uploaded afterwards is all that lies there.

    Args:
        uri: where the store keeps the version.
        tracking_uri: of MLflow.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    repository = get_artifact_repository(uri, tracking_uri=tracking_uri)
    if isinstance(repository, LocalArtifactRepository) and Path(repository.artifact_dir).is_symlink():
        Path(repository.artifact_dir).unlink()
    else:
        repository.delete_artifacts()  # type: ignore[no-untyped-call]


def _listed(repository: Any, expected: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    """What the store lists, name and size; anything that does not belong there is refused, and no folder of it read."""
    folders = {str(parent) for name in expected for parent in PurePosixPath(name).parents} - {"."}
    found, waiting = set(), [""]
    while waiting:
        for info in repository.list_artifacts(waiting.pop() or None):
            name = str(info.path)
            if info.is_dir and name in folders:
                waiting.append(name)
            elif not info.is_dir and name in expected:
                found.add(name)
                yield name, info.file_size
            elif info.is_dir or name != _NOTE:
                raise StorageError(f"'{name}' does not belong there.")
    if missing := sorted(set(expected) - found):
        raise StorageError(f"{missing[0]} is missing.")
