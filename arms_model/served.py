"""What is served, on disk: one router, or a cascade of two, in a folder that nothing can hide in.

    served.json                               format, strategy, tau, which router scores which VLM, which VLMs are
                                              retired (where there are any), every file's sha256
    base/{config.json,weights.safetensors}    the router that is asked first
    new/{config.json,weights.safetensors}     of a cascade: the router that scores the other VLMs

The routers' files are copied byte for byte. The sha256 of `served.json`, the digest, names the whole: it holds the
sha256 of all else. Loading takes exactly these files and refuses by name whatever is changed, missing or does not
belong there; nothing in them could run code.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from arms_model.answering import ServedRouter
from arms_model.errors import ConfigError, DataError, StorageError
from arms_model.router import Router
from arms_model.settings import nearest, parse
from arms_model.storage import CONFIG, WEIGHTS, load_router

FORMAT = 1
SERVED = "served.json"
Role = Literal["base", "new"]
ROLES: tuple[Role, ...] = ("base", "new")
MAX_JSON_BYTES = 4 * 2**20  # a configuration of 10,000 VLMs is smaller


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What `served.json` says of a file.

    Attributes:
        bytes: its size.
        sha256: hex.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`served.json`.

    Attributes:
        format: of this file and the folder.
        strategy: what it is called.
        tau: threshold of a cascade; None for one router.
        vlms: the selection space: which router scores which VLM.
        files: of every other file, its path in the folder.
        retired: VLMs that a router knows and that are not in the selection space any more. **Decision**: left out where
            there are none, so that a folder without has the digest that it had before VLMs could be retired; a reader
            of that time refuses a folder that has the key, and does not go on choosing a retired VLM.
    """

    format: int
    strategy: str
    tau: float | None
    vlms: dict[str, Role]
    files: dict[str, FileEntry]
    retired: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what cannot be loaded."""
        if self.format != FORMAT:
            raise ValueError(f"format is {self.format}, expected {FORMAT}; register the routers again")
        if self.tau is not None and not (math.isfinite(self.tau) and 0 <= self.tau <= 1):
            raise ValueError(f"tau is {self.tau}, expected a confidence in [0, 1], or null for one router")
        if self.retired != sorted(set(self.retired) - set(self.vlms)):
            raise ValueError(f"retired is {self.retired}, expected sorted names, none of them in vlms or twice")
        if not self.vlms:
            raise ValueError("vlms is empty: nothing could be chosen")
        wanted = {f"{role}/{name}" for role in self.roles for name in (CONFIG, WEIGHTS)}
        if set(self.files) != wanted:
            strange = sorted(set(self.files) ^ wanted)
            raise ValueError(f"files must be exactly {sorted(wanted)}; too many or missing: {strange}")

    @property
    def roles(self) -> tuple[Role, ...]:
        """The routers that there are."""
        return ROLES[:1] if self.tau is None else ROLES


def save_served(folder: Path, *, strategy: str, base: Path, new: Path | None = None, tau: float | None = None) -> str:
    """Put one router, or two as a cascade, together to be served.

    Args:
        folder: exists, is empty and the caller's to publish.
        strategy: what it is called, such as `base + independent`.
        base: folder of the router that is asked first, as `storage.save_router` writes it.
        new: of a cascade: folder of the router that scores the VLMs that `base` does not know.
        tau: of a cascade: its threshold.

    Returns:
        The digest. The same routers and settings give the same bytes.

    Raises:
        ConfigError: two routers without tau, tau with one, or a second router that knows no further VLM.
        DataError: a router is missing.
        StorageError: a router is damaged.
    """
    if (new is None) != (tau is None):
        raise ConfigError(f"strategy '{strategy}': a cascade takes two routers and tau, one router takes no tau.")
    sources: dict[Role, Path] = {"base": base} if new is None else {"base": base, "new": new}
    known: dict[str, Role] = {}
    for role, source in sources.items():
        for vlm in load_router(source).config.vlms:
            known.setdefault(vlm, role)
    if new is not None and "new" not in known.values():
        raise ConfigError(f"strategy '{strategy}': the router in {new} knows no VLM that the one in {base} does not.")
    files = {}
    for role, source in sources.items():
        (folder / role).mkdir()
        for name in (CONFIG, WEIGHTS):
            copy = folder / role / name
            shutil.copyfile(source / name, copy)
            files[f"{role}/{name}"] = {"bytes": copy.stat().st_size, "sha256": file_sha256(copy)}
    return _write_manifest(folder, {"format": FORMAT, "strategy": strategy, "tau": tau, "vlms": known, "files": files})


def save_retired(folder: Path, *, source: Path, vlms: Sequence[str]) -> str:
    """The same routers with some VLMs out of the selection space: they stay known, and are never chosen.

    Args:
        folder: exists, is empty and the caller's to publish.
        source: a served folder, as `load_served` takes it.
        vlms: to take out; those that `source` has retired already stay so.

    Returns:
        The digest. The same source and VLMs give the same bytes.

    Raises:
        ConfigError: no VLM, one that is not in the selection space, or all that are.
        StorageError: the source is damaged.
    """
    manifest = read_manifest(source)
    if unknown := [vlm for vlm in vlms if vlm not in manifest.vlms]:
        raise ConfigError(f"'{unknown[0]}' is no VLM that is chosen here; {nearest(unknown[0], manifest.vlms)}")
    left = {vlm: role for vlm, role in manifest.vlms.items() if vlm not in vlms}
    if not vlms or not left:
        raise ConfigError(
            f"{len(vlms)} of {len(manifest.vlms)} VLMs would be retired; name at least one, and leave at least one."
        )
    for name in manifest.files:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    retired = sorted({*manifest.retired, *vlms})
    return _write_manifest(folder, dataclasses.asdict(manifest) | {"vlms": left, "retired": retired})


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> str:
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / SERVED).write_text(text, encoding="utf-8")
    return file_sha256(folder / SERVED)


def load_served(folder: Path, *, digest: str | None = None) -> ServedRouter:
    """Read back what is served, and only if every file is the one that `served.json` names.

    Args:
        folder: as `save_served` wrote it.
        digest: what `served.json` must be; None: whatever it is.

    Raises:
        DataError: nothing served there.
        StorageError: a file is missing, changed, too large, a link or does not belong there; a router that is not the
            one described.
    """
    manifest = read_manifest(folder, digest=digest)
    check_files(folder, {**{name: (entry.bytes, entry.sha256) for name, entry in manifest.files.items()}, SERVED: None})
    for name, entry in manifest.files.items():
        if name.endswith(CONFIG) and entry.bytes > MAX_JSON_BYTES:
            raise StorageError(f"{folder / name} has {entry.bytes:,} bytes, at most {MAX_JSON_BYTES:,} are read.")
    routers = {role: _router(folder / role) for role in manifest.roles}
    _check_space(manifest, routers, folder)
    return ServedRouter(
        strategy=manifest.strategy,
        tau=manifest.tau,
        base=routers["base"],
        new=routers.get("new"),
        digest=file_sha256(folder / SERVED),
        retired=tuple(manifest.retired),
    )


def read_manifest(folder: Path, *, digest: str | None = None) -> Manifest:
    """`served.json` of a folder; arguments and errors as for `load_served`."""
    path = folder / SERVED
    content = _small_file(path)
    if digest is not None and (found := hashlib.sha256(content).hexdigest()) != digest:
        raise StorageError(
            f"{path} has sha256 {found[:12]}..., expected {digest[:12]}...: it was changed after it was registered."
        )
    try:
        return parse(Manifest, json.loads(content, parse_constant=_no_number), str(path))
    except (ConfigError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not as it is written: {error}") from None


def check_files(folder: Path, expected: Mapping[str, tuple[int, str] | None], *, ignored: Sequence[str] = ()) -> None:
    """Hold a folder against the files that it must consist of.

    Args:
        folder: what to look through.
        expected: per path in the folder its size and sha256; None: whatever its content.
        ignored: plain files that may be there or not; they are not looked into.

    Raises:
        StorageError: the first file that is missing, changed, a link, or does not belong there, by its name.
    """
    for name in expected:
        if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or str(Path(name)) != name:
            raise StorageError(f"{folder}: the file name '{name}' climbs out of the folder, or is no plain path.")
    found = set()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            relative = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise StorageError(f"{path} is a link or no plain file; only plain files are loaded.")
            if stat.S_ISREG(mode):
                found.add(relative)
            elif not any(wanted.startswith(f"{relative}/") for wanted in expected):
                raise StorageError(f"{path} does not belong there: the folder holds {_listed(expected)}.")
    if strangers := sorted(found - {*expected, *ignored}):
        raise StorageError(f"{folder / strangers[0]} does not belong there: the folder holds {_listed(expected)}.")
    if missing := sorted(set(expected) - found):
        raise StorageError(f"{folder / missing[0]} is missing; register the routers again.")
    for name, entry in expected.items():
        if entry is not None:
            _check_file(folder / name, *entry)


def file_sha256(path: Path) -> str:
    """A file's sha256, hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _check_file(path: Path, size: int, sha256: str) -> None:
    if (found := path.stat().st_size) != size:
        raise StorageError(f"{path} has {found:,} bytes, expected {size:,}: it was changed after it was registered.")
    if (digest := file_sha256(path)) != sha256:
        raise StorageError(
            f"{path} has sha256 {digest[:12]}..., expected {sha256[:12]}...: it was changed after it was registered."
        )


def _router(folder: Path) -> Router:
    try:
        return load_router(folder)
    except (ConfigError, DataError) as error:  # here not the user's doing: the files are not what a train stage writes
        raise StorageError(str(error)) from None


def _check_space(manifest: Manifest, routers: Mapping[Role, Router], folder: Path) -> None:
    """The VLMs in `served.json` are those of the routers: `new` scores what `base` does not know; or are retired."""
    expected: dict[str, Role] = {}
    for role in manifest.roles:
        for vlm in routers[role].config.vlms:
            expected.setdefault(vlm, role)
    if strangers := sorted(set(manifest.retired) - set(expected)):
        raise StorageError(f"{folder / SERVED}: no router knows {strangers[0]}, which is retired; register them again.")
    expected = {vlm: role for vlm, role in expected.items() if vlm not in manifest.retired}
    if dict(manifest.vlms) != expected:
        differing = sorted(vlm for vlm in {*manifest.vlms, *expected} if manifest.vlms.get(vlm) != expected.get(vlm))
        raise StorageError(
            f"{folder / SERVED}: vlms do not fit the routers ({', '.join(differing[:5])}); register the routers again."
        )


def _small_file(path: Path) -> bytes:
    try:
        if path.is_symlink() or not path.is_file():
            raise DataError(f"{path} is missing or no plain file: nothing to serve there; expected a served folder.")
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise StorageError(f"{path} has {size:,} bytes, at most {MAX_JSON_BYTES:,} are read.")
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error}).") from None


def _listed(expected: Mapping[str, Any]) -> str:
    return ", ".join(sorted(expected))


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")
