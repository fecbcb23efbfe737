"""Unpack archives of unknown origin: zip, tar, tar.gz, tar.bz2, tar.xz.

What an archive holds is checked before any of it is written: names that lead outside, links, devices and a size that
is out of all proportion (a zip bomb) are refused. What is written is counted too, since a directory can lie.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, cast

from arms_model.errors import ConfigError, DataError
from tasks.common.files import full_disk_reason

MAX_FILES = 1_000_000
MAX_BYTES = 100_000_000_000
MAX_RATIO = 200  # unpacked to packed bytes of a whole archive; text packs to a tenth, pictures hardly at all
_HARMLESS_BYTES = 100_000_000  # below it any ratio will do
_CHUNK = 1 << 20
_MAX_READ = 1 << 24  # bytes of one read in a tar; only the name in a hostile header asks for more
PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack in memory before their size is looked at
_UNPACKERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_TAR_END = 1024  # bytes, all 0
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError)
_BAD_NAMES = (FileExistsError, IsADirectoryError, NotADirectoryError)  # one name is a file and a folder


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder to read from: `path` itself where it is a folder, else the archive unpacked into a temporary folder.

    Raises:
        DataError: no archive that we know, damaged, or hostile (leads outside, links, unpacks to far too much).
    """
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="arms-unpacked-") as temporary:
        unpack(path, Path(temporary))
        yield Path(temporary)


def unpack(path: Path, target: Path) -> None:
    """Unpack an archive into the empty folder `target`.

    Raises:
        DataError: see `unpacked`.
    """
    try:
        if zipfile.is_zipfile(path):
            _unpack_zip(path, target)
        else:
            _unpack_tar(path, target)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; correct the path.") from None
    except _BAD_NAMES as error:
        raise DataError(f"{path} holds a name that cannot be a file ({error}); unpack it yourself.") from None
    except _DAMAGED as error:
        if full_disk_reason(error):
            raise
        raise DataError(f"{path} is damaged or refused ({error}); fetch it again.") from None


class _Allowance:
    """What an archive may unpack to; counts what it does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._most = min(MAX_BYTES, max(_HARMLESS_BYTES, MAX_RATIO * path.stat().st_size))
        self._bytes = self._files = 0

    def take(self, num_bytes: int, num_files: int = 0) -> None:
        """Raise DataError where the bytes and files so far are out of proportion."""
        self._bytes += num_bytes
        self._files += num_files
        if self._bytes > self._most or self._files > MAX_FILES:
            raise DataError(
                f"{self._path} ({self._path.stat().st_size:,} bytes) unpacks to more than {self._most:,} bytes or "
                f"{MAX_FILES:,} files: that is no data set. Unpack it yourself if you trust it, and name the folder."
            )


def _refuse_name(path: Path, name: str) -> None:
    """Raise DataError where a name in the archive leads out of the folder, on any system."""
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or "\\" in name or "\0" in name
    if outside or ".." in PurePosixPath(name).parts:
        raise DataError(f"{path} holds {name!r}, which leads out of its folder: it is hostile, do not use it.")


def _unpack_zip(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        declared, written = _Allowance(path), _Allowance(path)
        for member in archive.infolist():
            _refuse_name(path, member.filename)
            if member.external_attr >> 28 == 0xA:  # the file type of a symbolic link, in Unix's mode bits
                raise DataError(f"{path} holds the link {member.filename!r}; unpack it yourself if you trust it.")
            if member.flag_bits & 1:
                raise DataError(f"{path} needs a password; unpack it yourself and name the folder.")
            if member.compress_type not in PLAIN_METHODS:
                raise DataError(f"{path} is packed in an unusual way; unpack it yourself and name the folder.")
            declared.take(member.file_size, 1)
        for member in archive.infolist():
            place = target / member.filename
            if member.is_dir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, place.open("wb") as sink:
                while chunk := source.read(_CHUNK):
                    written.take(len(chunk))
                    sink.write(chunk)


class _SmallReads:
    """An open file that gives no more at once than a tar needs: a header may call its name gigabytes long."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.seek, self.tell = handle.seek, handle.tell

    def read(self, num_bytes: int) -> bytes:
        if num_bytes > _MAX_READ:
            raise tarfile.TarError(f"a name in it is {num_bytes:,} bytes long")
        return self._handle.read(num_bytes)


def _unpack_tar(path: Path, target: Path) -> None:
    if not hasattr(tarfile, "data_filter"):  # the first 3.11 releases
        raise ConfigError(f"{path}: this Python cannot unpack a tar safely; use Python 3.11.4 or newer, or unpack it.")
    allowance = _Allowance(path)
    with contextlib.ExitStack() as stack:
        start = stack.enter_context(path.open("rb")).read(6)
        opener = next((its for magic, its in _UNPACKERS.items() if start.startswith(magic)), None)
        handle: IO[bytes] = stack.enter_context(opener(path) if opener else path.open("rb"))
        try:
            archive = stack.enter_context(tarfile.open(fileobj=cast(IO[bytes], _SmallReads(handle)), mode="r:"))
        except tarfile.ReadError as error:
            raise DataError(
                f"{path} is no zip or tar archive that can be read ({error}); unpack it yourself and name the folder."
            ) from None
        for member in archive:
            _refuse_name(path, member.name)
            if not (member.isfile() or member.isdir()):
                raise DataError(
                    f"{path} holds {member.name!r}, which is a link or a device; unpack it yourself if you trust it."
                )
            allowance.take(member.size, 1)
            archive.extract(member, target, filter="data")
        if opener is None and not _has_end(path):
            raise DataError(f"{path} is cut off: a tar ends with empty blocks; fetch it again.")


def _has_end(path: Path) -> bool:
    """Whether a tar that is not packed ends as it should; a packed one notices by itself that it was cut."""
    with path.open("rb") as handle:
        handle.seek(-min(_TAR_END, path.stat().st_size), io.SEEK_END)
        return handle.read() == bytes(_TAR_END)
