"""What tests of all importers share: pictures drawn here, a command run in this process, the stages over its folder."""

import io
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape
from zipfile import ZIP_DEFLATED, ZipFile

import polars as pl
import pytest
from PIL import Image

_COLOURS = ("red", "green", "blue", "white", "black", "orange", "purple", "brown")


@dataclass(frozen=True)
class Run:
    """How an importer's command ended."""

    code: int
    out: str
    err: str


RunImporter = Callable[..., Run]


@pytest.fixture
def run_importer(capsys: pytest.CaptureFixture[str]) -> Iterator[RunImporter]:
    """Run an importer's `main` with a command line; handlers of signals and log are put back afterwards."""
    handler, handlers, level = signal.getsignal(signal.SIGTERM), logging.root.handlers[:], logging.root.level

    def run(main: Callable[[Sequence[str]], int], *arguments: object) -> Run:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Run(code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def picture() -> Callable[[int], bytes]:
    """PNG bytes of a small picture, another one for each number."""

    def draw(number: int) -> bytes:
        content = io.BytesIO()
        Image.new("RGB", (8 + number, 8), _COLOURS[number % len(_COLOURS)]).save(content, "PNG")
        return content.getvalue()

    return draw


@pytest.fixture(scope="session")
def write_xlsx() -> Callable[[Path, Sequence[dict[str, Any]]], None]:
    """Write rows as the one sheet of an xlsx file; texts as inline strings, numbers as numbers."""
    return _write_xlsx


@pytest.fixture
def labelled(make_tree: Callable[..., Any]) -> Callable[..., pl.DataFrame]:
    """Run the stages queries, collect and label over an imported folder; gives the labels of all its VLMs."""

    def run(out: Path) -> pl.DataFrame:
        names = pl.read_parquet(out / "outputs.parquet")["vlm"].unique().sort()
        blocks = [{"name": name, "display_name": name, "provider": "Toy Lab", "pool": "base"} for name in names]
        tree = make_tree(
            vlms=blocks,
            queries={"source": "recorded", "folder": str(out), "max_pixels": 1_000_000},
            collect={"source": "recorded", "folder": str(out)},
        )
        for stage in ("queries", "collect", "label"):
            result = tree.stage(stage)
            assert result.returncode == 0, result.stderr
        return tree.table("label/base").sort("query_id", "vlm")

    return run


def _write_xlsx(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    lines = [dict(zip(rows[0], rows[0], strict=True)), *rows]
    sheet = "".join(f"<row>{''.join(_cell(value) for value in line.values())}</row>" for line in lines)
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    relations = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    packages = "http://schemas.openxmlformats.org/package/2006"
    members = {
        "[Content_Types].xml": f'<Types xmlns="{packages}/content-types"><Default Extension="xml" ContentType='
        '"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{packages}/relationships"><Relationship Id="r1" '
        f'Type="{relations}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{relations}"><sheets><sheet name="Sheet1" sheetId="1" '
        'r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{packages}/relationships"><Relationship Id="r1" '
        f'Type="{relations}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{sheet}</sheetData></worksheet>',
    }
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _cell(value: Any) -> str:
    if value is None:
        return "<c/>"
    if isinstance(value, int | float):
        return f"<c><v>{value}</v></c>"
    return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'
