"""Paid answers survive: `collect` killed, stopped, torn, run twice at once, out of disk; what was asked is counted.

The server lives in the test's process, so it remembers what a killed collection had asked.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from tests.tasks.asking import COLLECT, STORE, asked_twice, vlm, words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.tasks.asking import AskingFolder
    from tests.tasks.hostile import Hostile

PRICE = {"usd_per_mtok_in": 1, "usd_per_mtok_out": 1}


def wait_until(condition: Callable[[], bool], *, process: subprocess.Popen[str] | None = None) -> None:
    """Wait for something that happens within seconds; fail where it does not."""
    deadline = time.monotonic() + 60
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended with {process.returncode} meanwhile: {process.communicate()}")
        assert time.monotonic() < deadline, "waited a minute"
        time.sleep(0.005)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_kill_at_20_random_points_loses_no_answer_and_asks_none_again_that_was_not_in_flight(
    asking: AskingFolder, server: Hostile
) -> None:
    concurrency, names = 2, ("one", "two", "three", "four", "five", "six")
    server.latency_s = 0.02
    asking.prepare(*(vlm(name, server.base_url, endpoint={"concurrency": concurrency}) for name in names))
    draw = random.Random(7)
    may_be_asked_again: dict[str, set[tuple[str, str]]] = {name: set() for name in names}
    for _ in range(20):
        known = len(server.asked)
        process = asking.start()
        further = draw.randint(1, 24)
        wait_until(lambda: len(server.asked) >= known + further, process=process)  # noqa: B023 - called at once
        time.sleep(draw.uniform(0, 0.02))
        kill(process)
        time.sleep(0.05)  # the server may still be reading what was sent last
        for name in names:
            may_be_asked_again[name] |= set(server.questions(name)[-concurrency:])
    num_asked_before_the_end = len(server.asked)
    assert num_asked_before_the_end < 6 * 90  # else the last kills met nothing
    assert asking.collect().returncode == 0
    assert asking.table().height == 6 * 90
    assert asking.table()["error"].count() == 0
    for name in names:
        questions = server.questions(name)
        assert len(set(questions)) == 90
        assert [question for question in asked_twice(questions) if question not in may_be_asked_again[name]] == []
    assert len(server.asked) > 6 * 90  # some were in flight: the test did kill at work


def test_answer_is_kept_once_the_next_is_asked(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("toy", server.base_url, endpoint={"concurrency": 1}))
    server.script["toy"] = ["answer"] * 30 + ["hang"]
    process = asking.start()
    wait_until(lambda: len(server.asked) == 31, process=process)
    kill(process)
    assert asking.stored() == 30


@pytest.mark.parametrize(("signum", "code", "how"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_stopped_collection_waits_for_answers_under_way(
    asking: AskingFolder, server: Hostile, signum: int, code: int, how: str
) -> None:
    server.latency_s = 1.0
    asking.prepare(vlm("toy", server.base_url, endpoint={"concurrency": 4}))
    process = asking.start()
    wait_until(lambda: len(server.asked) == 4, process=process)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "waiting for 4 answers under way" in errors
    assert f"stopped by {how}" in errors
    assert "Traceback" not in errors
    assert len(server.asked) == 4
    assert asking.stored() == 4
    assert not (asking.folder / "collect").exists()


def test_second_ctrl_c_stops_at_once(asking: AskingFolder, server: Hostile) -> None:
    server.script["toy"] = ["hang"]
    asking.prepare(vlm("toy", server.base_url, endpoint={"concurrency": 2, "timeout_s": 60}, usd_per_call=0.5))
    process = asking.start()
    wait_until(lambda: len(server.asked) == 2, process=process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert asking.stored("select sum(cost_usd) from attempts") == 2 * 0.5  # they may be billed


def test_two_collections_at_once_ask_each_question_once(asking: AskingFolder, server: Hostile) -> None:
    server.latency_s = 0.05
    asking.prepare(vlm("one", server.base_url), vlm("two", server.base_url))
    processes = [asking.start(), asking.start()]
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert len(server.asked) == 180
    assert any("stage collect is at work in this folder already" in errors for _, errors in ends)
    assert asking.table().height == 180


def test_collection_goes_on_when_the_one_it_waits_for_is_killed(asking: AskingFolder, server: Hostile) -> None:
    server.latency_s = 0.05
    asking.prepare(vlm("toy", server.base_url, endpoint={"concurrency": 2}))
    first = asking.start()
    wait_until(lambda: len(server.asked) >= 5, process=first)
    second = asking.start()
    time.sleep(1.5)
    kill(first)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert 90 <= len(server.asked) <= 92  # two were in flight


def test_torn_last_record_costs_one_answer_and_no_more(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("toy", server.base_url, endpoint={"concurrency": 1}))
    server.script["toy"] = ["answer"] * 30 + ["hang"]
    process = asking.start()
    wait_until(lambda: len(server.asked) == 31, process=process)
    kill(process)
    log = asking.folder / f"{STORE}-wal"
    with log.open("r+b") as handle:
        handle.truncate(log.stat().st_size - 100)
    server.script.clear()
    hung = server.questions("toy")[30]
    result = asking.collect()
    assert result.returncode == 0, result.stderr
    assert asking.table().height == 90
    again = set(asked_twice(server.questions("toy"))) - {hung}
    assert again <= {server.questions("toy")[29]}


def test_garbage_after_the_last_record_costs_nothing(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("toy", server.base_url, endpoint={"concurrency": 1}))
    server.script["toy"] = ["answer"] * 30 + ["hang"]
    process = asking.start()
    wait_until(lambda: len(server.asked) == 31, process=process)
    kill(process)
    with (asking.folder / f"{STORE}-wal").open("ab") as handle:
        handle.write(os.urandom(3000))
    server.script.clear()
    assert asking.collect().returncode == 0
    assert asked_twice(server.questions("toy")) == [server.questions("toy")[30]]  # the one that hung


def test_damaged_store_is_said_and_comes_back_from_sealed_tables(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("toy", server.base_url))
    assert asking.collect().returncode == 0
    sealed = asking.table()
    store = asking.folder / STORE
    store.write_bytes(os.urandom(5000))
    result = asking.collect()
    assert result.returncode == 1
    assert "python -m tasks.collect --restore" in words(result.stderr)
    assert "Traceback" not in result.stderr
    store.unlink()
    assert asking.collect("--restore").returncode == 0
    asking.forget_sealed()
    assert asking.collect().returncode == 0
    assert len(server.asked) == 90
    assert asking.table().equals(sealed)


def test_store_comes_back_from_sealed_tables_and_nobody_is_asked_again(asking: AskingFolder, server: Hostile) -> None:
    server.script["refusing"] = ["refusal"]
    blocks = [
        vlm("refusing", server.base_url, sample=10, **PRICE),
        vlm("late", server.base_url, sample=10, pool="new"),
        vlm("renamed", server.base_url, sample=10, endpoint={"model": "toy/renamed"}),
    ]
    asking.prepare(*blocks)
    assert asking.collect().returncode == 0
    files = [(asking.folder / f"collect/{pool}.parquet") for pool in ("base", "new")]
    before, num_asked = [file.read_bytes() for file in files], len(server.asked)
    shutil.rmtree(asking.folder / ".arms")
    (asking.folder / "queries").rename(asking.folder / "away")  # a fresh clone has fetched `collect` alone
    result = asking.collect("--restore")
    assert result.returncode == 0, result.stderr
    assert "30 answers restored" in result.stderr
    (asking.folder / "away").rename(asking.folder / "queries")
    assert [file.read_bytes() for file in files] == before
    asking.forget_sealed()
    assert asking.collect().returncode == 0
    assert len(server.asked) == num_asked
    assert [file.read_bytes() for file in files] == before


def test_restoring_into_a_store_changes_nothing_that_is_there(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("toy", server.base_url, sample=10))
    assert asking.collect().returncode == 0
    result = asking.collect("--restore")
    assert result.returncode == 0
    assert ": 0 answers restored" in result.stderr
    assert asking.stored() == 10


LIMITED = 'ulimit -f {kibibytes}; exec "$@"'


def test_full_disk_keeps_what_came_and_goes_on_later(asking: AskingFolder, server: Hostile) -> None:
    server.answer = lambda asked: f"{asked.question} " * 40  # a few kilobytes each
    asking.prepare(vlm("toy", server.base_url, endpoint={"concurrency": 2}))
    process = asking.start("bash", "-c", LIMITED.format(kibibytes=1000), "bash", *COLLECT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "the answer store .arms/answers.sqlite" in words(errors)
    assert "Free some space" in words(errors)
    assert "Traceback" not in errors
    num_asked, num_kept = len(server.asked), int(asking.stored())
    assert 10 < num_kept < 90
    assert num_kept <= num_asked <= num_kept + 2 * 2
    assert asking.collect().returncode == 0
    assert asking.table().height == 90
    assert len(server.asked) == num_asked + 90 - num_kept


def test_nearly_full_disk_asks_nobody(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("toy", server.base_url))
    script = 'mkdir -p .arms && mount -t tmpfs -o size=4m none .arms 2>/dev/null || exit 77; "$@"'
    process = asking.start("unshare", "-m", "bash", "-c", script, "bash", *COLLECT)
    _, errors = process.communicate(timeout=60)
    if process.returncode not in (0, 1):
        pytest.skip("this user may not mount a small file system")
    assert process.returncode == 1, errors
    assert "is nearly full; nothing more is asked" in words(errors)
    assert server.asked == []


def test_tables_are_the_same_bytes_whatever_order_answers_came_in(
    asking: AskingFolder, server: Hostile, tmp_path: Path
) -> None:
    asking.prepare(vlm("one", server.base_url), vlm("two", server.base_url, pool="new"))
    assert asking.collect().returncode == 0
    before = [(asking.folder / f"collect/{pool}.parquet").read_bytes() for pool in ("base", "new")]
    with closing(sqlite3.connect(asking.folder / STORE)) as old, closing(sqlite3.connect(tmp_path / "other")) as new:
        new.executescript("\n".join(old.iterdump()))
        new.execute("create table shuffled as select * from answers order by random()")
        new.execute("delete from answers")
        new.execute("insert into answers select * from shuffled")
        new.execute("drop table shuffled")
        version = old.execute("pragma user_version").fetchone()[0]
        new.execute(f"pragma user_version = {version}")
        new.commit()
    shutil.copy(tmp_path / "other", asking.folder / STORE)
    asking.forget_sealed()
    assert asking.collect().returncode == 0
    assert [(asking.folder / f"collect/{pool}.parquet").read_bytes() for pool in ("base", "new")] == before
    assert len(server.asked) == 180


def test_sample_of_what_base_answers_is_asked_of_nothing_else(asking: AskingFolder, server: Hostile) -> None:
    server.answer = lambda asked: "Yes"
    paid = {"pool": "new", "sample": 8, "sample_from": "answered_by_base", "benchmarks": ["verdicts"]}
    asking.prepare(vlm("base", server.base_url, benchmarks=["verdicts"]), vlm("paid", server.base_url, **paid))
    result = asking.collect()
    assert result.returncode == 0, result.stderr
    right = {row["query_id"] for row in verdicts(asking) if row["answer"] == "Yes"}
    assert 8 < len(right) < 30
    assert len(server.questions("paid")) == 8
    assert set(asking.table("new")["query_id"]) <= right
    assert server.models()[:30] == ["base"] * 30
    paid["sample"] = 12  # a larger sample keeps the smaller one's queries
    asking.prepare(vlm("base", server.base_url, benchmarks=["verdicts"]), vlm("paid", server.base_url, **paid))
    assert asking.collect().returncode == 0
    assert len(server.questions("paid")) == min(12, len(right))
    assert asked_twice(server.questions("paid")) == []


def verdicts(asking: AskingFolder) -> list[dict[str, Any]]:
    queries = pl.read_parquet(asking.folder / "queries/queries.parquet")
    return queries.filter(pl.col("benchmark") == "verdicts").to_dicts()


def test_host_and_limits_may_change_and_nobody_is_asked_again(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("toy", server.base_url, sample=20))
    assert asking.collect().returncode == 0
    moved = {"base_url": "http://127.0.0.1:9/v1", "concurrency": 1, "timeout_s": 9, "retries": 0}
    asking.prepare(vlm("toy", server.base_url, sample=20, usd_per_call=1, endpoint=moved))
    assert asking.collect().returncode == 0
    assert len(server.asked) == 20


def test_what_decides_an_answer_is_asked_anew(asking: AskingFolder, server: Hostile) -> None:
    changes: dict[str, dict[str, Any]] = {
        "model": {"model": "toy-2"}, "name": {"name": "elsewhere"}, "system": {"system": "Be brief."},
        "prompt": {"prompt": "{question} Be brief."}, "temperature": {"generation": {"temperature": 1}},
        "detail": {"image_detail": "low"}, "side": {"max_side": 32},
    }  # fmt: skip
    asking.prepare(vlm("toy", server.base_url, sample=3))
    assert asking.collect().returncode == 0
    changed = [vlm(name, server.base_url, sample=3, endpoint={"model": "toy"} | new) for name, new in changes.items()]
    asking.prepare(
        vlm("toy", server.base_url, sample=3),
        vlm("twin", server.base_url, sample=3, endpoint={"model": "toy"}),
        *changed,
    )
    assert asking.collect().returncode == 0
    assert asking.table().height == 3 * 9
    bodies = Counter(json.dumps(asked.body, sort_keys=True) for asked in server.asked)
    assert len(server.asked) == 3 + 3 * len(changes)  # the twin asks nothing
    assert sorted(bodies.values()) == [1] * 18 + [2] * 3  # another service is asked in the same words


def test_requests_at_once_and_a_minute_stay_under_their_limits(asking: AskingFolder, server: Hostile) -> None:
    server.latency_s = 0.05
    asking.prepare(vlm("toy", server.base_url, sample=12, endpoint={"concurrency": 3, "requests_per_minute": 600}))
    assert asking.collect().returncode == 0
    assert server.most_at_once <= 3
    times = [asked.at_s for asked in server.asked]
    assert times[-1] - times[0] >= 11 * 0.1 - 0.3  # a busy machine lets the first arrive late; unpaced it is 0.2
