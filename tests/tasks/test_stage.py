import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arms_model.errors import ConfigError, DataError, EndpointError, StorageError
from tasks.common.stage import run_command

ROOT = Path(__file__).parents[2]


def _run(body: str) -> subprocess.CompletedProcess[str]:
    script = (
        f"import os, signal, sys, time\nfrom tasks.common.stage import run_command\ndef body():\n    {body}\n"
        "sys.exit(run_command('toy', body))\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)


def _raiser(error: Exception) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.fixture(autouse=True)
def _signal_handlers_as_before() -> object:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("a"), 2), (DataError("b"), 1), (EndpointError("c"), 1), (StorageError("d"), 1)]
)
def test_error_on_purpose_ends_with_its_exit_code_and_text(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("toy", _raiser(error)) == code
    assert capsys.readouterr().err == f"toy: {error}\n"


def test_body_that_ends_well_gives_0() -> None:
    assert run_command("toy", lambda: None) == 0


def test_full_disk_outside_the_writers_ends_with_1_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("toy", _raiser(RuntimeError("I/O error: No space left on device (os error 28)"))) == 1
    assert capsys.readouterr().err.startswith("toy: could not write: the disk is full. Free some space")


def test_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command("toy", _raiser(ZeroDivisionError()))


@pytest.mark.parametrize(("name", "code", "words"), [("SIGINT", 130, "Ctrl-C"), ("SIGTERM", 143, "SIGTERM")])
def test_signal_ends_with_its_exit_code_and_no_traceback(name: str, code: int, words: str) -> None:
    result = _run(f"os.kill(os.getpid(), signal.{name}); time.sleep(30)")
    assert result.returncode == code
    assert f"toy: stopped by {words}." in result.stderr
    assert "Traceback" not in result.stderr


def test_stop_that_breaks_the_cleaning_up_is_still_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            os.close(-1)  # as a folder's removal does that is interrupted halfway: OSError

    assert run_command("toy", body) == 130
    assert capsys.readouterr().err.startswith("toy: stopped by Ctrl-C.")


def test_import_of_a_stage_does_nothing(tmp_path: Path) -> None:
    stages = ", ".join(f"tasks.{name}" for name in ("queries", "profiles", "collect", "split"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", f"import {stages}"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_log_file_has_a_json_object_a_line_with_run_stage_and_vlm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs/run.jsonl"
    monkeypatch.setenv("ARMS_LOG_FILE", str(path))
    monkeypatch.setenv("ARMS_RUN", "7")
    logger = logging.getLogger("test")
    assert run_command("collect", lambda: logger.warning("%s: no more", "toy", extra={"vlm": "toy"})) == 0
    (line,) = path.read_text().splitlines()
    found = json.loads(line)
    assert found.pop("time")
    assert found == {"level": "WARNING", "message": "toy: no more", "run": "7", "stage": "collect", "vlm": "toy"}
    assert capsys.readouterr().err == "collect: toy: no more\n"


def test_console_speaks_json_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARMS_LOG_FORMAT", "json")
    assert run_command("label", lambda: logging.getLogger("test").info("done")) == 0
    assert json.loads(capsys.readouterr().err)["stage"] == "label"
