"""How every stage's `main` starts and ends: logging, errors without a traceback, exit codes.

Exit codes: 0 done; 1 data or the run failed; 2 a user's mistake; 130 stopped by Ctrl-C (SIGINT) or 143 by SIGTERM.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from arms_model.errors import ArmsError
from tasks.common.files import full_disk_reason


class Terminated(BaseException):
    """SIGTERM arrived: unwinds like Ctrl-C, so that temporary files are removed on the way out."""


def run_stage(name: str, body: Callable[[], None]) -> int:
    """Run `body` and turn what stops it into an exit code and a message for people.

    Args:
        name: the stage's name, for the messages.
        body: the stage's work; it writes through `tasks.common.files`, so stopping it leaves nothing half-written.

    Returns:
        The exit code.
    """
    logging.basicConfig(
        level=os.environ.get("ARMS_LOG_LEVEL", "INFO"), format=f"{name}: %(message)s", stream=sys.stderr, force=True
    )
    for noisy in ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "transformers", "timm", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        body()
    except ArmsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if (stop := _stop_behind(error)) is not None:
            return _stopped(name, stop)
        reason = full_disk_reason(error)  # of a write outside `tasks.common.files`, e.g. a checkpoint
        if reason is None:
            raise
        print(f"{name}: could not write: {reason}. Free some space and run the same command again.", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Terminated) as stop:
        return _stopped(name, stop)
    return 0


def _stop_behind(error: BaseException | None) -> KeyboardInterrupt | Terminated | None:
    """The stop that `error` was raised on the way out of: cleaning up that is interrupted can fail by itself."""
    while error is not None and not isinstance(error, KeyboardInterrupt | Terminated):
        error = error.__context__
    return error


def _raise_terminated(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def _stopped(name: str, stop: KeyboardInterrupt | Terminated) -> int:
    how, code = ("SIGTERM", 143) if isinstance(stop, Terminated) else ("Ctrl-C", 130)
    print(
        f"{name}: stopped by {how}. Nothing half-written was left; the same command goes on from here.", file=sys.stderr
    )
    return code
