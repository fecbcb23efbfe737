"""The folder of recorded outputs of real VLMs: tests look at it and never copy any of it into the project."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that ARMS_REAL_DATA names; without it the test is skipped."""
    name = os.environ.get("ARMS_REAL_DATA")
    if not name:
        pytest.skip("ARMS_REAL_DATA names no folder of recorded outputs")
    return Path(name).resolve()
