"""The answer store: what VLMs answered, kept for ever in one SQLite file outside DVC's outputs.

A paid answer must survive: DVC removes a stage's outputs before it runs the stage, so answers are committed here as
they arrive and tables are sealed from here. The store only grows; nothing in it is changed or removed.

SQLite in WAL mode: a commit is one append to the log, safe once it is made when the process is killed; a torn last
record is left out by the log's own checksums. The disk is made to write once a second (`sync`), so a power loss costs a
second's answers at most. Several processes may read and write at once. The file must lie on a local disk: WAL needs
memory that processes share.

Beside answers the store keeps every failed attempt with its reason and what it may have cost, for error rows and
budgets. docs/decisions/0005-answer-store.md says why so.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from arms_model.errors import StorageError
from arms_model.locks import locked

log = logging.getLogger(__name__)
STORE = Path(".arms/answers.sqlite")
MIN_FREE_BYTES = 64 * 2**20  # with less left on the disk nobody is asked: the answer might not be kept
_TABLES = """
create table if not exists answers (
    key text not null, endpoint text not null, model text not null, served_model text not null, output text not null,
    finish_reason text, request_id text, latency_s real, prompt_tokens integer, completion_tokens integer,
    cost_usd real, answered_at real not null, primary key (key, served_model)
) without rowid;
create index if not exists answers_by_model on answers (endpoint, model, latency_s, prompt_tokens, completion_tokens);
create table if not exists attempts (
    key text not null, reason text not null, cost_usd real, tried_at real not null
);
create index if not exists attempts_by_key on attempts (key);
create table if not exists begun (endpoint text primary key);
"""
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer as it is kept.

    Attributes:
        key: see `requests.make_request`.
        endpoint: the endpoint's stable name.
        model: the model that was asked for.
        served_model: the model that the reply named; empty where it named none. An answer of another model than was
            asked for is kept like all others: whether it is taken is decided when tables are sealed.
        output: what it answered.
        finish_reason: why it stopped, in the endpoint's words; `content_filter` for a refusal.
        request_id: the provider's own id of the request.
        latency_s: from sending to the last byte, s, of the attempt that succeeded.
        prompt_tokens: as the endpoint counted.
        completion_tokens: as the endpoint counted.
        cost_usd: by the block's prices; None where none is known.
        answered_at: seconds since 1970.
    """

    key: str
    endpoint: str
    model: str
    served_model: str
    output: str
    finish_reason: str | None
    request_id: str | None
    latency_s: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    answered_at: float


_COLUMNS = [field.name for field in fields(Answer)]
_INSERT = f"insert or ignore into answers ({', '.join(_COLUMNS)}) values ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """The failed attempts at one key: the last reason, and what all of them may have cost, USD; None: no price."""

    reason: str
    cost_usd: float | None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one model's answers cost: number of answers, and USD with the failed attempts before them; 0: no price."""

    endpoint: str
    model: str
    num_answers: int
    spent_usd: float


class AnswerStore:
    """An open store; `with AnswerStore(path) as store`. One thread at a time, any number of processes."""

    def __init__(self, path: Path = STORE) -> None:
        """Open the store, and make it where there is none.

        Raises:
            StorageError: the file is no store, is damaged, of a newer version, or cannot be written.
        """
        self.path = path
        with self._explained(), contextlib.ExitStack() as opening:
            path.parent.mkdir(parents=True, exist_ok=True)
            opening.enter_context(_locked(path, "opening"))  # the switch to WAL waits for nobody, it fails
            self._connection = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._connection.execute("pragma journal_mode = wal")
            self._connection.execute("pragma synchronous = normal")  # a commit appends; `sync` has the disk write
            self._connection.execute("pragma wal_autocheckpoint = 0")
            version = self._connection.execute("pragma user_version").fetchone()[0]
            if version > _VERSION:
                raise StorageError(
                    f"{path} was written by a newer ARMS (version {version}, this one reads {_VERSION}); update ARMS."
                )
            self._connection.executescript(_TABLES)
            self._connection.execute(f"pragma user_version = {_VERSION}")

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Move what the log holds into the file and close it."""
        with contextlib.suppress(sqlite3.Error):  # a full disk: all stays in the log, where the next process finds it
            self._connection.execute("pragma wal_checkpoint(truncate)")
        self._connection.close()

    def add(self, answer: Answer) -> bool:
        """Keep an answer; committed when this returns. One that is there already stays as it is.

        Returns:
            Whether it was new.

        Raises:
            StorageError: the disk is full or refuses.
        """
        return self.add_all([answer]) == 1

    def add_all(self, answers: Iterable[Answer]) -> int:
        """Keep several answers in one commit; gives how many were new.

        Raises:
            StorageError: as `add`; then none was kept.
        """
        with self._explained():
            before = self._connection.total_changes
            self._connection.execute("begin immediate")
            try:
                self._connection.executemany(_INSERT, map(astuple, answers))
                self._connection.execute("commit")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("rollback")
                raise
            return self._connection.total_changes - before

    def add_attempt(self, key: str, *, reason: str, cost_usd: float | None) -> None:
        """Note a failed attempt; committed when this returns.

        Raises:
            StorageError: the disk is full or refuses.
        """
        with self._explained():
            self._connection.execute(
                "insert into attempts (key, reason, cost_usd, tried_at) values (?, ?, ?, ?)",
                (key, reason, cost_usd, time.time()),
            )

    def answers(self, keys: Iterable[str]) -> dict[str, list[Answer]]:
        """The answers that are there, by key; more than one where another model answered as well."""
        found: dict[str, list[Answer]] = {}
        for row in self._select(f"select {', '.join(_COLUMNS)} from answers where key in", keys):  # noqa: S608
            answer = Answer(**dict(zip(_COLUMNS, row, strict=True)))
            found.setdefault(answer.key, []).append(answer)
        return found

    def attempts(self, keys: Iterable[str]) -> dict[str, Attempts]:
        """The failed attempts, by key."""
        found: dict[str, Attempts] = {}
        for key, reason, cost_usd in self._select(
            "select key, reason, cost_usd from attempts where key in", keys, "order by rowid"
        ):
            earlier = found[key].cost_usd if key in found else None
            costs = [cost for cost in (earlier, cost_usd) if cost is not None]
            found[key] = Attempts(reason=reason, cost_usd=sum(costs) if costs else None)
        return found

    def served_models(self, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Which models answered: pairs of key and the model that the reply named; reads no output."""
        yield from self._select("select key, served_model from answers where key in", keys)

    def spent_usd(self, keys: Iterable[str]) -> float:
        """What answers and failed attempts at these keys cost together, USD; each key should come once."""
        keys = list(keys)
        statements = (f"select sum(cost_usd) from {table} where key in" for table in ("answers", "attempts"))  # noqa: S608
        sums = [row[0] for statement in statements for row in self._select(statement, keys)]
        return float(sum(cost for cost in sums if cost is not None))

    def spent_by_model(self) -> tuple[list[Spent], float]:
        """What all that is kept cost, by model; and what failed attempts cost whose question has no answer, USD.

        Of such an attempt the store does not know the model.
        """
        with self._explained():
            rows = self._connection.execute(
                "select endpoint, model, count(*), total(cost_usd) + total(failed_usd) from answers left join "
                "(select key, sum(cost_usd) as failed_usd from attempts group by key) using (key) "
                "group by endpoint, model order by endpoint, model"
            ).fetchall()
            unanswered = "select total(cost_usd) from attempts where key not in (select key from answers)"
            (failed_usd,) = self._connection.execute(unanswered).fetchone()
        names = [field.name for field in fields(Spent)]
        return [Spent(**dict(zip(names, row, strict=True))) for row in rows], float(failed_usd)

    def begin(self, endpoints: Iterable[str]) -> None:
        """Note that these endpoints, by their stable names, are asked from this store."""
        with self._explained():
            self._connection.executemany("insert or ignore into begun values (?)", [(name,) for name in endpoints])

    def begun(self) -> set[str]:
        """The endpoints that were asked from this store, or restored to it."""
        with self._explained():
            return {row[0] for row in self._connection.execute("select endpoint from begun")}

    def mean_of(self, *, endpoint: str, model: str) -> tuple[float | None, float | None, float | None]:
        """What a model's kept answers took on average: latency (s), prompt tokens, completion tokens; None: unknown."""
        with self._explained():
            row = self._connection.execute(
                "select avg(latency_s), avg(prompt_tokens), avg(completion_tokens) from answers "
                "where endpoint = ? and model = ?",
                (endpoint, model),
            ).fetchone()
        return row[0], row[1], row[2]

    def _select(self, statement: str, keys: Iterable[str], order: str = "") -> Iterator[tuple[Any, ...]]:
        keys = list(keys)
        for start in range(0, len(keys), 500):
            chunk = keys[start : start + 500]
            with self._explained():
                rows = self._connection.execute(f"{statement} ({', '.join('?' * len(chunk))}) {order}", chunk)
                yield from rows.fetchall()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's and the system's errors as StorageError."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            text = str(error)
            if "full" in text or "disk I/O" in text or "readonly" in text or "unable to open" in text:
                advice = "Free some space or make the folder writable, and run the same command again."
            elif "locked" in text:
                advice = "Another process has held it for a minute; wait for it, or stop it, and run again."
            else:
                advice = (
                    "Move the file away; `dvc checkout collect && python -m tasks.collect --restore` makes a new one "
                    "from the sealed tables."
                )
            raise StorageError(f"the answer store {self.path}: {text}. {advice}") from error
        except OSError as error:
            raise StorageError(
                f"the answer store {self.path}: {error.strerror}. Free some space or make the folder writable, and "
                "run the same command again."
            ) from error


def sync(path: Path) -> None:
    """Have the disk write what was committed so far; for a thread of its own, with a connection of its own."""
    with contextlib.suppress(OSError):  # no log: nothing was committed since the last checkpoint
        log_file = os.open(path.with_name(path.name + "-wal"), os.O_RDONLY)
        try:
            os.fsync(log_file)
        finally:
            os.close(log_file)
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path, timeout=0)) as connection:
        connection.execute("pragma wal_checkpoint(passive)")  # so that the log does not grow with every answer


def is_room_left(path: Path) -> bool:
    """Whether the disk has room for some more answers.

    Raises:
        StorageError: the store's folder is gone.
    """
    try:
        return shutil.disk_usage(path.parent).free >= MIN_FREE_BYTES
    except OSError as error:
        raise StorageError(
            f"the folder of the answer store {path} is gone ({error.strerror}); was it removed?"
        ) from None


@contextlib.contextmanager
def asking_alone(store: Path, models: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Hold the right to ask these models; waits while another process does.

    Two collections would else ask the same question at the same moment. The system frees a lock when its holder dies.

    Args:
        store: the store's file; locks lie beside it.
        models: pairs of endpoint name and model.
    """
    with contextlib.ExitStack() as stack:
        for endpoint, model in sorted(set(models)):  # everybody in the same order, so nobody waits in a ring
            waits_for = f"another collection asks {model} of {endpoint}"
            stack.enter_context(_locked(store, f"{endpoint}\n{model}", waits_for=waits_for))
        yield


@contextlib.contextmanager
def serving_alone(store: Path, endpoint: str) -> Iterator[None]:
    """Hold the right to start and stop the server of an endpoint; waits while another process has it."""
    with _locked(store, f"server of {endpoint}", waits_for=f"another collection uses the server of {endpoint}"):
        yield


@contextlib.contextmanager
def _locked(store: Path, what: str, *, waits_for: str | None = None) -> Iterator[None]:
    """Hold a lock beside the store; the system frees it when its holder dies."""
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    with locked(store.with_suffix(".locks") / name, waits_for=waits_for):
        yield
