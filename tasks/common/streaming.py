"""Curves that are on record while training runs, without training ever waiting for the record.

A train stage appends each epoch to a journal, `.arms/tracking/<stage>.jsonl`, and starts a child process
(`tasks.common.following`, nice 10) that carries the journal to MLflow. That MLflow is away, slow or full the stage
only learns from a small file which the child leaves; it says so once and trains on, and `python -m tasks.register`
completes the record from the stage's outputs. This module knows nothing of MLflow: the train stages depend on it in
dvc.yaml, so every change here retrains.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from arms_model.callbacks import Quiet
from arms_model.training import Callback, LoopState
from tasks.common.params import load_section

FOLDER = Path(".arms/tracking")
GRACE_S = 0.5  # what the child gets for the last epochs once the stage is done
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Section `tracking`. No stage has it among its DVC params: it changes nothing that is trained.

    Attributes:
        stream: carry the curves to MLflow while training runs; `register` records them afterwards either way.
    """

    stream: bool = True


@contextlib.contextmanager
def streamed(stage: str) -> Iterator[Sequence[Callable[[int], Callback]]]:
    """Have a child carry the curves of `stage` to MLflow while the block runs; it is gone afterwards.

    Args:
        stage: the train stage's name.

    Returns:
        What `fit_router` takes as `callbacks`: nothing where params say `tracking.stream: false`.
    """
    if not load_section("tracking", TrackingSettings).stream:
        yield ()
        return
    stream = _Stream(stage)
    how = "stopped"  # Ctrl-C, SIGTERM
    try:
        yield (stream.member,)
        how = "finished"
    except Exception:
        how = "failed"
        raise
    finally:
        stream.close(how)


class _Stream:
    """The journal of one stage, and the child that follows it."""

    def __init__(self, stage: str) -> None:
        self._state = FOLDER / f"{stage}.state.json"
        self._journal: IO[str] | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._is_said = False
        try:
            FOLDER.mkdir(parents=True, exist_ok=True)
            journal = FOLDER / f"{stage}.jsonl"
            for old in (self._state, journal):  # unlinked, not emptied: a second copy of the stage may still write it
                old.unlink(missing_ok=True)
            self._journal = journal.open("a", encoding="utf-8", buffering=1)
            with (FOLDER / f"{stage}.log").open("wb") as log:
                files = ["--journal", str(journal), "--state", str(self._state)]
                command = [sys.executable, "-m", "tasks.common.following", stage, *files, "--parent", str(os.getpid())]
                self._child = subprocess.Popen(  # noqa: S603
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,  # never the stage's own: who reads those waits until all writers are gone
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is the stage's to answer
                )
        except OSError as error:
            self._say(f"the curves cannot be streamed to MLflow ({error.strerror})")

    def member(self, number: int) -> Callback:
        """A callback for member `number` of the router, counted from 0."""
        return _Member(self, number)

    def append(self, record: dict[str, Any]) -> None:
        """Put a record into the journal, and look whether the child has something to say."""
        if self._journal is not None:
            try:
                self._journal.write(json.dumps(record) + "\n")
            except OSError as error:
                self._close_journal()
                self._say(f"the curves cannot be streamed to MLflow any more ({error.strerror})")
        state = self._read_state()
        if state is not None and state.get("problem"):
            self._say(f"MLflow takes no curves at the moment: {state['problem']}")

    def close(self, how: str) -> None:
        """Tell the child that the stage is done, wait for it for a moment, and end it."""
        self.append({"end": how})
        self._close_journal()
        if self._child is None:
            return
        try:
            self._child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(GRACE_S)
        state = self._read_state()
        if state is None:
            self._say("training ended before MLflow had answered")
        elif state.get("problem"):
            self._say(f"MLflow takes no curves at the moment: {state['problem']}")

    def _close_journal(self) -> None:
        if self._journal is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take is tried once more on closing
                self._journal.close()
        self._journal = None

    def _read_state(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return state

    def _say(self, what: str) -> None:
        if not self._is_said:
            logger.warning("%s. Training does not wait for it; `python -m tasks.register` completes the record.", what)
        self._is_said = True


class _Member(Quiet):
    """Puts what one member went through into the journal, what it did before it was resumed too."""

    def __init__(self, stream: _Stream, number: int) -> None:
        self._stream = stream
        self._number = number

    def on_start(self, state: LoopState) -> None:
        """The epochs that a checkpoint brought back."""
        for record in state.history:
            self._append(record)

    def on_epoch(self, state: LoopState) -> None:
        """The epoch just finished."""
        self._append(state.history[-1])

    def _append(self, record: dict[str, float]) -> None:
        self._stream.append({"member": self._number, "time": time.time(), **record})
