"""The tree that a run works in: the checkout, or the workspace of a preset; one run at a time in each."""

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows.command import run
from flows.stage_runs import Logger

CHECKOUT = Path(__file__).resolve().parents[1]
VERDICT = Path(".arms/registry/verdict.json")  # what the last comparison with the champion said
CODE = ("arms_model", "tasks", "sandbox")
_SAY_S = 60.0
_POLL_S = 1.0


class UserError(Exception):
    """Something that was asked for cannot be done; the text says what to do instead."""


@dataclass(frozen=True, kw_only=True)
class TreeIdentity:
    """What two machines must agree on before one works for the other.

    Attributes:
        place: names this very folder; another one, if it is not the same folder.
        code: hash of the code that stages run.
        params: hash of params.yaml.
        stages: hash of dvc.yaml.
    """

    place: str
    code: str
    params: str
    stages: str


def folder_of(preset: str | None, *, checkout: Path) -> Path:
    """The folder that `preset` is run in, whether it is there or not.

    Args:
        preset: path of a params file, e.g. `presets/real.yaml`; None for the checkout with its params.yaml.
        checkout: the top folder.

    Raises:
        UserError: there is no such preset.
    """
    if preset is None:
        return checkout
    return checkout / _workspace(preset, "--where", checkout=checkout)


def bring_up_to_date(preset: str | None, *, checkout: Path, log: Logger) -> None:
    """Make the workspace of `preset`, or bring it up to date; whoever calls holds its folder (`alone_in`).

    Args:
        preset: as for `folder_of`; for None there is nothing to do.
        checkout: the top folder.
        log: takes what is said meanwhile.

    Raises:
        UserError: there is no such preset, or it cannot be used.
    """
    if preset is not None:
        _workspace(preset, checkout=checkout, each_line=log.info)


def _workspace(preset: str, *options: str, checkout: Path, each_line: Callable[[str], None] = lambda line: None) -> str:
    """The folder that the command prints last, in the checkout."""
    command = ["python", "-m", "tasks.common.workspace", preset, *options]
    found = run(command, folder=checkout, each_line=each_line)
    if found.code != 0:
        raise UserError(f"preset {preset} cannot be used: {found.text}")
    return found.lines[-1]


@contextlib.contextmanager
def alone_in(folder: Path, *, log: Logger, is_waiting: bool = True) -> Iterator[None]:
    """Hold the tree while a run works in it; the system frees it when its holder dies, however it dies.

    Args:
        folder: the tree.
        log: hears of the waiting.
        is_waiting: whether to wait for another run's end.

    Raises:
        UserError: another run works there, and it is not waited for.
    """
    path = folder / ".arms/locks/train-arms"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, said_at = FileLock(path), -_SAY_S
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            if not is_waiting:
                raise UserError(f"another run works in {folder}; start this one again when it is done.") from None
            if time.monotonic() - said_at >= _SAY_S:
                said_at = time.monotonic()
                log.info("another run works in %s; waiting until it is done", folder)
            time.sleep(_POLL_S)
    try:
        yield
    finally:
        lock.release()


def identity(folder: Path) -> TreeIdentity:
    """What stands in `folder` now."""
    files = sorted(path for room in CODE for path in (folder / room).rglob("*") if path.suffix in (".py", ".json"))
    code = hashlib.sha256()
    for path in files:
        code.update(os.fsencode(path.relative_to(folder)) + b"\0" + path.read_bytes() + b"\0")
    return TreeIdentity(
        place=place(folder),
        code=code.hexdigest()[:16],
        params=_sha256(folder / "params.yaml"),
        stages=_sha256(folder / "dvc.yaml"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that another process wrote; empty where there is none, or half of one."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def place(folder: Path) -> str:
    """A random name kept in the folder, and the file's number: a copy of the folder has another one."""
    path = folder / ".arms/place"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex, encoding="ascii")
    return f"{path.read_text(encoding='ascii')}-{path.stat().st_ino}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
