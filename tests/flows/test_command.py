"""Commands that flows start: their lines, their end, and that they never outlive who started them."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from flows.command import CommandError, CommandTimeoutError, is_alive, run, run_json
from tests.servers import wait_until

LOG = logging.getLogger(__name__)


def is_there(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def test_lines_come_while_the_command_runs(tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []
    mark = tmp_path / "mark"
    code = f"import pathlib, time; print('one'); time.sleep(1); pathlib.Path({str(mark)!r}).touch(); print('two')"
    found = run(["python", "-c", code], folder=tmp_path, each_line=lambda line: seen.append((line, mark.exists())))
    assert (found.code, found.lines) == (0, ["one", "two"])
    assert seen == [("one", False), ("two", True)]


def test_exit_code_and_standard_error_are_kept(tmp_path: Path) -> None:
    found = run(["python", "-c", "import sys; print('bad', file=sys.stderr); sys.exit(3)"], folder=tmp_path)
    assert (found.code, found.text) == (3, "bad")


def test_stages_see_no_setting_of_prefect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    found = run(["python", "-c", "import os; print([n for n in os.environ if 'PREFECT' in n])"], folder=tmp_path)
    assert found.text == "[]"


def test_command_that_takes_too_long_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    started: list[int] = []
    with pytest.raises(CommandTimeoutError, match="stopped after 2 s"):
        run(
            ["sh", "-c", "sleep 60 & echo $!; wait"],
            folder=tmp_path,
            each_line=lambda line: started.append(int(line)),
            timeout_s=2,
        )
    assert not is_there(started[0])


def test_command_may_clean_up_before_it_is_stopped(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('cleaned').touch(), sys.exit(0)))
        time.sleep(60)
    """)
    with pytest.raises(CommandTimeoutError):
        run(["python", "-c", code], folder=tmp_path, timeout_s=10)  # time to start
    assert (tmp_path / "cleaned").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends children with their parent on Linux only")
def test_command_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import pathlib
        from flows.command import run
        run(["sh", "-c", "echo $$ > child; sleep 60"], folder=pathlib.Path(__import__("sys").argv[1]))
    """)
    checkout = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=checkout)
    wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip())
    child = int((tmp_path / "child").read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not is_there(child), seconds=10)


def test_json_document_is_read_and_what_stands_beside_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = "import json, sys; print('beside', file=sys.stderr); print(json.dumps({'a': 1}))"
    with caplog.at_level(logging.INFO):
        assert run_json(["python", "-c", code], folder=tmp_path, log=LOG) == {"a": 1}
    assert "beside" in caplog.text


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import sys; print('no champion', file=sys.stderr); sys.exit(1)", "ended with 1: no champion"),
        ("print('hello')", "printed no JSON: 'hello'"),
    ],
)
def test_command_without_a_json_document_is_refused_with_its_words(tmp_path: Path, code: str, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        run_json(["python", "-c", code], folder=tmp_path, log=LOG)
