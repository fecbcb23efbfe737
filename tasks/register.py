"""Stage `register`: bring MLflow up to date with what the stages left in files.

Run: `python -m tasks.register`, or `dvc repro register`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from tasks.common.files import write_json
from tasks.common.params import load_section
from tasks.common.stage import run_stage

OUTPUT = Path("register/registered.json")


@dataclass(frozen=True, kw_only=True)
class RegisterSettings:
    """Section `register`.

    Attributes:
        model: its name in MLflow's registry.
        margin: promote where the challenger is not worse than this.
        level: of the interval.
    """

    model: str = "arms-router"
    margin: float = 0.01
    level: float = 0.95


def body() -> None:
    """The stage's work, from files to files."""
    load_section("register", RegisterSettings)
    write_json(OUTPUT, {})


def main() -> int:
    """Run the stage; the exit code."""
    return run_stage("register", body)


if __name__ == "__main__":
    sys.exit(main())
