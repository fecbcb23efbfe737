"""A clone of a public repository, as its user has it: a folder, or the archive that the hosting site gives."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from arms_model.errors import ConfigError
from tasks.importers.archives import unpacked


@contextlib.contextmanager
def opened_clone(path: Path, *, holds: str) -> Iterator[Path]:
    """The clone's top folder; an archive is unpacked for as long as the block runs.

    Args:
        path: the clone, or an archive of it; hosting sites put one folder around everything, which is stepped into.
        holds: a file or folder that the repository has, by which it is known.

    Raises:
        ConfigError: there is nothing at `path`, or it is another repository.
        DataError: the archive is damaged or hostile.
    """
    if not path.exists():
        raise ConfigError(f"there is no {path}; name the clone's folder, or an archive of it.")
    with unpacked(path) as folder:
        inner = [child for child in folder.iterdir() if child.is_dir()]
        for top in (folder, *(inner if len(inner) == 1 else [])):
            if (top / holds).exists():
                yield top
                return
        raise ConfigError(f"{path} has no {holds}, so it is not the repository that this importer reads; name another.")
