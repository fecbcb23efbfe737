"""Figures in README and docs/results.md are those of the kept study, to the letter: no table is typed in."""

from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TABLES = CHECKOUT / "docs/crossfit/tables.md"


def table_lines(path: Path, *, before: str | None = None) -> list[str]:
    """Lines of Markdown tables that hold an interval, up to the heading `before`."""
    text = path.read_text().split(f"\n{before}\n")[0] if before else path.read_text()
    return [line for line in text.splitlines() if line.startswith("| ") and "[0." in line]


@pytest.mark.parametrize(("document", "before"), [("README.md", None), ("docs/results.md", "## The paper's cascade")])
def test_tables_of_a_document_are_those_of_the_kept_study(document: str, before: str | None) -> None:
    lines = table_lines(CHECKOUT / document, before=before)
    assert any(line.startswith("| ARMS |") for line in lines)
    known = TABLES.read_text().splitlines()
    assert [line for line in lines if line not in known] == []
