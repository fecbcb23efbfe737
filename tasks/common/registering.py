"""The project's registry: its settings, how it is opened, and who is at work; for stage `register` and its commands."""

import datetime as dt
import getpass
import subprocess
from dataclasses import dataclass
from pathlib import Path

from arms_model.answering import ServedRouter
from arms_model.registry import Registry
from tasks.common.tracking import one_at_a_time, open_client, speaking_with, store_behind, tracking_uri

STAGE = "register"
LOCK = Path(".arms/registry/lock")


@dataclass(frozen=True, kw_only=True)
class RegisterSettings:
    """Section `register`.

    Attributes:
        model: its name in MLflow's registry.
        margin: promote where the challenger is not worse than this.
        level: of the interval.
        draws: of the paired cluster bootstrap.
    """

    model: str = "arms-router"
    margin: float = 0.01
    level: float = 0.95
    draws: int = 10_000

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin must lie in [0, 1), got {self.margin}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {self.level}")
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, got {self.draws}")


def open_registry(settings: RegisterSettings) -> Registry:
    """The registry at MLflow's tracking URI; a local store that is not there yet is made."""
    uri = tracking_uri()
    with one_at_a_time(), speaking_with(uri):
        open_client(uri)
    return Registry(uri, model=settings.model, lock=LOCK, store=store_behind(uri))


def described(served: ServedRouter) -> str:
    """A served router in a few words."""
    tau = "" if served.tau is None else f", tau {served.tau:g}"
    return f"{served.strategy}{tau}, {len(served.vlms)} VLMs"


def who() -> str:
    """The person at work: git's user, else the login name."""
    try:
        found = subprocess.run(
            ["git", "config", "user.name"],  # noqa: S607
            capture_output=True, text=True, check=False, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    try:
        return (found or getpass.getuser())[:200]
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def now() -> str:
    """The time, UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
