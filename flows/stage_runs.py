"""DVC asked what may run, and `dvc repro` for one stage: what came of it, and what stood in its way.

DVC alone decides whether the stage runs. Its lock may be held by another process (another run, a person's own `dvc
repro`): that is waited out with growing, jittered pauses. A lock of a process that is dead is no obstacle: DVC removes
it.
"""

import logging
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError

from flows.command import run
from flows.graph import Graph, read_graph

Outcome = Literal["ran", "restored", "unchanged"]
Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

_BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
_GATE = "gates failed; nothing was published"
_DISK_FULL = re.compile(r"No space left on device|disk is full|could not write|Free some space", re.IGNORECASE)
_EXIT = re.compile(r"exited with (-?\d+)")
_ADVICE = (
    "To track the changes with git", "\tgit add", "To enable auto staging", "\tdvc config core.autostage",
    "Use `dvc push`", "Updating lock file", "Generating lock file",
)  # fmt: skip
_WAIT_S = 12 * 3600.0
_DAMAGED = Path(".arms/dvc.lock.damaged")


class StageError(Exception):
    """A stage ended badly.

    Attributes:
        stage: its name.
        code: the exit code of its own process: 1 data or the run failed, 2 a user's mistake; None where unknown.
        is_gate: whether an invariant of its output was broken.
        can_be_tried_again: whether it may go well without anybody changing anything.
    """

    def __init__(self, stage: str, text: str, *, code: int | None) -> None:
        """Say what stopped `stage`: the last lines that it printed."""
        super().__init__(text if code is None or code >= 0 else f"{text}\nIts process was ended by signal {-code}.")
        self.stage, self.code = stage, code
        self.is_gate = _GATE in text
        self.can_be_tried_again = code == 1 and not self.is_gate and not _DISK_FULL.search(text)


class LockBusyError(Exception):
    """Another process held DVC's lock for hours."""


@dataclass(frozen=True, kw_only=True)
class StageRun:
    """What came of one stage.

    Attributes:
        stage: its name.
        outcome: it ran; its outputs were taken from the run cache; or there was nothing to do.
        seconds: how long it took, waiting included.
    """

    stage: str
    outcome: Outcome
    seconds: float


def graph_of(folder: Path, *, log: Logger) -> Graph:
    """The graph of the tree, asked for as soon as DVC's lock is free.

    A dvc.lock that a killed process left half-written is set aside: what it said, the run cache knows as well.

    Args:
        folder: the tree.
        log: hears of the waiting, and of a dvc.lock that was set aside.

    Raises:
        LockBusyError: DVC's lock stayed taken.
        dvc.exceptions.DvcException: no DVC tree, or a dvc.yaml (or a merged dvc.lock) with mistakes.
    """
    for pause in _pauses():
        try:
            try:
                return read_graph(folder)
            except (YAMLSyntaxError, YAMLValidationError):
                if not _set_damaged_lock_file_aside(folder, log=log):
                    raise
                return read_graph(folder)
        except LockError:
            log.info("another process works in this folder; DVC is asked again in %.0f s", pause)
            time.sleep(pause)
    raise _busy(folder, "what is stale is not known")


def repro(
    stage: str,
    *,
    folder: Path,
    log: Logger,
    force: bool = False,
    pull: bool = False,
    timeout_s: float | None = None,
    variables: Mapping[str, str] | None = None,
) -> StageRun:
    """Have DVC bring one stage up to date.

    Args:
        stage: its name.
        folder: the tree.
        log: takes each line that the stage prints.
        force: run it though nothing changed.
        pull: take what is missing from the DVC remote and its run cache.
        timeout_s: for one try, s.
        variables: for the stage's environment.

    Raises:
        StageError: it ended badly.
        LockBusyError: DVC's lock stayed taken.
        flows.command.CommandTimeoutError: it was stopped.
    """
    started = time.monotonic()
    command = ["dvc", "repro", "--single-item", *(["--force"] if force else []), *(["--pull"] if pull else []), stage]
    for pause in _pauses():
        found = run(
            command, folder=folder, each_line=lambda line: _pass_on(line, log), timeout_s=timeout_s, variables=variables
        )
        if found.code == 0:
            seconds = time.monotonic() - started
            return StageRun(stage=stage, outcome=_outcome(found.lines), seconds=seconds)
        if not any(sign in found.text for sign in _BUSY):
            code = _EXIT.search(found.lines[-1] if found.lines else "")
            raise StageError(stage, _last_words(found.lines), code=int(code[1]) if code else None)
        log.info("another process works in this folder; stage %s is tried again in %.0f s", stage, pause)
        time.sleep(pause)
    raise _busy(folder, f"stage {stage} did not run. Its last words: {_last_words(found.lines)}")


def _busy(folder: Path, so: str) -> LockBusyError:
    return LockBusyError(
        f"DVC's lock in {folder} was taken for {_WAIT_S / 3600:.0f} hours, so {so}. End that process; if there is "
        "none, remove .dvc/tmp/lock and .dvc/tmp/rwlock."
    )


def _pass_on(line: str, log: Logger) -> None:
    """Into the run's log, without what DVC always advises."""
    if line.strip() and not any(line.startswith(advice) for advice in _ADVICE):
        log.info("%s", line)


def _set_damaged_lock_file_aside(folder: Path, *, log: Logger) -> bool:
    with Repo(str(folder)) as repo, lock_repo(repo):  # while it is held, nobody is writing dvc.lock
        path, aside = folder / LOCK_FILE, folder / _DAMAGED
        try:
            Lockfile(repo, str(path)).load()
            return False  # it is dvc.yaml that has mistakes
        except (YAMLSyntaxError, YAMLValidationError) as error:
            if getattr(error, "hint", ""):  # conflicts of a merge, which a person has to decide
                return False
        aside.parent.mkdir(exist_ok=True)
        path.replace(aside)
    log.warning(
        "dvc.lock is damaged, as after a process that was killed while writing it; it is %s now, and stages take their "
        "results from the run cache. If your team commits dvc.lock, `git checkout dvc.lock` brings back that of the "
        "last commit.",
        _DAMAGED,
    )
    return True


def _pauses() -> Iterator[float]:
    """Seconds to wait before each further try: 1, 2, 4 ... 30, each drawn from half of it to one and a half."""
    until, pause = time.monotonic() + _WAIT_S, 1.0
    while time.monotonic() < until:
        yield pause * random.uniform(0.5, 1.5)
        pause = min(2 * pause, 30.0)


def _outcome(lines: list[str]) -> Outcome:
    if any(line.startswith("Running stage '") for line in lines):
        return "ran"
    if any("is cached - skipping run" in line for line in lines):
        return "restored"
    return "unchanged"


def _last_words(lines: list[str]) -> str:
    """The last lines without DVC's own, which only repeat the command."""
    own = [line for line in lines if line.strip() and not line.startswith(("ERROR: failed to reproduce", "> "))]
    return "\n".join(own[-12:])
