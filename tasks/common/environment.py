"""Where a run ran: commit and dirtiness of the checkout, Python, packages, processors. No host, user or path."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

PACKAGES = (
    "numpy", "open-clip-torch", "polars", "safetensors", "scikit-learn", "timm", "torch", "transformers", "dvc",
    "great-expectations", "mlflow",
)  # fmt: skip
# written by DVC itself in every run: what is recorded is made from code and params, not from these
_OF_DVC = (":(exclude)dvc.lock", ":(exclude).dvc")
_TIMEOUT_S = 20


def environment() -> dict[str, Any]:
    """Versions and processors, ready for JSON."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "gpus": _gpus(),
        "packages": versions,
    }


def git_state() -> dict[str, str]:
    """The checkout around the current folder; a workspace lies inside one.

    Returns:
        `commit` (or why there is none) and `dirty`: yes, no or unknown. What git ignores makes nothing dirty, nor what
        DVC writes: `dvc.lock` and its folder `.dvc`.
    """
    commit = _output("git", "rev-parse", "HEAD")
    if not commit:
        return {"commit": "none: no git checkout, or one without a commit", "dirty": "unknown"}
    top = _output("git", "rev-parse", "--show-toplevel")
    changes = _output("git", "-C", top or ".", "status", "--porcelain", "--", ".", *_OF_DVC)
    return {"commit": commit, "dirty": "unknown" if changes is None else "yes" if changes else "no"}


def _gpus() -> list[str]:
    return (_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines()


def _output(*command: str) -> str | None:
    """What a command prints; None where it is missing, fails or does not answer."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        result = subprocess.run(  # noqa: S603
            [program, *command[1:]], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
