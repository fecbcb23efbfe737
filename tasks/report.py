"""Stage `report`: one self-contained page of what was run and what came out.

Run: `python -m tasks.report`, or `dvc repro report`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from tasks.common.files import written_whole
from tasks.common.params import load_section
from tasks.common.stage import run_stage

OUTPUT = Path("report/report.html")


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Section `report`.

    Attributes:
        cards: how many sample cards of right and of wrong choices.
        seed: which queries are shown.
    """

    cards: int = 6
    seed: int = 0


def body() -> None:
    """The stage's work, from files to files."""
    load_section("report", ReportSettings)
    with written_whole(OUTPUT) as temporary:
        temporary.write_text("<!doctype html><title>ARMS</title>\n", encoding="utf-8")


def main() -> int:
    """Run the stage; the exit code."""
    return run_stage("report", body)


if __name__ == "__main__":
    sys.exit(main())
