"""Where the servers of this checkout are: for Prefect's commands typed in its folder, and for the flows."""

import contextlib
import json
from pathlib import Path
from typing import Any

from flows import processes
from flows.servers import MLFLOW, PREFECT, Plan

ADDRESSES = processes.FOLDER / "services.json"
SETTINGS = Path("prefect.toml")
_OURS = "# Written by `make up`, removed by `make down`: the server that Prefect's commands typed in this folder use.\n"


def write(plan: Plan, *, registered: str) -> bool:
    """Say where the servers are.

    Args:
        plan: what runs.
        registered: the digest of what Prefect's server was told.

    Returns:
        Whether Prefect's commands typed in the folder find the server: not so where it has a prefect.toml of its own.
    """
    found: dict[str, Any] = {
        "prefect": {"url": plan.url(PREFECT)},
        "registered": registered,
        "services": [*plan.servers, *plan.workers],
    }
    if MLFLOW in plan.servers:
        found["mlflow"] = {"url": plan.url(MLFLOW)}
    processes.write_whole(plan.root / ADDRESSES, json.dumps(found, indent=1) + "\n")
    settings = plan.root / SETTINGS
    if settings.exists() and not _is_ours(settings):
        return False
    processes.write_whole(settings, f'{_OURS}[api]\nurl = "{plan.api_url}"\n')
    return True


def read(root: Path) -> dict[str, Any]:
    """What `write` wrote; empty where nothing did.

    Args:
        root: the checkout.
    """
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((root / ADDRESSES).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def remove(root: Path) -> None:
    """Take back what `write` wrote.

    Args:
        root: the checkout.
    """
    (root / ADDRESSES).unlink(missing_ok=True)
    if (root / SETTINGS).exists() and _is_ours(root / SETTINGS):
        (root / SETTINGS).unlink()


def _is_ours(settings: Path) -> bool:
    return settings.read_text(encoding="utf-8", errors="replace").startswith(_OURS)
