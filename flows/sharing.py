"""What machines share: the DVC remote with its run cache. Fetched before a run, pushed after it.

The run cache says which inputs gave which outputs, so a machine whose `dvc.lock` is older, or that has none, repeats
nothing. Answers that were paid for: flows/shared_answers.py.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from dvc.repo import Repo, lock_repo
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.exceptions import StageNotFound

from flows.command import run
from flows.stage_runs import Logger
from flows.trees import UserError


class RemoteError(Exception):
    """The DVC remote did not do what it was asked to."""


def has_remote(folder: Path) -> bool:
    """Whether DVC has a default remote there."""
    found = run(["dvc", "config", "core.remote"], folder=folder)
    return found.code == 0 and bool(found.text.strip())


def refuse_without_remote(folder: Path) -> None:
    """Raise UserError where DVC has no remote to sync with."""
    if not has_remote(folder):
        raise UserError(
            "sync was asked for, but DVC has no default remote here: `dvc remote add --default NAME URL` (a folder "
            "that all machines see, or s3://...), or run without sync."
        )


def fetch(folder: Path, *, log: Logger) -> None:
    """Bring the run cache and what `dvc.lock` names into DVC's cache here.

    Raises:
        RemoteError: the remote does not answer, or refuses.
    """
    found = run(["dvc", "fetch", "--run-cache"], folder=folder, each_line=lambda line: log.info("%s", line))
    if found.code != 0 and "missing" not in found.text and "do not exist" not in found.text:
        raise RemoteError(
            f"the DVC remote gave nothing: {_reason(found.lines)} Nothing was run. Start it, or run without sync (then "
            "stages that another machine has done may be done again here)."
        )


def bring_result(stage: str, folder: Path, *, pull: bool) -> bool:
    """Take a stage's outputs from the run cache, without running it.

    Args:
        stage: its name.
        folder: the tree; what the stage reads is there.
        pull: fetch them from the DVC remote where they are not here.

    Returns:
        Whether they are known for what the stage reads as it stands.

    Raises:
        dvc.exceptions.DvcException: something that it reads is missing, the remote is away, or DVC's lock is taken.
    """
    with contextlib.chdir(folder), Repo() as repo, lock_repo(repo):  # DVC makes stages of the current folder's dvc.yaml
        try:
            found = repo.stage.load_one(name=stage)
            # it notes the deps by itself; were they noted here, it would take dvc.lock's outputs for theirs
            repo.stage_cache.restore(found, pull=pull)
        except (RunCacheNotFoundError, StageNotFound):
            return False
    return True


def pull(stages: Sequence[str], folder: Path, *, log: Logger) -> None:
    """Bring the outputs of `stages`, as `dvc.lock` names them, into the tree.

    Raises:
        RemoteError: the remote does not have them, or does not answer.
    """
    found = run(["dvc", "pull", *stages], folder=folder, each_line=lambda line: log.info("%s", line))
    if found.code != 0:
        raise RemoteError(f"the DVC remote did not give the outputs of {', '.join(stages)}: {_reason(found.lines)}")


def push(folder: Path, *, log: Logger) -> None:
    """Bring what this machine has done to the remote.

    Raises:
        RemoteError: the remote does not answer, or refuses.
    """
    found = run(["dvc", "push", "--run-cache"], folder=folder, each_line=lambda line: log.info("%s", line))
    if found.code != 0:
        raise RemoteError(
            f"the DVC remote took nothing: {_reason(found.lines)} All results stand in this folder; when it is back: "
            "`dvc push --run-cache`."
        )


def _reason(lines: list[str]) -> str:
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
    return " ".join(errors)
