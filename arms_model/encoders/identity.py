"""An encoder's identity as text: what vectors are stored under."""

import json
from typing import Any


def identity_of(kind: str, *, version: int, **parts: Any) -> str:
    """An encoder's identity: JSON with sorted keys, so that equal parts give equal text.

    Args:
        kind: the kind of encoder.
        version: raised whenever the encoder's code changes its vectors.
        **parts: whatever else decides the vectors.

    Returns:
        The identity.
    """
    return json.dumps({"kind": kind, "version": version, **parts}, sort_keys=True)
