"""Unpack archives of unknown origin (zip, tar, tar.gz, tar.bz2, tar.xz): what they hold is checked before any of it
is written, and nothing is written outside the folder given.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder to read from: `path` itself where it is a folder, else the archive unpacked into a temporary folder.

    Raises:
        DataError: no archive that we know, damaged, or hostile (leads outside, links, unpacks to far too much).
    """
    raise NotImplementedError
    yield path
