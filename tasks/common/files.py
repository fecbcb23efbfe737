"""Files that appear whole or not at all: written beside their place under a temporary name, then renamed.

A stopped or failed stage leaves no half-written output, and a reader never sees one.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arms_model.errors import DataError, StorageError

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file-size limit was met",
}


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary file path beside `path`; rename it to `path` when the block ends well, else remove it.

    Raises:
        StorageError: the disk is full, or the place cannot be written.
    """
    with _temporary(path) as folder:
        temporary = folder / path.name
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Like `written_whole` for a whole folder; what stood at `path` before is replaced.

    Raises:
        StorageError: the disk is full, or the place cannot be written.
    """
    with _temporary(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.replace(folder / f"{path.name}.old")
        temporary.replace(path)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A private folder beside `path`, gone afterwards whatever happened; write errors become StorageError."""
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield folder
    except Exception as error:  # polars and safetensors raise their own kinds when a write fails
        reason = full_disk_reason(error)
        if reason is None:
            raise
        raise StorageError(
            f"could not write {path}: {reason}. Nothing half-written was left; free some space and run the same "
            "command again."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def full_disk_reason(error: BaseException) -> str | None:
    """Say in words that `error` (or what it was raised from) means a full disk; None where it means something else."""
    text = str(error).lower()
    if isinstance(error, OSError) and error.errno in _FULL:
        return _FULL[error.errno]
    if "no space left" in text or "os error 28" in text:  # polars and safetensors carry the number in their text only
        return _FULL[errno.ENOSPC]
    if "file too large" in text or "os error 27" in text:
        return _FULL[errno.EFBIG]
    return None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run the stage that writes it (`dvc repro`).") from None
    except ValueError as error:
        raise DataError(
            f"{path} is no valid JSON ({error}); remove it and run the stage that writes it again."
        ) from None
