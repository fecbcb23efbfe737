"""A second machine's answer store is filled from what the DVC remote knows: tables of dvc.lock and of the run cache."""

import logging
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML

from flows import sharing
from flows.shared_answers import Asked, Collected, restore_answers, useful_tables
from tasks.common.endpoint.answers import AnswerStore
from tasks.common.tables import SCHEMAS, write_table
from tests.conftest import CHECKOUT
from tests.flows.mini import dvc

LOG = logging.getLogger(__name__)
DVC_YAML = """
stages:
  collect:
    cmd: mkdir -p gates collect && cp source/base.parquet source/new.parquet collect && echo {} > gates/collect.json
    deps: [source, queries/queries.parquet]
    params: [collect, vlms]
    outs: [gates/collect.json, collect/base.parquet, collect/new.parquet]
"""
ANSWERS = {"toy": {"k1": "yes", "k2": None}, "big": {"k3": "no"}}  # by VLM: key and answer; None: it ended in an error


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first machine's tree: it has collected, and pushed."""
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    folder = write_tree(tmp_path / "first", remote=tmp_path / "remote")
    collect(folder, ANSWERS)
    return folder


def write_tree(folder: Path, *, remote: Path) -> Path:
    (folder / "queries").mkdir(parents=True)
    (folder / "queries/queries.parquet").write_bytes(b"a query set")
    dvc(folder, "init", "--no-scm", "--quiet")
    dvc(folder, "remote", "add", "--quiet", "--default", "team", str(remote))
    (folder / "dvc.yaml").write_text(DVC_YAML)
    return folder


def collect(folder: Path, answers: dict[str, dict[str, str | None]]) -> None:
    """Seal these answers, as stage `collect` does, and push them."""
    write_params(folder, *answers)
    (folder / "source").mkdir(exist_ok=True)
    for pool, vlms in (("base", ["toy"]), ("new", ["big"])):
        rows = [_row(vlm, key, answers[vlm][key]) for vlm in vlms for key in answers.get(vlm, {})]
        write_table(folder / f"source/{pool}.parquet", pl.DataFrame(rows, schema=SCHEMAS["collect"]), "collect")
    dvc(folder, "repro", "--quiet")
    dvc(folder, "push", "--run-cache", "--quiet")


def _row(vlm: str, key: str, answer: str | None) -> dict[str, Any]:
    row = dict.fromkeys(SCHEMAS["collect"]) | {"query_id": f"q-{key}", "vlm": vlm, "answer_key": key, "spent_usd": 1.0}
    return row | ({"error": "HTTP 500"} if answer is None else {"output": answer, "cost_usd": 1.0})


def write_params(folder: Path, *vlms: str) -> None:
    blocks = [
        {"name": vlm, "display_name": vlm, "provider": "Toy Lab", "pool": "base" if vlm == "toy" else "new"}
        | {"endpoint": {"name": "toy", "model": vlm, "base_url": "http://127.0.0.1:9/v1"}}
        for vlm in vlms
    ]
    with (folder / "params.yaml").open("w") as handle:
        YAML().dump({"collect": {"source": "endpoint"}, "vlms": blocks}, handle)


def second_machine(first: Path, *, name: str = "second", lock: bool = False) -> Path:
    """A tree that shares the remote alone; with `lock`, dvc.lock was committed and has come along."""
    folder = write_tree(first.parent / name, remote=first.parent / "remote")
    write_params(folder, "toy", "late")  # another list of VLMs: no result of the first machine's fits
    if lock:
        shutil.copy(first / "dvc.lock", folder)
    return folder


def restore(folder: Path) -> dict[str, str]:
    """Fetch and restore; the answers that the store holds then."""
    sharing.fetch(folder, log=LOG)
    restore_answers(folder, log=LOG)
    if not (folder / ".arms/answers.sqlite").exists():
        return {}
    with AnswerStore(folder / ".arms/answers.sqlite") as store:
        return {key: found[0].output for key, found in store.answers(["k1", "k2", "k3", "k4"]).items()}


@pytest.mark.parametrize("lock", [False, True])
def test_answers_are_restored_whether_the_lock_is_committed_or_not(first: Path, lock: bool) -> None:
    folder = second_machine(first, lock=lock)
    assert restore(folder) == {"k1": "yes", "k3": "no"}
    assert not (folder / "collect").exists()  # the tree is left as it was


def test_restored_tables_are_not_read_again(first: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = second_machine(first)
    with caplog.at_level(logging.INFO):
        restore(folder)
        assert "2 answers restored" in caplog.text
        caplog.clear()
        assert restore(folder) == {"k1": "yes", "k3": "no"}
        assert "answers restored" not in caplog.text
        shutil.rmtree(folder / ".arms")  # the store is lost
        assert restore(folder) == {"k1": "yes", "k3": "no"}
        assert "2 answers restored" in caplog.text


def test_answer_that_came_after_an_error_is_restored(first: Path) -> None:
    collect(first, {"toy": {"k1": "yes", "k2": "at last"}, "big": {"k3": "no"}})
    assert restore(second_machine(first)) == {"k1": "yes", "k2": "at last", "k3": "no"}


def test_nothing_is_restored_where_the_tables_of_the_lock_are_lost(
    first: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locked = (first / "dvc.lock").read_text()
    collect(first, {"toy": {"k4": "other"}})
    folder = second_machine(first)
    sealed = next(line.split()[-1] for line in locked.splitlines() if "md5:" in line and _names_table(locked, line))
    (folder / "dvc.lock").write_text(locked)
    for place in (first.parent / "remote").rglob(sealed[2:]):
        place.unlink()
    assert restore(folder) == {}
    assert "does not have the tables of answers that dvc.lock names" in caplog.text


def _names_table(lock: str, line: str) -> bool:
    before = lock[: lock.index(line)]
    return before.rstrip().splitlines()[-2].endswith("collect/base.parquet")


def test_result_of_the_run_cache_is_brought_without_running_the_stage(first: Path) -> None:
    folder = second_machine(first)
    write_params(folder, *ANSWERS)
    shutil.copytree(first / "source", folder / "source")
    sharing.fetch(folder, log=LOG)
    assert not sharing.bring_result("collect", folder, pull=False)  # the run is known, its outputs are away
    assert sharing.bring_result("collect", folder, pull=True)
    assert (folder / "collect/new.parquet").read_bytes() == (first / "collect/new.parquet").read_bytes()
    write_params(folder, "toy")
    assert not sharing.bring_result("collect", folder, pull=True)


def test_tree_without_collections_restores_nothing(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "tree", remote=tmp_path / "remote")
    write_params(folder, "toy")
    (folder / "dvc.yaml").write_text("stages: {}\n")
    restore_answers(folder, log=LOG)
    assert not (folder / ".arms").exists()


def collected(asked: str, *tables: str) -> Collected:
    """What a collection asked, a letter for each VLM."""
    found = frozenset(Asked(endpoint="toy", model=letter, questions=letter) for letter in asked)
    return Collected(asked=found, tables=frozenset(tables))


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([collected("a", "1"), collected("abc", "3"), collected("ab", "2")], {"3"}),  # the largest holds all
        ([collected("ab", "1"), collected("b", "2"), collected("c", "3")], {"1", "3"}),
        ([collected("ax", "1"), collected("a", "2"), collected("x", "3")], {"1", "2"}),  # nobody wants x; 1 and 2 alike
        ([collected("a", "1"), collected("a", "2")], {"1", "2"}),  # asked again after errors
        ([collected("x", "1")], set()),
        ([], set()),
    ],
)
def test_few_tables_hold_all_answers_of_interest(known: list[Collected], expected: set[str]) -> None:
    models = {("toy", "a"), ("toy", "b"), ("toy", "c")}
    assert useful_tables(known, models=models) == expected
