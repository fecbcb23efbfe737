"""Brings answers here that another machine has paid for, so that nobody is asked twice; it never asks.

    python -m flows.known_answers

Two places know them: the tables that `dvc.lock` names, and DVC's run cache, which knows what earlier runs of `collect`
gave; if one was for the params and queries as they stand here, e.g. on a pull request's machine before the merge, its
tables are put in place. `dvc repro --pull collect` would look into the run cache too, but would go on to ask where it
finds nothing.
"""

import logging
import sys
from pathlib import Path

from dvc.exceptions import DvcException

from flows import sharing
from flows.command import CommandError, run
from flows.shared_answers import restore_answers
from flows.trees import CHECKOUT

_COLLECT = "collect"
log = logging.getLogger(__name__)


def bring_answers(folder: Path) -> bool:
    """Put all answers that DVC knows of into the answer store of `folder`.

    Args:
        folder: a tree whose `queries` are there.

    Returns:
        Whether another machine has collected for the params and queries as they stand.

    Raises:
        dvc.exceptions.DvcException: no DVC tree, queries that are missing, or a remote that is away.
        flows.sharing.RemoteError: the remote does not answer.
        flows.command.CommandError: the answer store takes nothing, e.g. a full disk.
    """
    has_remote = sharing.has_remote(folder)
    if has_remote:
        sharing.fetch(folder, log=log)
    restore_answers(folder, log=log)
    if not sharing.bring_result(_COLLECT, folder, pull=has_remote):
        return False
    restored = run(
        ["python", "-m", "tasks.collect", "--restore"], folder=folder, each_line=lambda line: log.info("%s", line)
    )
    if restored.code != 0:
        raise CommandError(f"the answer store took nothing: {restored.text}", code=restored.code)
    return True


def main() -> int:
    """Restore; the exit code."""
    logging.basicConfig(level=logging.INFO, format="known_answers: %(message)s", stream=sys.stderr, force=True)
    logging.getLogger("dvc").setLevel(logging.WARNING)
    try:
        is_known = bring_answers(CHECKOUT)
    except (CommandError, DvcException, sharing.RemoteError) as error:
        print(f"known_answers: {error}", file=sys.stderr)
        return 1
    log.info("%s for the params and queries as they stand", "collected before" if is_known else "not collected yet")
    return 0


if __name__ == "__main__":
    sys.exit(main())
