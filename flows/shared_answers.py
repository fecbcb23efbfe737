"""Answers that other machines have paid for: which sealed tables hold them, and their way into this machine's store.

Each machine keeps its answers in a store of its own. What others have collected lies in the tables that stage `collect`
seals: those that `dvc.lock` names, and those of earlier runs, which DVC's run cache knows. Of the latter only those are
fetched that hold answers of a VLM that params name now and that no other table holds as well. So nobody is asked twice,
whether a team commits `dvc.lock` or not.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.repo import Repo, lock_repo
from dvc.stage.exceptions import StageNotFound
from dvc_data.hashfile.hash_info import HashInfo
from ruamel.yaml import YAML

from flows.command import CommandError, run
from flows.stage_runs import Logger

_COLLECT = "collect"
_TABLES = ("collect/base.parquet", "collect/new.parquet")
_SIGN = "path: gates/collect.json"  # stands in what collect wrote and in nothing else
_QUERIES = "queries/queries.parquet"
_DECIDING = ("benchmarks", "sample", "sample_from", "whole_benchmarks")  # of a block: which questions it is asked
_STORE, _RECORD = Path(".arms/answers.sqlite"), Path(".arms/restored.json")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one VLM was asked in one collection.

    Attributes:
        endpoint: the endpoint's name.
        model: the model there.
        questions: what decides its questions and answers, as a text.
    """

    endpoint: str
    model: str
    questions: str


@dataclass(frozen=True, kw_only=True)
class Collected:
    """One run of stage `collect`: what it asked, and the hashes of the tables that it sealed."""

    asked: frozenset[Asked]
    tables: frozenset[str]


def restore_answers(folder: Path, *, log: Logger) -> None:
    """Put what others have collected into the answer store of `folder`; asks nobody.

    Args:
        folder: a tree whose run cache has been fetched.
        log: takes what is said meanwhile.

    Raises:
        dvc.exceptions.DvcException: the remote is away, or DVC's lock is taken.
        flows.command.CommandError: the answer store takes nothing, e.g. a full disk.
    """
    done = _restored(folder)
    with Repo(str(folder)) as repo:
        with lock_repo(repo):  # else dvc.lock may be read half-written
            locked = _locked_tables(repo)
        missing = _pull(repo, locked - done)
        if missing:  # others are left alone, too: the store must not look complete
            log.warning("the DVC remote does not have the tables of answers that dvc.lock names: nothing is restored")
            return
        known = _run_cache(Path(repo.stage_cache.cache_dir))
        useful = useful_tables(known, models=_models(folder)) - done - locked
        useful -= _pull(repo, useful)
        new = sorted(locked - done) + sorted(useful)
        paths = [str(repo.cache.local.oid_to_path(md5)) for md5 in new]
    if not new:
        return
    words = ["python", "-m", "tasks.collect", "--restore", *paths]
    found = run(words, folder=folder, each_line=lambda line: log.info("%s", line))
    if found.code != 0:
        raise CommandError(f"answers of other machines could not be restored: {found.text}", code=found.code)
    (folder / _RECORD).write_text(json.dumps(sorted({*done, *new}), indent=1) + "\n", encoding="utf-8")


def useful_tables(known: Collection[Collected], *, models: Collection[tuple[str, str]]) -> set[str]:
    """Of many collections, the tables that together hold all answers of some VLMs; large collections first.

    Args:
        known: the collections.
        models: endpoint and model of each VLM that is of interest.
    """
    tables: dict[frozenset[Asked], set[str]] = {}  # several, where what ended in an error was asked again
    for each in known:
        of_interest = frozenset(asked for asked in each.asked if (asked.endpoint, asked.model) in models)
        tables.setdefault(of_interest, set()).update(each.tables)
    found: set[str] = set()
    covered: frozenset[Asked] = frozenset()
    for of_interest in sorted(tables, key=lambda asked: (-len(asked), sorted(tables[asked]))):
        if not of_interest <= covered:
            covered |= of_interest
            found |= tables[of_interest]
    return found


def _restored(folder: Path) -> set[str]:
    """The tables that an earlier call has put into the store."""
    if not (folder / _STORE).exists() or not (folder / _RECORD).exists():
        return set()
    return set(json.loads((folder / _RECORD).read_text(encoding="utf-8")))


def _locked_tables(repo: Any) -> set[str]:
    """The tables that `dvc.lock` names."""
    try:
        outs = repo.stage.load_one(path=str(Path(repo.root_dir) / "dvc.yaml"), name=_COLLECT).outs
    except StageNotFound:
        return set()
    return {out.hash_info.value for out in outs if out.def_path in _TABLES and out.hash_info}


def _pull(repo: Any, tables: Collection[str]) -> set[str]:
    """Bring tables into DVC's cache; gives those that are nowhere."""
    away = [md5 for md5 in tables if not repo.cache.local.exists(md5)]
    if away and repo.config["core"].get("remote"):
        repo.cloud.pull({HashInfo("md5", md5) for md5 in away})
    return {md5 for md5 in away if not repo.cache.local.exists(md5)}


def _run_cache(folder: Path) -> list[Collected]:
    """All runs of stage `collect` at endpoints that DVC's run cache knows."""
    yaml = YAML(typ="safe")
    found = []
    for path in sorted(path for path in folder.glob("??/*/*") if path.is_file()):
        text = path.read_text(encoding="utf-8")
        if _SIGN in text:
            found += list(_collected(yaml.load(text)))
    return found


def _collected(entry: Any) -> Iterator[Collected]:
    """What an entry of the run cache says; nothing where answers were recorded by others."""
    outs = {out["path"]: out["md5"] for out in entry.get("outs", [])}
    params = entry.get("params", {}).get("params.yaml", {})
    if (params.get(_COLLECT) or {}).get("source") != "endpoint" or not outs.keys() >= {*_TABLES}:
        return
    queries = next((dep.get("md5") for dep in entry.get("deps", []) if dep["path"] == _QUERIES), None)
    blocks = [block for block in params.get("vlms") or [] if isinstance(block.get("endpoint"), dict)]
    yield Collected(
        asked=frozenset(_asked(block, queries) for block in blocks), tables=frozenset(outs[name] for name in _TABLES)
    )


def _asked(block: Any, queries: str | None) -> Asked:
    endpoint, model = _model(block)
    settings = {key: value for key, value in block["endpoint"].items() if key != "base_url"}
    deciding = [queries, settings, *(block.get(key) for key in _DECIDING)]
    return Asked(endpoint=endpoint, model=model, questions=json.dumps(deciding, sort_keys=True, default=str))


def _models(folder: Path) -> set[tuple[str, str]]:
    """Endpoint and model of each VLM of the params as they stand."""
    params = YAML(typ="safe").load((folder / "params.yaml").read_text(encoding="utf-8")) or {}
    return {_model(block) for block in params.get("vlms") or [] if isinstance(block.get("endpoint"), dict)}


def _model(block: Any) -> tuple[str, str]:
    endpoint = block["endpoint"]
    return str(endpoint.get("name")), str(endpoint.get("model"))
