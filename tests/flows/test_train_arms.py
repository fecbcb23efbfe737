"""`python -m flows.train_arms` as people run it, without a server, in a tree where all stages have run before."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Tree

pytestmark = pytest.mark.slow
LATE = {"name": "toy-late", "display_name": "Toy Late", "provider": "Closed Lab", "pool": "new"}
AFTER_A_NEW_VLM = {
    "profiles", "collect", "label", "train_incremental", "train_independent", "cascade_eval", "report", "register",
}  # fmt: skip


@pytest.fixture
def tree(copied_tree: Tree) -> Tree:
    (copied_tree.folder / ".arms").mkdir(exist_ok=True)
    return copied_tree


def train(tree: Tree, *words: str) -> tuple[int, str]:
    """Run the flow; gives its exit code and all that it printed."""
    found = tree.run("python", "-m", "flows.train_arms", *words, PREFECT_SERVER_ANALYTICS_ENABLED="false")
    return found.returncode, found.stdout + found.stderr


def artifacts(tree: Tree) -> dict[str, Any]:
    """What the runs left on Prefect's pages, the newest of each key."""
    with sqlite3.connect(tree.folder / ".arms/prefect/prefect.db") as database:
        rows = database.execute("select key, data from artifact order by created").fetchall()
    return {key: json.loads(data) for key, data in rows}


def states(tree: Tree) -> dict[str, str]:
    """The last state of each stage's task."""
    with sqlite3.connect(tree.folder / ".arms/prefect/prefect.db") as database:
        return dict(database.execute("select name, state_name from task_run order by created").fetchall())


def test_run_with_nothing_to_do_shows_every_stage_as_cached_and_starts_none(tree: Tree) -> None:
    before = tree.sha256("models")
    code, said = train(tree, "full")
    assert code == 0, said
    assert "12 had nothing to do" in said
    assert "dvc repro" not in said
    stages = [name for name, state in states(tree).items() if state == "Cached"]
    assert len(stages) == 12
    assert tree.sha256("models") == before


def test_new_vlm_runs_what_it_makes_stale_and_is_compared(tree: Tree) -> None:
    params = tree.params()
    params["vlms"].append(LATE)
    tree.write_params(params)
    before = tree.sha256("models/train_base")
    code, said = train(tree, "incremental", "--propose")
    assert code == 0, said
    assert tree.sha256("models/train_base") == before
    found = artifacts(tree)
    table = json.loads(found["stages"]) if isinstance(found["stages"], str) else found["stages"]
    assert {row["stage"] for row in table if row["outcome"] == "ran"} == AFTER_A_NEW_VLM
    changed = json.loads(found["metrics"]) if isinstance(found["metrics"], str) else found["metrics"]
    assert any(row["metric"].startswith("cascade_eval/metrics.json") for row in changed)
    assert {"promotion", "report"} <= set(found)
    assert "challenger against champion: " in said
    code, said = train(tree, "incremental", "--propose")
    assert code == 0, said
    assert "12 had nothing to do" in said
    assert "this challenger was compared before" in said


def test_incremental_refuses_to_train_the_base_router_for_another_reason(tree: Tree) -> None:
    params = tree.params()
    params["train_base"]["training"]["epochs"] = 2
    tree.write_params(params)
    code, said = train(tree, "incremental")
    assert code == 2
    assert "params.yaml: train_base modified" in said
    assert "Run train-arms/full for that, or take the change back" in said
    assert "Traceback" not in said
    code, said = train(tree, "base")
    assert code == 0, said
    assert "1 stages ran" in said


def test_failed_gate_stops_the_run_and_shows_its_rows(tree: Tree) -> None:
    params = tree.params()
    params["gates"]["split"]["min_queries"]["train"] = 1_000_000
    tree.write_params(params)
    code, said = train(tree, "full")
    assert code == 1
    assert "enough_queries" in said
    assert "Traceback" not in said
    assert states(tree)["split"] == "GateFailed"
    page = str(artifacts(tree)["failed-gate"])
    assert "enough_queries" in page
    assert "| split |" in page or "| train |" in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("base", "--force", "report"), "force: report is no stage of mode base"),
        (("full", "--preset", "presets/none.yaml"), "there is no presets/none.yaml"),
        (("full", "--sync"), "DVC has no default remote here"),
    ],
)
def test_mistake_is_named_without_a_traceback(tree: Tree, words: tuple[str, ...], says: str) -> None:
    code, said = train(tree, *words)
    assert code == 2
    assert says in said
    assert "Traceback" not in said


def test_server_that_is_gone_is_done_without_but_not_one_that_was_asked_for(tree: Tree) -> None:
    Path(tree.folder / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:9/api"\n')
    code, said = train(tree, "base")
    assert code == 0, said
    assert "does not answer; running without it" in said
    found = tree.run("python", "-m", "flows.train_arms", "base", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert found.returncode == 2
    assert "start it, or unset PREFECT_API_URL" in found.stdout
