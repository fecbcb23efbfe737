"""A lock file: one process at a time does what it guards, and who dies lets go."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, *, waits_for: str | None = None) -> Iterator[None]:
    """Hold the lock file at `path`, which is made; wait while another process holds it.

    Args:
        path: the file; it stays, and holds the id of the process that held it last.
        waits_for: what is said before waiting: who holds it; its process id is added. None says nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waits_for is not None:
                logger.info("%s (process %s); waiting until it is done", waits_for, _holder(path))
            fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            handle.truncate(0)
            handle.write(b"%d\n" % os.getpid())
        yield


def _holder(path: Path) -> str:
    text = path.read_text(errors="replace").strip()
    return text if text.isdecimal() else "unknown"
