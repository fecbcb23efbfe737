"""A lock file: one process at a time does what it guards, and who dies lets go."""

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, *, waits_for: str | None = None) -> Iterator[None]:
    """Hold the lock file at `path`, which is made; wait while another process holds it.

    Args:
        path: the file; it is empty and stays.
        waits_for: what is said before waiting: who holds it. None says nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waits_for is not None:
                logger.info("%s; waiting until it is done", waits_for)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
