"""The one place that knows MLflow's runs: where they are kept, which run is whose, and how a record is completed.

One experiment per query set; in it one run per train and evaluation stage, found again by the key of what the stage was
made from (`stage_inputs.py`), and one run for the pipeline, to which the others belong. Training streams into its run
(`streaming.py`, `following.py`); `complete_records` brings everything up to date from the stages' files: it is called
by stage `register`, makes what is missing and changes nothing where all is there.

MLflow is imported when it is spoken to (seconds), with its telemetry off and time-outs that notice a dead server soon.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import polars as pl

from arms_model.artifacts import find_artifacts_beside_sqlite
from arms_model.errors import ConfigError, EndpointError
from arms_model.locks import locked
from arms_model.uris import hidden, shown_uri
from tasks.common.environment import environment, git_state
from tasks.common.files import written_whole
from tasks.common.params import raw_section
from tasks.common.run_contents import EVALUATION, RECORDED, RunContent, pipeline_content, stage_content
from tasks.common.stage_inputs import StageFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient
    from mlflow.entities import Run

STORE = Path(".arms/mlflow")
LOCK = Path(".arms/tracking/lock")
SERVICES = Path(".arms/services/services.json")  # the addresses of what `make up` started
QUERIES = Path("queries/queries.parquet")
PARENT = "mlflow.parentRunId"
FILES = "arms.files"  # tag: name -> hash of each artifact that we put there
TAKEN = ("http://", "https://", "sqlite:///", "postgresql+psycopg2://")
_TIMEOUT_S, _NUM_RETRIES = 10, 1
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RecordedRuns:
    """What stands in MLflow for the outputs that stand on disk.

    Attributes:
        experiment_id: the query set's experiment.
        pipeline_run: id of the run that the others belong to.
        runs: stage -> id of its run.
    """

    experiment_id: str
    pipeline_run: str
    runs: dict[str, str]


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else an SQLite file of this tree.

    Raises:
        ConfigError: it names no store that is spoken to here.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return own_store()
    try:
        parts = urlsplit(uri)
        # PostgreSQL's host may stand in the query, or be this machine's socket
        names_place = parts.port != 0 and bool(parts.hostname or parts.scheme == "postgresql+psycopg2")
    except ValueError:  # a port that is no number
        names_place = False
    if uri.startswith("sqlite:///"):
        names_place = uri.partition("?")[0] != "sqlite:///"  # that is one in memory
    if names_place and uri.startswith(TAKEN):
        return uri
    raise ConfigError(
        f"MLFLOW_TRACKING_URI: '{shown_uri(uri)}' is no store that can be used here; write http://host:port or "
        "https://host (an MLflow server), postgresql+psycopg2://user:password@host/database, or "
        "sqlite:////folder/mlflow.db; unset, it is a file under .arms/mlflow. Other stores need drivers or MLflow "
        "plugins that are not installed here: run an MLflow server over them, and name that."
    )


def own_store() -> str:
    """The SQLite file of this tree."""
    return f"sqlite:///{(STORE / 'mlflow.db').absolute()}"


def store_behind(uri: str) -> str:
    """The store that is spoken to: of a server that `make up` started over this tree's file, that file; else `uri`."""
    try:
        server = json.loads(SERVICES.read_text(encoding="utf-8"))["mlflow"]["url"]
    except (OSError, ValueError, KeyError, TypeError):  # none was started, or none of MLflow
        return uri
    return own_store() if uri.rstrip("/") == server else uri


def open_client(uri: str) -> MlflowClient:
    """A client of the store at `uri`; makes the store where it is a local file that is not there yet.

    Call it inside `one_at_a_time` where the store may have to be made.

    Raises:
        Exception: whatever MLflow, SQLAlchemy or the network raise where the store is away; see `speaking_with`.
    """
    _prepare()
    from mlflow import MlflowClient

    find_artifacts_beside_sqlite()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        _make_sqlite(Path(uri.removeprefix("sqlite:///")))
    elif not is_server(uri):
        _knock(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _prepare() -> None:
    """What MLflow reads from the environment, before it is imported; a user's own time-outs are kept."""
    os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"})
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(_NUM_RETRIES))
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # else each retry is told, in its own words


def is_server(uri: str) -> bool:
    """Whether the URI names an MLflow server, which keeps artifacts its own way, and not a database."""
    return uri.startswith(("http://", "https://"))


def _make_sqlite(path: Path) -> None:
    """Make the store's tables under another name first: a process killed on the way leaves no half-made store."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a child that was ended meanwhile
        shutil.rmtree(left, ignore_errors=True)
    with written_whole(path) as temporary:
        artifacts = (STORE / "artifacts").absolute().as_uri()
        store = SqlAlchemyStore(f"sqlite:///{temporary.absolute()}", artifacts)  # type: ignore[no-untyped-call]
        store.engine.dispose()


def _knock(uri: str) -> None:
    """Connect to a database once with a short time-out: MLflow itself tries for minutes."""
    import sqlalchemy

    options = {"connect_timeout": _TIMEOUT_S} if uri.startswith("postgresql") else {}
    engine = sqlalchemy.create_engine(uri, connect_args=options)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def problem_text(error: Exception, uri: str) -> str:
    """Why MLflow at `uri` did not do what was asked, in one line that gives no password away."""
    text = " ".join(hidden(str(error), uri).split()) or type(error).__name__
    for sign, meaning in (
        ("Connection refused", "nothing listens there (connection refused)"),
        ("timed out", "no answer within the time-out"),
        ("database or disk is full", "its database or disk is full"),
        ("readonly database", "its database cannot be written"),
    ):
        if sign.lower() in text.lower():
            return meaning
    return text[:300]


@contextlib.contextmanager
def speaking_with(uri: str) -> Iterator[None]:
    """Turn what MLflow's client raises into an error for people.

    Raises:
        EndpointError: the store is away, too slow or full.
    """
    _prepare()
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
        raise EndpointError(
            f"MLflow at {shown_uri(uri)}: {problem_text(error, uri)}. What is trained stays as it is; start the server "
            "or correct MLFLOW_TRACKING_URI (unset: a file under .arms/mlflow), then run `python -m tasks.register`."
        ) from error


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the right to make runs; the system frees it when its holder dies."""
    with locked(LOCK, waits_for="another process is writing the record"):
        yield


def complete_records(uri: str) -> RecordedRuns:
    """Bring MLflow up to date with the outputs on disk: missing runs, params, points of curves, figures, artifacts.

    A second call changes nothing; a wiped store is rebuilt. What people deleted in MLflow and the outputs still stand
    for is restored, and said. A stage whose outputs come from an earlier pipeline keeps its run and that run's parent.

    Args:
        uri: MLflow's tracking URI.

    Raises:
        EndpointError: MLflow is away, too slow or full.
        DataError: a stage has not run yet.
    """
    files = StageFiles()
    made_from = {stage: files.of_outputs(stage) for stage in RECORDED}
    contents = {stage: stage_content(stage, inputs) for stage, inputs in made_from.items()}
    keys = {stage: inputs.key for stage, inputs in made_from.items()}
    pipeline_key = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:16]
    with one_at_a_time(), speaking_with(uri):
        client = open_client(uri)
        experiment = find_or_make_experiment(client, uri, experiment_name())
        runs = {}
        for stage, content in contents.items():
            kind = "evaluation" if stage == EVALUATION else "training"
            runs[stage] = find_or_make_run(client, experiment, keys[stage], name=stage, kind=kind, by="register")
            _complete(client, runs[stage], content)
        name = f"pipeline {pipeline_key[:8]}"
        pipeline = find_or_make_run(client, experiment, pipeline_key, name=name, kind="pipeline", by="register")
        for stage, run in runs.items():
            _set_tag(client, pipeline, f"arms.run.{stage}", run.info.run_id)
            _give_parent(client, run, pipeline)
        _complete(client, pipeline, pipeline_content())
    ids = {stage: run.info.run_id for stage, run in runs.items()}
    return RecordedRuns(experiment_id=experiment, pipeline_run=pipeline.info.run_id, runs=ids)


def experiment_name() -> str:
    """What the query set is, for people, and the hash that tells two of them apart."""
    queries = raw_section("queries")
    what = str(queries.get("source", "queries"))
    if what == "recorded":
        folder = queries.get("folder") or os.environ.get("ARMS_REAL_DATA") or what
        what = Path(folder).name
    num_queries = pl.scan_parquet(QUERIES).select(pl.len()).collect().item()
    digest = hashlib.sha256(QUERIES.read_bytes()).hexdigest()[:8]
    return f"{what}, {num_queries} queries, {digest}"


def find_or_make_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment called `name` (`experiment_name`); one in the trash is restored, with its runs."""
    found = client.get_experiment_by_name(name)
    if found is None:
        # a server keeps artifacts its own way; beside a bare database they would land in the current folder
        location = None if is_server(uri) else (STORE / "artifacts").absolute().as_uri()
        tags = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens it as one for prompts
        return str(client.create_experiment(name, artifact_location=location, tags=tags))
    if found.lifecycle_stage == "deleted":
        log.warning("experiment '%s' was in MLflow's trash; it is restored with its runs", name)
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def find_or_make_run(client: MlflowClient, experiment: str, key: str, *, name: str, kind: str, by: str) -> Run:
    """The run with that key; the oldest where there are several, restored where it is in the trash, else a new one.

    Args:
        client: of the store.
        experiment: its id.
        key: of what the run is made from.
        name: for people.
        kind: training, evaluation or pipeline.
        by: who makes it, `training` or `register`: git's state and the environment are those of that moment.
    """
    from mlflow.entities import ViewType

    found = client.search_runs(
        [experiment], f"tags.`arms.key` = '{key}'", ViewType.ALL, order_by=["attributes.start_time ASC"]
    )
    active = [run for run in found if run.info.lifecycle_stage == "active"]
    if active:
        return active[0]
    if found:
        log.warning("run '%s' (%s) was in MLflow's trash; it is restored", name, found[0].info.run_id)
        client.restore_run(found[0].info.run_id)
        return client.get_run(found[0].info.run_id)
    git = git_state()
    tags = {
        "arms.key": key,
        "arms.kind": kind,
        "arms.recorded_by": by,
        "arms.git_commit": git["commit"],
        "arms.git_dirty": git["dirty"],
        "arms.environment": json.dumps(environment()),
        "mlflow.source.name": name if kind == "pipeline" else f"tasks.{name}",
        "mlflow.source.type": "LOCAL",
    }
    if git["dirty"] != "unknown":
        tags["mlflow.source.git.commit"] = git["commit"]
    return client.create_run(experiment, run_name=name, tags=tags)


def log_missing(client: MlflowClient, run: Run, content: RunContent) -> None:
    """Log the params, tags and points that `run` has not; what it has already stays."""
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    points = [
        Metric(name, value, now, epoch)
        for name, curve in content.curves.items()
        for epoch, value in _without(curve, recorded_epochs(client, run, name))
    ]
    points += [
        Metric(name, value, now, 0) for name, value in content.metrics.items() if run.data.metrics.get(name) != value
    ]
    params = [Param(name, value) for name, value in content.params.items() if name not in run.data.params]
    tags = [RunTag(name, value) for name, value in content.tags.items() if run.data.tags.get(name) != value]
    for batch in _batches(params, 100):
        client.log_batch(run.info.run_id, params=batch)
    for batch in _batches(tags, 100):
        client.log_batch(run.info.run_id, tags=batch)
    for batch in _batches(points, 1000):
        client.log_batch(run.info.run_id, metrics=batch)


def _batches(entities: list[Any], size: int) -> Iterator[list[Any]]:
    """As many as MLflow takes in one request."""
    return (entities[start : start + size] for start in range(0, len(entities), size))


def recorded_epochs(client: MlflowClient, run: Run, name: str) -> set[int]:
    """The epochs of which `run` has a point of the curve."""
    if name not in run.data.metrics:
        return set()
    return {point.step for point in client.get_metric_history(run.info.run_id, name)}


def _without(curve: dict[int, float], epochs: set[int]) -> list[tuple[int, float]]:
    return [(epoch, value) for epoch, value in curve.items() if epoch not in epochs]


def _complete(client: MlflowClient, run: Run, content: RunContent) -> None:
    log_missing(client, run, content)
    environment_file = (json.dumps(json.loads(run.data.tags["arms.environment"]), indent=2) + "\n").encode()
    _upload_missing(client, run, content.artifacts | {"environment.json": environment_file})
    if run.info.status != "FINISHED":
        client.set_terminated(run.info.run_id, "FINISHED")


def _upload_missing(client: MlflowClient, run: Run, artifacts: dict[str, bytes]) -> None:
    """Upload the artifacts that are not there, or there with another content."""
    hashes = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in artifacts.items()}
    known = json.loads(run.data.tags.get(FILES, "{}"))
    present = set(_artifacts(client, run.info.run_id))
    missing = [name for name in artifacts if name not in present or known.get(name) != hashes[name]]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in missing:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(artifacts[name])
        client.log_artifacts(run.info.run_id, folder)
    client.set_tag(run.info.run_id, FILES, json.dumps(known | hashes))


def _artifacts(client: MlflowClient, run_id: str, folder: str | None = None) -> Iterator[str]:
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from _artifacts(client, run_id, entry.path)
        else:
            yield entry.path


def _set_tag(client: MlflowClient, run: Run, name: str, value: str) -> None:
    if run.data.tags.get(name) != value:
        client.set_tag(run.info.run_id, name, value)


def _give_parent(client: MlflowClient, run: Run, pipeline: Run) -> None:
    """Put a run under the pipeline's; one that belongs to an earlier pipeline stays there and is linked by a tag."""
    parent = run.data.tags.get(PARENT)
    if parent in (None, pipeline.info.run_id) or not _is_active(client, str(parent)):
        _set_tag(client, run, PARENT, pipeline.info.run_id)
    else:
        _set_tag(client, run, f"arms.also_in.{pipeline.info.run_name}", pipeline.info.run_id)


def _is_active(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
