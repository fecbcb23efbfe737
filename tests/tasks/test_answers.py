"""The answer store: what is committed stays, whatever happens to the process or the file's last record."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from arms_model.errors import StorageError
from tasks.common.endpoint.answers import Answer, AnswerStore, asking_alone, sync

ROOT = Path(__file__).resolve().parents[2]
ONE = Answer(
    key="k1", endpoint="toy", model="m", served_model="m", output="Grüße, 3 €", finish_reason="stop", request_id="r1",
    latency_s=0.25, prompt_tokens=10, completion_tokens=2, cost_usd=0.001, answered_at=1.0,
)  # fmt: skip
ADD_AND_DIE = textwrap.dedent("""
    import os, signal, sys
    from dataclasses import replace
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from tasks.common.endpoint.answers import Answer, AnswerStore
    one = Answer(key="", endpoint="toy", model="m", served_model="", output="x", finish_reason=None, request_id=None,
                 latency_s=None, prompt_tokens=None, completion_tokens=None, cost_usd=None, answered_at=0.0)
    store = AnswerStore(Path(sys.argv[1]))
    for number in range(50):
        store.add(replace(one, key=f"k{number}"))
    os.kill(os.getpid(), signal.SIGKILL)
""")

OPEN_MANY = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from tasks.common.endpoint.answers import AnswerStore
    for number in range(200):  # one meeting in twenty goes wrong where nobody waits
        time.sleep(max(0, float(sys.argv[3]) + 0.012 * number - time.time()))
        AnswerStore(Path(sys.argv[1]) / f"{number}.sqlite").close()
""")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep/answers.sqlite"


def test_store_gives_back_what_it_was_given(path: Path) -> None:
    with AnswerStore(path) as store:
        store.add(ONE)
    with AnswerStore(path) as store:
        assert store.answers(["k1", "unknown"]) == {"k1": [ONE]}


def test_store_keeps_the_first_answer_of_a_key(path: Path) -> None:
    with AnswerStore(path) as store:
        assert store.add_all([ONE, replace(ONE, key="k2")]) == 2
        assert store.add_all([replace(ONE, output="another")]) == 0
        assert store.answers(["k1"]) == {"k1": [ONE]}


def test_store_keeps_an_answer_of_another_model_beside_the_first(path: Path) -> None:
    with AnswerStore(path) as store:
        store.add(ONE)
        store.add(replace(ONE, served_model="other"))
        assert {answer.served_model for answer in store.answers(["k1"])["k1"]} == {"m", "other"}


def test_store_finds_more_keys_than_a_statement_may_name(path: Path) -> None:
    keys = [f"k{number}" for number in range(2500)]
    with AnswerStore(path) as store:
        store.add_all([replace(ONE, key=key) for key in keys])
        assert set(store.answers(keys)) == set(keys)


def test_attempts_give_the_last_reason_and_the_sum_of_costs(path: Path) -> None:
    with AnswerStore(path) as store:
        store.add_attempt("k1", reason="timed out", cost_usd=0.25)
        store.add_attempt("k1", reason="HTTP 500", cost_usd=0.0)
        store.add_attempt("k2", reason="HTTP 500", cost_usd=None)
        found = store.attempts(["k1", "k2", "k3"])
    assert (found["k1"].reason, found["k1"].cost_usd) == ("HTTP 500", 0.25)
    assert found["k2"].cost_usd is None
    assert set(found) == {"k1", "k2"}


def test_means_are_those_of_the_model(path: Path) -> None:
    with AnswerStore(path) as store:
        store.add_all([ONE, replace(ONE, key="k2", latency_s=0.75), replace(ONE, key="k3", model="n", latency_s=9.0)])
        assert store.mean_of(endpoint="toy", model="m") == (0.5, 10.0, 2.0)
        assert store.mean_of(endpoint="toy", model="unknown") == (None, None, None)


def test_killed_process_loses_no_committed_answer(path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", ADD_AND_DIE, str(path), str(ROOT)], check=False)
    assert result.returncode == -signal.SIGKILL
    with AnswerStore(path) as store:
        assert len(store.answers([f"k{number}" for number in range(50)])) == 50


@pytest.mark.parametrize("spoil", ["cut", "garbled"])
def test_torn_last_record_is_left_out_and_the_rest_recovered(path: Path, spoil: str) -> None:
    subprocess.run([sys.executable, "-c", ADD_AND_DIE, str(path), str(ROOT)], check=False)
    log = path.with_name(path.name + "-wal")
    content = log.read_bytes()
    log.write_bytes(content[:-700] if spoil == "cut" else content[:-700] + os.urandom(700))
    with AnswerStore(path) as store:
        found = store.answers([f"k{number}" for number in range(50)])
        assert set(found) == {f"k{number}" for number in range(49)}
        store.add(replace(ONE, key="k49"))
    with AnswerStore(path) as store:
        assert len(store.answers([f"k{number}" for number in range(50)])) == 50


def test_sync_moves_the_log_into_the_file(path: Path) -> None:
    with AnswerStore(path) as store:
        store.add(ONE)
        sync(path)
        alone = path.with_name("copy.sqlite")  # the file without its log
        alone.write_bytes(path.read_bytes())
    with AnswerStore(alone) as store:
        assert store.answers(["k1"]) == {"k1": [ONE]}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc")
def test_sync_has_the_disk_write_the_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    fsync = os.fsync

    def fsync_and_note(number: int) -> None:
        fsync(number)
        written.append(str(Path(f"/proc/self/fd/{number}").readlink()))

    monkeypatch.setattr(os, "fsync", fsync_and_note)
    with AnswerStore(path) as store:
        store.add(ONE)
        sync(path)
    assert written == [f"{path}-wal"]


def test_many_processes_open_a_new_store_at_once(tmp_path: Path) -> None:
    start = str(time.time() + 1.0)  # by then all have started
    command = [sys.executable, "-c", OPEN_MANY, str(tmp_path), str(ROOT), start]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert errors == [""] * 6


def _add_many(path: Path, start: int) -> None:
    with AnswerStore(path) as store:
        for number in range(start, start + 200):
            store.add(replace(ONE, key=f"k{number}", served_model=str(os.getpid())))


def test_two_processes_write_to_one_store(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_many, args=(path, start)) for start in (0, 100)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    with AnswerStore(path) as store:
        found = store.answers([f"k{number}" for number in range(300)])
    assert sorted(len(kept) for kept in found.values()) == [1] * 200 + [2] * 100


def test_damaged_file_is_named_with_the_way_out(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(StorageError, match=r"answers\.sqlite: file is not a database.*--restore"):
        AnswerStore(path)


def test_newer_store_is_refused(path: Path) -> None:
    AnswerStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match="newer ARMS"):
        AnswerStore(path)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="the answer store"):
        AnswerStore(tmp_path / "file/answers.sqlite")


def _hold(path: Path, seconds: float, ready: "multiprocessing.synchronize.Event") -> None:
    with asking_alone(path, [("toy", "m")]):
        ready.set()
        time.sleep(seconds)


def test_second_collection_waits_for_the_first_and_only_for_its_models(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(path, 60.0, ready))
    holder.start()
    try:
        assert ready.wait(60)
        with asking_alone(path, [("toy", "another model")]):
            assert holder.is_alive()
        holder.kill()  # the system frees the lock of a process that is gone
        with asking_alone(path, [("toy", "m")]):
            holder.join(10)
            assert holder.exitcode == -signal.SIGKILL
    finally:
        holder.kill()
        holder.join()
