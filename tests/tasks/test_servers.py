"""Servers that `collect` starts because nothing listens: started, used, stopped, and never left behind."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tasks.common.endpoint.servers import running
from tasks.common.vlms import Endpoint
from tests.tasks.asking import vlm, words
from tests.tasks.hostile import closed_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tasks.asking import AskingFolder
    from tests.tasks.hostile import Hostile

SANDBOX = "python -m sandbox.endpoint --port {port}"


def port_of(base_url: str) -> int:
    return int(base_url.split(":")[2].split("/")[0])


def is_listening(base_url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port_of(base_url))) == 0


def wait_until_nobody_listens(base_url: str) -> None:
    deadline = time.monotonic() + 15
    while is_listening(base_url):
        assert time.monotonic() < deadline, "the server was left behind"
        time.sleep(0.05)


def test_server_is_started_where_nothing_listens_and_stopped_after(asking: AskingFolder) -> None:
    url = closed_port()
    block = vlm("blob-counter", url, sample=2, endpoint={"name": "sandbox", "timeout_s": 30})
    asking.prepare(block, servers={"sandbox": SANDBOX.format(port=port_of(url))})
    result = asking.collect()
    assert result.returncode == 0, result.stderr
    assert asking.table()["output"].null_count() == 0
    assert not is_listening(url)


def test_server_that_runs_is_used_and_left_alone(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("one", server.base_url, sample=2), servers={"toy": "python -c 'raise SystemExit(3)'"})
    assert asking.collect().returncode == 0
    assert len(server.asked) == 2
    assert is_listening(server.base_url)


def test_no_server_is_started_where_nothing_is_to_be_asked(asking: AskingFolder, server: Hostile) -> None:
    asking.prepare(vlm("one", server.base_url, sample=2))
    assert asking.collect().returncode == 0
    broken = {"toy": "python -c 'raise SystemExit(3)'"}
    asking.prepare(vlm("one", closed_port(), sample=2), servers=broken)
    assert asking.collect().returncode == 0
    asking.prepare(vlm("one", closed_port(), sample=3), servers=broken)
    assert asking.collect().returncode == 1  # it would be started for a third question


def test_server_that_ends_at_once_is_said_with_its_last_words(asking: AskingFolder) -> None:
    command = "python -c 'import sys; sys.exit(\"no such model here\")'"
    asking.prepare(vlm("one", closed_port(), sample=2), servers={"toy": command})
    result = asking.collect()
    assert result.returncode == 1
    assert "the server of toy ended with 1" in words(result.stderr)
    assert "no such model here" in words(result.stderr)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["no-such-command --port 1", "python -c 'unclosed"])
def test_command_that_cannot_be_started_ends_with_2(asking: AskingFolder, command: str) -> None:
    asking.prepare(vlm("one", closed_port(), sample=2), servers={"toy": command})
    result = asking.collect()
    assert result.returncode == 2
    assert "collect.servers.toy" in words(result.stderr)
    assert "Traceback" not in result.stderr


def test_killed_collection_leaves_no_server_behind(asking: AskingFolder) -> None:
    url = closed_port()
    block = vlm("blob-counter", url, endpoint={"name": "sandbox", "concurrency": 1})
    command = SANDBOX.format(port=port_of(url)) + " --latency-factor 50"
    asking.prepare(block, servers={"sandbox": command})
    process = asking.start()
    deadline = time.monotonic() + 60
    while not is_listening(url):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    wait_until_nobody_listens(url)


def test_collection_that_is_done_stops_no_server_that_another_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    endpoint = Endpoint(name="toy", base_url=closed_port(), model="m")
    command = f"python -m http.server {port_of(endpoint.base_url)} --bind 127.0.0.1"
    entered, done = ([threading.Event(), threading.Event()] for _ in range(2))

    def collect(turn: int) -> None:
        with running({"toy": command}, [endpoint], store=tmp_path / "answers.sqlite"):
            entered[turn].set()
            assert done[turn].wait(30)

    collections = [threading.Thread(target=collect, args=(turn,)) for turn in range(2)]
    collections[0].start()
    assert entered[0].wait(30)
    collections[1].start()
    entered[1].wait(0.5)  # it may wait for the first, or share its server
    done[0].set()
    collections[0].join()
    assert entered[1].wait(30)
    assert is_listening(endpoint.base_url)
    done[1].set()
    collections[1].join()
    assert not is_listening(endpoint.base_url)
