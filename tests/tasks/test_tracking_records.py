"""Completing the record from files: what a run holds, what it never holds, and that nothing is there twice."""

import csv
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from arms_model.errors import ConfigError, DataError, EndpointError
from tasks.common import tracking
from tasks.common.run_contents import MAX_METRICS, RECORDED, shown_params
from tasks.common.tracking import RecordedRuns, complete_records, open_client, tracking_uri
from tests.conftest import Tree
from tests.servers import free_port

SECRET = "sk-9f3b-not-for-anybody"  # noqa: S105
COMPLETE = "from tasks.common.tracking import complete_records, tracking_uri; print(complete_records(tracking_uri()))"
CURVES = ("train_loss", "validation_loss", "learning_rate")
GATE = {
    "stage": "label", "success": True, "num_warnings": 1, "num_declared": 2,
    "expectations": [{
        "name": "label_positive_share", "sentence": "Each VLM is right | wrong sometimes.", "severity": "warn",
        "bounds": {"min": 0.02}, "checked": 400, "failed": 1, "declared": 2, "success": False, "observed": None,
    }],
}  # fmt: skip


@pytest.fixture(scope="module")
def recorded_tree(finished_tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A finished tree, without what other stages may have recorded in it; copied by each test."""
    folder = tmp_path_factory.mktemp("records") / "tree"
    shutil.copytree(finished_tree.folder, folder, symlinks=True)
    for name in ("mlflow", "tracking"):
        shutil.rmtree(folder / ".arms" / name, ignore_errors=True)
    open_client(f"sqlite:///{folder}/.arms/mlflow/mlflow.db")  # an empty store, which takes seconds to make
    return Tree(folder)


@pytest.fixture
def tree(recorded_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A finished tree of the test's own, which is the current folder."""
    shutil.copytree(recorded_tree.folder, tmp_path / "tree", symlinks=True)
    monkeypatch.chdir(tmp_path / "tree")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tree(tmp_path / "tree")


def _database() -> Path:
    return Path(".arms/mlflow/mlflow.db").absolute()


def _dump() -> list[str]:
    """Everything in the store: every row of every table."""
    connection = sqlite3.connect(_database())
    lines = list(connection.iterdump())
    connection.close()
    return lines


def _sql(statement: str) -> int:
    connection = sqlite3.connect(_database())
    with connection:
        changed = connection.execute(statement).rowcount
    connection.close()
    return changed


def _runs(client: MlflowClient, recorded: RecordedRuns) -> dict[str, Run]:
    return {stage: client.get_run(run) for stage, run in recorded.runs.items()}


def _all_runs(client: MlflowClient, recorded: RecordedRuns) -> list[Run]:
    return list(client.search_runs([recorded.experiment_id], run_view_type=ViewType.ALL))


def _artifact(client: MlflowClient, run_id: str, name: str) -> bytes:
    return Path(client.download_artifacts(run_id, name)).read_bytes()


def test_every_train_and_evaluation_stage_has_a_finished_run_under_the_pipeline(tree: Tree) -> None:
    recorded = complete_records(tracking_uri())
    client = open_client(tracking_uri())
    assert set(recorded.runs) == set(RECORDED)
    for stage, run in _runs(client, recorded).items():
        assert (run.info.run_name, run.info.status) == (stage, "FINISHED")
        assert run.data.tags["mlflow.parentRunId"] == recorded.pipeline_run
    pipeline = client.get_run(recorded.pipeline_run)
    assert pipeline.info.run_name.startswith("pipeline ")
    assert {stage: pipeline.data.tags[f"arms.run.{stage}"] for stage in RECORDED} == recorded.runs
    assert len(_all_runs(client, recorded)) == 5


def test_run_holds_the_curves_of_its_file(tree: Tree) -> None:
    recorded = complete_records(tracking_uri())
    client = open_client(tracking_uri())
    for stage in RECORDED[:3]:
        with Path(f"curves/{stage}.csv").open() as handle:
            rows = list(csv.DictReader(handle))
        assert rows
        expected = {
            (f"{name}/member{row['member']}", int(float(row["epoch"])), float(row[name]))
            for row in rows
            for name in CURVES
        }
        found = {
            (name, point.step, point.value)
            for name in {name for name, _, _ in expected}
            for point in client.get_metric_history(recorded.runs[stage], name)
        }
        assert found == expected


def test_run_holds_params_data_code_and_surroundings(tree: Tree) -> None:
    recorded = complete_records(tracking_uri())
    run = open_client(tracking_uri()).get_run(recorded.runs["train_base"])
    assert run.data.params["training.epochs"] == "3"
    assert run.data.params["base.seed"] == "0"
    assert run.data.params["split.group_by"] == "image_group"
    table = hashlib.md5(Path("label/base.parquet").read_bytes(), usedforsecurity=False).hexdigest()
    assert run.data.tags["arms.data.label/base.parquet"] == table
    assert run.data.tags["arms.git_dirty"] in ("yes", "no", "unknown")
    assert json.loads(run.data.tags["arms.environment"])["packages"]["torch"]
    assert run.data.tags["arms.recorded_by"] == "register"


def test_final_metrics_are_few_and_the_rest_are_artifacts(tree: Tree) -> None:
    recorded = complete_records(tracking_uri())
    client = open_client(tracking_uri())
    for stage, run in _runs(client, recorded).items():
        final = [name for name in run.data.metrics if not name.startswith(CURVES)]
        assert 0 < len(final) <= MAX_METRICS
        names = [
            entry.path
            for entry in client.list_artifacts(run.info.run_id, stage if stage == "cascade_eval" else "metrics")
        ]
        expected = ["table.csv", "metrics.json", "selection.json"] if stage == "cascade_eval" else [f"{stage}.json"]
        assert set(expected) <= {Path(name).name for name in names}
        assert not [name for name in names if name.endswith(".parquet")]
    evaluated = json.loads(Path("cascade_eval/metrics.json").read_text())
    metrics = client.get_run(recorded.runs["cascade_eval"]).data.metrics
    assert metrics["test_id/base/ARMS base"] == evaluated["test_id"]["base"]["ARMS base"]["em"]


def test_pipeline_holds_gates_and_figures_but_no_report(tree: Tree) -> None:
    shutil.rmtree("gates", ignore_errors=True)
    shutil.rmtree("report", ignore_errors=True)
    Path("gates").mkdir()
    Path("gates/label.json").write_text(json.dumps(GATE))
    Path("report/figures").mkdir(parents=True)
    Path("report/figures/results.svg").write_text("<svg/>")
    Path("report/report.html").write_text("questions and pictures")
    recorded = complete_records(tracking_uri())
    client = open_client(tracking_uri())
    metrics = client.get_run(recorded.pipeline_run).data.metrics
    assert (metrics["gates/num_invariants"], metrics["gates/num_warnings"], metrics["gates/num_declared"]) == (1, 1, 2)
    assert _artifact(client, recorded.pipeline_run, "figures/results.svg") == b"<svg/>"
    assert json.loads(_artifact(client, recorded.pipeline_run, "gates/label.json")) == GATE
    row = _artifact(client, recorded.pipeline_run, "gates/gates.md").decode().splitlines()[-1]
    assert row == (
        "| label | label_positive_share | Each VLM is right \\| wrong sometimes. | warn | 400 | 1 | 2 | failed |"
    )
    assert {entry.path for entry in client.list_artifacts(recorded.pipeline_run)} == {
        "environment.json",
        "figures",
        "gates",
    }


def test_second_call_changes_nothing(tree: Tree) -> None:
    first = complete_records(tracking_uri())
    dump, files = _dump(), tree.sha256(".arms/mlflow/artifacts")
    times = {path: path.stat().st_mtime_ns for path in Path(".arms/mlflow/artifacts").rglob("*")}
    assert complete_records(tracking_uri()) == first
    assert _dump() == dump
    assert tree.sha256(".arms/mlflow/artifacts") == files
    assert {path: path.stat().st_mtime_ns for path in Path(".arms/mlflow/artifacts").rglob("*")} == times


@pytest.mark.parametrize(
    "spoil",
    [
        "DELETE FROM metrics WHERE step = 2",
        "DELETE FROM params WHERE key LIKE 'training.%'",
        "DELETE FROM tags WHERE key LIKE 'arms.data.%'",
        "UPDATE runs SET status = 'RUNNING', end_time = NULL",
    ],
)
def test_what_is_missing_is_filled_in_and_nothing_else_is_added(tree: Tree, spoil: str) -> None:
    first = complete_records(tracking_uri())
    dump = _without_times(_dump())
    assert _sql(spoil) > 0
    assert complete_records(tracking_uri()) == first
    assert _without_times(_dump()) == dump


def _without_times(dump: list[str]) -> list[str]:
    """The dump's rows in any order, without the moments in milliseconds at which something was written."""
    return sorted(
        "".join("T" if part.isdigit() and len(part) == 13 else part for part in _parts(line)) for line in dump
    )


def _parts(line: str) -> list[str]:
    return line.replace(",", "\0,\0").split("\0")


def test_artifacts_that_are_gone_are_put_back(tree: Tree) -> None:
    complete_records(tracking_uri())
    files = tree.sha256(".arms/mlflow/artifacts")
    shutil.rmtree(".arms/mlflow/artifacts")
    complete_records(tracking_uri())
    assert tree.sha256(".arms/mlflow/artifacts") == files


def test_artifact_that_changed_is_replaced(tree: Tree) -> None:
    recorded = complete_records(tracking_uri())
    Path("report/figures").mkdir(parents=True, exist_ok=True)
    for content in ("one", "two"):
        Path("report/figures/own.svg").write_text(content)
        assert complete_records(tracking_uri()) == recorded
        assert _artifact(open_client(tracking_uri()), recorded.pipeline_run, "figures/own.svg") == content.encode()


def test_wiped_store_is_rebuilt(tree: Tree) -> None:
    first = complete_records(tracking_uri())
    before = {stage: run.data.metrics for stage, run in _runs(open_client(tracking_uri()), first).items()}
    shutil.rmtree(".arms/mlflow")
    result = tree.run("python", "-c", COMPLETE)  # this process still has the old file open
    assert result.returncode == 0, result.stderr
    Path("moved.db").hardlink_to(_database())
    client = open_client(f"sqlite:///{Path('moved.db').absolute()}")
    runs = client.search_runs([first.experiment_id], "tags.`arms.kind` != 'pipeline'")
    assert {run.info.run_name: run.data.metrics for run in runs} == before
    assert not {run.info.run_id for run in runs} & set(first.runs.values())


def test_store_that_was_half_made_is_made_anew(tree: Tree) -> None:
    _database().unlink()
    left = Path(".arms/mlflow/.mlflow.db.abc.tmp")
    left.mkdir()
    (left / "mlflow.db").write_bytes(b"half")
    complete_records(tracking_uri())
    assert [path.name for path in Path(".arms/mlflow").iterdir() if path.name != "artifacts"] == ["mlflow.db"]


def test_run_in_the_trash_is_restored_and_that_is_said(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    first = complete_records(tracking_uri())
    client = open_client(tracking_uri())
    client.delete_run(first.runs["train_base"])
    client.delete_run(first.pipeline_run)
    assert complete_records(tracking_uri()) == first
    assert f"run 'train_base' ({first.runs['train_base']}) was in MLflow's trash; it is restored" in caplog.messages
    assert {run.info.lifecycle_stage for run in _all_runs(client, first)} == {"active"}


def test_experiment_in_the_trash_is_restored_and_that_is_said(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    first = complete_records(tracking_uri())
    open_client(tracking_uri()).delete_experiment(first.experiment_id)
    assert complete_records(tracking_uri()) == first
    assert "was in MLflow's trash; it is restored with its runs" in caplog.text


def test_stage_of_an_earlier_pipeline_keeps_its_run_and_parent(tree: Tree) -> None:
    first = complete_records(tracking_uri())
    params = tree.params()
    params["cascade_eval"]["draws"] = 300
    tree.write_params(params)
    assert tree.repro("cascade_eval") == ["cascade_eval"]
    second = complete_records(tracking_uri())
    client = open_client(tracking_uri())
    for stage in RECORDED[:3]:
        assert second.runs[stage] == first.runs[stage]
        tags = client.get_run(second.runs[stage]).data.tags
        assert tags["mlflow.parentRunId"] == first.pipeline_run
        assert second.pipeline_run in [value for name, value in tags.items() if name.startswith("arms.also_in.")]
    assert second.runs["cascade_eval"] != first.runs["cascade_eval"]
    tags = client.get_run(second.runs["cascade_eval"]).data.tags
    assert tags["mlflow.parentRunId"] == second.pipeline_run != first.pipeline_run
    assert client.get_run(second.pipeline_run).data.tags["arms.run.train_base"] == first.runs["train_base"]


def test_run_whose_parent_is_in_the_trash_comes_under_the_pipeline(tree: Tree) -> None:
    first = complete_records(tracking_uri())
    client = open_client(tracking_uri())
    other = client.create_run(first.experiment_id).info.run_id
    client.set_tag(first.runs["train_base"], "mlflow.parentRunId", other)
    client.delete_run(other)
    complete_records(tracking_uri())
    assert client.get_run(first.runs["train_base"]).data.tags["mlflow.parentRunId"] == first.pipeline_run


def test_nothing_to_learn_is_on_record(tree: Tree) -> None:
    reason = "pool 'new' has 0 VLMs and no labelled query in split train"
    Path("dvc.lock").unlink()
    Path("metrics/train_independent.json").unlink()
    Path("metrics/train_independent.json").write_text(json.dumps({"num_vlms": 0, "nothing_to_learn": reason}))
    Path("curves/train_independent.csv").unlink()
    Path("curves/train_independent.csv").write_text("member,epoch,train_loss,validation_loss,learning_rate\n")
    run = open_client(tracking_uri()).get_run(complete_records(tracking_uri()).runs["train_independent"])
    assert run.data.tags["arms.nothing_to_learn"] == reason
    assert run.data.metrics == {"num_vlms": 0}
    assert run.info.status == "FINISHED"


def test_two_processes_at_once_make_each_run_once(tree: Tree) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", COMPLETE], env=tree.environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    first, second = [process.communicate(timeout=120)[0] for process in processes]
    assert first == second != ""
    recorded = complete_records(tracking_uri())
    assert len(_all_runs(open_client(tracking_uri()), recorded)) == 5


def test_experiment_is_named_for_people_and_by_the_query_set(tree: Tree) -> None:
    recorded = complete_records(tracking_uri())
    digest = hashlib.sha256(Path("queries/queries.parquet").read_bytes()).hexdigest()[:8]
    experiment = open_client(tracking_uri()).get_experiment(recorded.experiment_id)
    assert experiment.name == f"recorded, 90 queries, {digest}"


def test_record_holds_no_secret_and_nothing_of_the_query_set(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARMS_TOY_KEY", SECRET)
    params = tree.params()
    params["vlms"][0]["endpoint"] = {
        "name": "toy", "base_url": f"http://user:{SECRET}@127.0.0.1:9/v1?key={SECRET}", "model": "toy",
        "api_key_variable": "ARMS_TOY_KEY", "headers": {"x-key": SECRET},
    }  # fmt: skip
    tree.write_params(params)
    Path("dvc.lock").unlink()  # so that params are those of the file
    complete_records(tracking_uri())
    stored = "\n".join(_dump()).encode() + b"\n".join(
        path.read_bytes() for path in Path(".arms/mlflow/artifacts").rglob("*") if path.is_file()
    )
    assert b"toy-colour-2b" in stored
    for word in (SECRET, "ARMS_TOY_KEY", "base_url", str(os.environ["HOME"])):
        assert word.encode() not in stored, word
    queries = pl.read_parquet("queries/queries.parquet")
    outputs = pl.concat([pl.read_parquet(f"collect/{pool}.parquet")["output"] for pool in ("base", "new")])
    for text in {*queries["question"], *queries["image"], *queries["image_sha256"], *outputs.drop_nulls()}:
        assert text.encode() not in stored, text
    assert b"\x89PNG" not in stored


def test_missing_stage_is_named_with_what_to_do(tree: Tree) -> None:
    shutil.rmtree("models/train_independent")
    with pytest.raises(DataError, match=r"models/train_independent is missing; run stage train_independent"):
        complete_records(tracking_uri())
    assert not Path(".arms/mlflow/artifacts").exists()


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_store_that_is_away_is_said_without_its_password(tree: Tree, scheme: str) -> None:
    place = f"127.0.0.1:{free_port()}"
    with pytest.raises(EndpointError) as caught:
        complete_records(f"{scheme}://ada:{SECRET}@{place}/arms")
    said = f"MLflow at {scheme}://{place}/arms: nothing listens there (connection refused). What is trained stays "
    assert str(caught.value).startswith(said)
    assert SECRET not in str(caught.value)


def test_driver_that_takes_a_password_apart_wrongly_gives_none_of_it_away(tree: Tree) -> None:
    with pytest.raises(EndpointError) as caught:
        complete_records(f"postgresql+psycopg2://ada:p@{SECRET}@no-such-host.invalid/arms")
    assert str(caught.value).startswith("MLflow at postgresql+psycopg2://no-such-host.invalid/arms: ")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"postgresql://ada:{SECRET}@host/arms", "postgresql://host/arms"),
        (f"mysql://ada:{SECRET}@host/arms", "mysql://host/arms"),
        ("./mlruns", "./mlruns"),
        ("file:///data/mlruns", "file:///data/mlruns"),
        ("databricks", "databricks"),
        ("http://", "http://"),
        ("http://host:port", "http://host:port"),
        ("sqlite:///", "sqlite:///"),
        ("sqlite:mlflow.db", "sqlite:mlflow.db"),
    ],
)
def test_uri_of_no_store_is_refused_with_what_to_write(monkeypatch: pytest.MonkeyPatch, uri: str, shown: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError) as caught:
        tracking_uri()
    assert str(caught.value).startswith(f"MLFLOW_TRACKING_URI: '{shown}' is no store that can be used here; write ")
    for form in ("http://host:port", "postgresql+psycopg2://", "sqlite:///"):
        assert form in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["http://host:5000", "https://host/x", "sqlite:////data/mlflow.db", "postgresql+psycopg2:///arms?host=/run/x"],
)
def test_uri_of_a_store_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri() == uri


def test_command_ends_without_a_traceback_and_without_retries(tree: Tree) -> None:
    refused = tree.run("python", "-m", "tasks.register", MLFLOW_TRACKING_URI="mysql://host/arms")
    assert refused.returncode == 2
    assert refused.stderr.startswith("register: MLFLOW_TRACKING_URI: 'mysql://host/arms' is no store")
    away = tree.run("python", "-m", "tasks.register", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    assert away.returncode == 1
    assert "nothing listens there (connection refused)" in away.stderr
    assert "Retry" not in away.stderr
    assert "Traceback" not in refused.stderr + away.stderr


def test_folders_of_this_machine_are_shown_by_their_last_part() -> None:
    encoder = {"q": {"kind": "local", "name": "/data/alice/models/x", "others": ["~/models/y/", "org/z"]}}
    shown = shown_params("train_base", {"train_base": {"question_encoders": encoder}, "base": {"where": "C:\\a\\b"}})
    assert shown == {
        "question_encoders.q.kind": "local",
        "question_encoders.q.name": "x",
        "question_encoders.q.others": '["y", "org/z"]',
        "base.where": "b",
    }


@pytest.mark.parametrize("store", ["mlflow_server", "postgres"])
def test_other_stores_hold_the_same_and_a_second_call_changes_nothing(
    tree: Tree, store: str, request: pytest.FixtureRequest
) -> None:
    expected = _told(tracking_uri())
    uri = request.getfixturevalue(store)
    assert _told(uri) == expected
    assert _told(uri) == expected


def _told(uri: str) -> dict[str, Any]:
    """What a store says of the tree's runs, but for ids and moments."""
    recorded = complete_records(uri)
    client = open_client(uri)
    told = {}
    for name, run_id in (*recorded.runs.items(), ("pipeline", recorded.pipeline_run)):
        run = client.get_run(run_id)
        tags = {
            key: value for key, value in run.data.tags.items() if not key.startswith(("arms.run.", "mlflow.parent"))
        }
        points = {
            key: sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))
            for key in run.data.metrics
        }
        told[name] = (run.info.status, run.data.params, tags, points, sorted(tracking._artifacts(client, run_id)))
    return told | {"runs": len(_all_runs(client, recorded))}
