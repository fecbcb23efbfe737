import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arms_model.errors import DataError
from tasks.importers import spreadsheet
from tasks.importers.spreadsheet import read_xlsx

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
SHEET = "xl/worksheets/sheet1.xml"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, write_xlsx: Callable[..., None]) -> Write:
    """Write an xlsx file with the given rows' XML, and the given shared texts' XML where there are some."""

    def written(rows: str, shared: str | None = None, *, method: int = zipfile.ZIP_DEFLATED) -> Path:
        path = tmp_path / "a.xlsx"
        write_xlsx(path, [{"x": "1"}])
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members[SHEET] = f'<worksheet xmlns="{MAIN}"><sheetData>{rows}</sheetData></worksheet>'.encode()
        if shared is not None:
            members["xl/sharedStrings.xml"] = f'<sst xmlns="{MAIN}">{shared}</sst>'.encode()
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    return written


def _row(*cells: str) -> str:
    return f"<row>{''.join(cells)}</row>"


def test_every_kind_of_cell_is_read_as_its_text(write: Write) -> None:
    shared = (
        "<si><t>index</t></si><si><t>said</t></si><si><r><t>two </t></r><r><t>parts</t></r><rPh><t>sound</t></rPh></si>"
        "<si><t>B_x000D_\nx _xD83D__xDE00_</t></si>"
    )
    rows = [
        _row('<c r="A1" t="s"><v>0</v></c>', '<c r="C1" t="s"><v>1</v></c>'),
        _row('<c r="A2"><v>7</v></c>', '<c r="C2" t="s"><v>2</v></c>'),
        _row('<c r="C3" t="s"><v>3</v></c>', '<c r="A3" t="b"><v>1</v></c>'),
        "<row/>",
        _row('<c r="C5" t="inlineStr"><is><t>in &lt;place&gt;</t></is></c>', '<c r="D5"><v>no column</v></c>'),
        _row('<c r="A6" t="str"><f>A1&amp;A2</f><v>result</v></c>', '<c r="C6"><f>5+1</f><v>0</v></c>'),
    ]
    assert list(read_xlsx(write("".join(rows), shared))) == [
        (1, {"index": "7", "said": "two parts"}), (2, {"index": "1", "said": "B\r\nx \U0001f600"}),
        (3, {"index": None, "said": "in <place>"}), (4, {"index": "result", "said": "=5+1"}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [
        _row('<c t="s"><v>0</v></c>') * 5000,  # a copy for each cell would take 500 MB
        _row("<c><v>x</v></c>") + '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>' * 9,
        _row("<c><v>x</v></c>") + "<row><c/></row>" * 50_000,
        _row("<c><v>x</v></c>") + "<row>" + "<c/>" * 16_000 + "</row>",
    ],
    ids=["shared text", "far corner", "many rows", "wide row"],
)
def test_small_file_takes_little_memory_whatever_it_holds(rows: str, write: Write) -> None:
    path = write(rows, f"<si><t>{'x' * 100_000}</t></si>")
    tracemalloc.start()
    for _ in read_xlsx(path):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("rows", "shared", "message"),
    [
        (_row('<c t="s"><v>3</v></c>'), "<si><t>x</t></si>", "list index out of range"),
        (_row('<c t="s"><v>x</v></c>'), "", "invalid literal"),
        (_row('<c r="XFE1"><v>1</v></c>'), "", "more than 16,384 cells"),
        (_row("<c/>" * 17_000), "", "more than 16,384 cells"),
        (_row("<c><v>x</v></c>" * 2), "", "stands twice"),
        ("<row><c>", "", "mismatched tag"),
        (_row("<c><v>x</v></c>"), "</sst><!DOCTYPE a [<!ENTITY b 'c'>]>", "declares entities"),
    ],
)
def test_broken_or_hostile_sheet_is_refused(rows: str, shared: str, message: str, write: Write) -> None:
    with pytest.raises(DataError) as refusal:
        list(read_xlsx(write(rows, shared)))
    assert message in str(refusal.value)
    assert "a.xlsx" in str(refusal.value)


def test_sheet_that_unpacks_to_too_much_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreadsheet, "MAX_XLSX_BYTES", 1_000_000)
    with pytest.raises(DataError, match="unpacks to more than 1,000,000 bytes"):
        list(read_xlsx(write(_row("<c><v>x</v></c>"), " " * 2_000_000)))


def test_packing_that_unpacks_in_memory_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="unusual way"):
        list(read_xlsx(write(_row("<c><v>x</v></c>"), method=zipfile.ZIP_BZIP2)))


def test_sheet_is_found_by_the_workbooks_own_words(write: Write, tmp_path: Path) -> None:
    path = write(_row("<c><v>x</v></c>") + _row("<c><v>1</v></c>"))
    with zipfile.ZipFile(path) as archive:
        members: dict[str, Any] = {name: archive.read(name) for name in archive.namelist()}
    members["xl/deep/only.xml"] = members.pop(SHEET)
    relations = "xl/_rels/workbook.xml.rels"
    members[relations] = members[relations].replace(b"worksheets/sheet1.xml", b"/xl/deep/only.xml")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert list(read_xlsx(path)) == [(1, {"x": "1"})]
    del members["xl/workbook.xml"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match=r"no item named 'xl/workbook.xml'"):
        list(read_xlsx(path))
