"""Prefect's pull step: a flow run works in the checkout of the worker that runs it.

A deployment holds no path, so that two checkouts, or two machines, share deployments and each works in its own folder:
the worker knows it from ARMS_ROOT, which `make up` and the templates under infra/ set.
"""

import os
from pathlib import Path

_SIGNS = ("dvc.yaml", "params.yaml", "flows/train_arms.py")  # what a checkout has


def enter_checkout() -> dict[str, str]:
    """Make the worker's checkout the current folder of a flow run.

    Returns:
        `directory`, which Prefect's later steps may name.

    Raises:
        RuntimeError: ARMS_ROOT is not set, or names no checkout.
    """
    named = os.environ.get("ARMS_ROOT", "")
    if not named:
        raise RuntimeError(
            "ARMS_ROOT is not set, so this worker does not know its checkout. Start workers by `make up`, or set "
            "ARMS_ROOT to the checkout's folder (and PYTHONPATH likewise) where the worker starts."
        )
    folder = Path(named)
    missing = [sign for sign in _SIGNS if not (folder / sign).is_file()]
    if missing:
        raise RuntimeError(
            f"ARMS_ROOT of this worker names {folder}, which is no checkout of this project: it has no "
            f"{', no '.join(missing)}. Set ARMS_ROOT to the folder with dvc.yaml and start the worker again."
        )
    os.chdir(folder)
    return {"directory": str(folder)}
