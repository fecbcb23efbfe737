"""Stage `report`: one self-contained page of what was run and what came out.

Writes, under `report/`:

    report.html     everything in one file that opens offline: no script, no font and no address from elsewhere
    figures/*.svg   the figures alone; no questions, answers or pictures are in them
    plots/*.csv     the figures' data, for `dvc plots`

It reads what the stages before it left and trains or scores nothing, so the same files give the same bytes.

Run: `python -m tasks.report`, or `dvc repro report`; `make report` opens the page.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from arms_model.errors import DataError
from tasks.common.files import folder_written_whole
from tasks.common.params import load_section
from tasks.common.report.cards import sample_cards
from tasks.common.report.inputs import read_inputs
from tasks.common.report.page import draw, render
from tasks.common.results import write_csv
from tasks.common.stage import run_stage

STAGE = "report"
OUTPUT = Path("report")
MAX_BYTES = 5_000_000
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Section `report`.

    Attributes:
        title: of the page.
        note: what is said right below the title, e.g. what the figures may not be taken for; None for nothing.
        cards: sample cards of right choices, and as many of wrong ones.
        seed: which queries are shown on them.
    """

    title: str = "ARMS report"
    note: str | None = None
    cards: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be shown."""
        if not self.title.strip():
            raise ValueError("title may not be empty")
        if not 0 <= self.cards <= 50:
            raise ValueError(f"cards must lie between 0 and 50, got {self.cards}")


def body() -> None:
    """The stage's work, from files to files."""
    settings = load_section(STAGE, ReportSettings)
    inputs = read_inputs()
    drawn = draw(inputs)
    cards = sample_cards(inputs, number=settings.cards, seed=settings.seed)
    content = render(inputs, drawn, cards, title=settings.title, note=settings.note).encode()
    if len(content) > MAX_BYTES:
        raise DataError(
            f"the page would have {len(content):,} bytes, at most {MAX_BYTES:,} are allowed; show fewer sample cards "
            f"(report.cards is {settings.cards})."
        )
    with folder_written_whole(OUTPUT) as folder:
        (folder / "report.html").write_bytes(content)
        (folder / "figures").mkdir()
        for panel in (panel for panels in drawn.panels.values() for panel in panels):
            (folder / "figures" / f"{panel.name}.svg").write_text(panel.svg, encoding="utf-8")
        for name, frame in drawn.frames.items():
            write_csv(folder / "plots" / f"{name}.csv", frame)
    logger.info("%s: %s bytes", OUTPUT / "report.html", f"{len(content):,}")


def main() -> int:
    """Run the stage; the exit code."""
    return run_stage(STAGE, body)


if __name__ == "__main__":
    sys.exit(main())
