"""The child that carries a train stage's journal to MLflow; `streaming.py` starts and ends it.

    python -m tasks.common.following train_base --journal FILE --state FILE --parent PID

It finds (or makes) the run by the key of the stage's inputs, so that a resumed training goes on in the same run, and
logs each epoch as it comes. What MLflow does not take it tries again every few seconds; in the state file it
leaves word for the stage: how many epochs are recorded, and what the problem is. It yields to the training (nice 10)
and dies with it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from arms_model.errors import ArmsError
from arms_model.uris import shown_uri
from tasks.common.files import write_json
from tasks.common.run_contents import RunContent, curve_points, data_tags, shown_params
from tasks.common.stage_inputs import StageFiles
from tasks.common.tracking import (
    experiment_name,
    find_or_make_experiment,
    find_or_make_run,
    log_missing,
    one_at_a_time,
    open_client,
    problem_text,
    recorded_epochs,
    tracking_uri,
)

POLL_S = 0.2
RETRY_S = 5.0
_PR_SET_PDEATHSIG = 1
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Started:
    """What a training started from. Files may be edited while it runs, and MLflow may be away until then.

    Attributes:
        stage: its name.
        experiment: the query set's name in MLflow.
        key: of the run.
        content: params and tags.
    """

    stage: str
    experiment: str
    key: str
    content: RunContent

    @classmethod
    def now(cls, stage: str) -> Started:
        """Read it from the files as they are.

        Raises:
            ConfigError, DataError: they are not what a training can start from.
        """
        inputs = StageFiles().while_running(stage)
        content = RunContent(params=shown_params(stage, inputs.params), tags=data_tags(inputs))
        return cls(stage=stage, experiment=experiment_name(), key=inputs.key, content=content)


class Recorder:
    """The run of one training in MLflow.

    Args:
        started: what the training started from.
        uri: MLflow's tracking URI.
    """

    def __init__(self, started: Started, uri: str) -> None:
        with one_at_a_time():
            self._client = open_client(uri)
            experiment = find_or_make_experiment(self._client, uri, started.experiment)
            run = find_or_make_run(
                self._client, experiment, started.key, name=started.stage, kind="training", by="training"
            )
        log_missing(self._client, run, started.content)
        self._run = run
        self._is_finished = run.info.status == "FINISHED"  # the same training again, forced: its record stands
        self._epochs: dict[str, set[int]] = {}
        if not self._is_finished:
            self._client.update_run(run.info.run_id, status="RUNNING")

    def log(self, records: list[dict[str, Any]]) -> None:
        """Log epochs; those that the run has already are passed over."""
        from mlflow.entities import Metric

        points = []
        for record in records:
            epoch = int(record["epoch"])
            for name, value in curve_points(record).items():
                if name not in self._epochs:
                    self._epochs[name] = recorded_epochs(self._client, self._run, name)
                if epoch not in self._epochs[name]:
                    points.append(Metric(name, value, int(record["time"] * 1000), epoch))
        if points:
            self._client.log_batch(self._run.info.run_id, metrics=points)
        for point in points:
            self._epochs[point.key].add(point.step)

    def end(self, how: str) -> None:
        """Say in MLflow how the stage ended."""
        if not self._is_finished:
            self._client.set_terminated(self._run.info.run_id, _STATUS[how])


def follow(stage: str, lines: Path, state: Path, *, parent: int) -> None:
    """Carry the journal of `stage` to MLflow until its end stands there, or the parent is gone."""
    started: Started | None = None
    recorder: Recorder | None = None
    num_recorded: int | None = None  # nothing was tried yet
    waiting: list[dict[str, Any]] = []
    with lines.open(encoding="utf-8") as journal:
        while os.getppid() == parent:
            waiting += _new_records(journal)
            epochs = [record for record in waiting if "epoch" in record]
            ended = next((record["end"] for record in waiting if "end" in record), None)
            if waiting or num_recorded is None:
                try:
                    started = started or Started.now(stage)  # once: a second look might see an edited file
                    recorder = recorder or Recorder(started, tracking_uri())
                    recorder.log(epochs)
                    if ended:
                        recorder.end(ended)
                except Exception as error:  # whatever it is: the stage says it, and trains on
                    log.exception("%d epochs wait", len(epochs))
                    recorder = None  # a server that is back may have lost what was there before
                    write_json(state, {"num_recorded": num_recorded or 0, "problem": _problem(error)})
                    _wait(RETRY_S, parent=parent)
                    continue
                num_recorded, waiting = (num_recorded or 0) + len(epochs), []
                write_json(state, {"num_recorded": num_recorded, "problem": None})
            if ended:
                return
            _wait(POLL_S, parent=parent)


def _problem(error: Exception) -> str:
    """What the stage is to say."""
    if isinstance(error, ArmsError):  # in words already, e.g. that MLFLOW_TRACKING_URI is no store's
        return str(error).rstrip(".")
    uri = tracking_uri()
    return f"{shown_uri(uri)}: {problem_text(error, uri)}"


def _wait(seconds: float, *, parent: int) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and os.getppid() == parent:
        time.sleep(POLL_S)


def _new_records(journal: IO[str]) -> list[dict[str, Any]]:
    """The whole lines that were added."""
    records: list[dict[str, Any]] = []
    while True:
        place = journal.tell()
        line = journal.readline()
        if not line.endswith("\n"):
            journal.seek(place)
            return records
        records.append(json.loads(line))


def main() -> int:
    """Follow the journal that the command line names; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasks.common.following")
    parser.add_argument("stage")
    parser.add_argument("--journal", type=Path, required=True, help="what the stage appends its epochs to")
    parser.add_argument("--state", type=Path, required=True, help="where to leave word for the stage")
    parser.add_argument("--parent", type=int, required=True, help="process that this one dies with")
    arguments = parser.parse_args()
    _die_with_parent()
    os.nice(10)
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    follow(arguments.stage, arguments.journal, arguments.state, parent=arguments.parent)
    return 0


def _die_with_parent() -> None:
    """Where the system can do so (Linux), have it kill this process when its parent ends in whatever way."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
