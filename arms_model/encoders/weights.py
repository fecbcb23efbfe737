"""Weights of encoders: found inside installed packages, checked, named by their content.

Weights that travel inside a package are pinned by sha256: a package index can serve another file under the same
version, and vectors of other weights would silently mix with those already stored.
"""

import hashlib
import importlib.metadata
from pathlib import Path

import torch

from arms_model.errors import ConfigError, StorageError


def packaged_weights(distribution: str, *, file_suffix: str, sha256: str, extra: str) -> Path:
    """The weights' path inside an installed package, its content checked.

    Args:
        distribution: the package's name as installed.
        file_suffix: how the path of the file inside the package ends.
        sha256: the pinned checksum of the file, hex.
        extra: the extra of this project that installs the package, for the error text.

    Returns:
        The file.

    Raises:
        ConfigError: the package is not installed, or does not hold the file.
        StorageError: the checksum differs.
    """
    install = f"Install it with `uv sync --extra {extra}`, or choose another encoder."
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"package '{distribution}', which brings this encoder's weights, is missing. {install}"
        ) from None
    found = [Path(str(file.locate())) for file in files if str(file).endswith(file_suffix)]
    if not found or not found[0].is_file():
        raise ConfigError(f"package '{distribution}' is installed without its file '{file_suffix}'. {install}")
    check_sha256(found[0], sha256)
    return found[0]


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file whose content is not the pinned one.

    Raises:
        StorageError: the checksum differs.
    """
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != expected:
        raise StorageError(
            f"{path}: sha256 is {found}, expected {expected}; the file is damaged or another one. "
            "Install its package again."
        )


def weights_sha256(module: torch.nn.Module) -> str:
    """The sha256 (hex) over a module's parameters and buffers: names, types, shapes, values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
