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
_REFUSED = {
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
    errno.EROFS: "the file system is read-only",
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

    A folder cannot be renamed over one that is not empty, so the old one steps aside first, and comes back when
    anything stops the new one from taking its place.

    Raises:
        StorageError: the disk is full, or the place cannot be written.
    """
    with _temporary(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        old = folder / f"{path.name}.old"
        try:
            if path.exists():
                path.replace(old)
            temporary.replace(path)
        except BaseException:  # also Ctrl-C
            if old.exists() and not path.exists():
                old.replace(path)
            raise


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A private folder beside `path`, gone afterwards whatever happened; write errors become StorageError."""
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield folder
    except Exception as error:  # polars and safetensors raise their own kinds when a write fails
        if (reason := full_disk_reason(error)) is not None:
            advice = "free some space"
        elif (reason := _refused_reason(error, folder)) is not None:
            advice = f"make {path.parent} writable, or work in another folder,"
        else:
            raise
        raise StorageError(
            f"could not write {path}: {reason}. Nothing half-written was left; {advice} and run the same command again."
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _refused_reason(error: Exception, folder: Path | None) -> str | None:
    """Say in words that the place we write to refused us; None for all else, such as an input that may not be read."""
    if not isinstance(error, OSError) or error.errno not in _REFUSED:
        return None
    names = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    is_ours = folder is None or any(name.is_relative_to(folder) for name in names)
    return _REFUSED[error.errno] if is_ours else None


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
