"""The rows of an xlsx file's first sheet, read as a stream of XML.

Written here, since common readers take room for every cell between the first and the last, and a copy of a shared text
for every cell that names it: a file of 3 KB can fill any memory. They also give a formula's stored result, and answers
that begin with `=` were written as formulas with the result 0; here such a cell keeps its text.
"""

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.etree.ElementTree import Element, iterparse

from arms_model.errors import DataError
from tasks.common.recorded import encodable
from tasks.importers.archives import PLAIN_METHODS

MAX_XLSX_BYTES = 400_000_000  # of one member, unpacked
MAX_COLUMNS = 16_384
SHARED = "xl/sharedStrings.xml"
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, SyntaxError, LookupError, ValueError, OSError)
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")  # a character that XML cannot carry


def read_xlsx(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """The rows below the header one by one, each with its number (from 1); cells are texts, empty ones None.

    Raises:
        DataError: damaged, unpacks to far too much, or a column's name stands twice.
    """
    header: dict[int, str] | None = None
    number = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for cells in _rows(archive):
                if header is None:
                    header = cells
                    if len(set(header.values())) < len(header):
                        raise DataError(f"{path}: a column's name stands twice in the first row; rename one.")
                    continue
                number += 1
                yield number, {name: cells.get(column) for column, name in header.items()}
    except _DAMAGED as error:
        raise DataError(f"{path} is no whole xlsx file ({str(error)[:200]}); write it again.") from None


def _rows(archive: zipfile.ZipFile) -> Iterator[dict[int, str]]:
    """The rows that are not empty: column (from 1) -> text."""
    texts = _shared_texts(archive)
    cells: dict[int, str] = {}
    column = 0
    for event, name, element in _elements(archive, _first_sheet(archive)):
        if event == "start" and name == "row":
            cells, column = {}, 0
        elif event == "start" and name == "c":
            column = _column(element.get("r", "")) or column + 1
            if column > MAX_COLUMNS:
                raise ValueError(f"a row has more than {MAX_COLUMNS:,} cells")
            parts = dict.fromkeys("vtf", "")
        elif event == "end" and name in ("v", "t", "f"):
            parts[name] += element.text or ""
        elif event == "end" and name == "c":
            kind = element.get("t")
            text = parts["v"] if kind != "inlineStr" else _unescaped(parts["t"])
            if parts["f"] and kind != "str":  # a text that begins with = and was taken for a formula
                text = f"={parts['f']}"
            elif kind == "s":
                text = texts[int(text)]
            if text:
                cells[column] = text
        elif event == "end" and name == "row" and cells:
            yield cells


def _column(reference: str) -> int:
    """The column's number in a cell's name such as AB12; 0 where the cell has none."""
    number = 0
    for mark in reference.rstrip("0123456789")[:4]:
        number = number * 26 + ord(mark) - ord("A") + 1
    return number


def _first_sheet(archive: zipfile.ZipFile) -> str:
    """The name of its member."""
    sheets = [dict(its.items()) for _, name, its in _elements(archive, "xl/workbook.xml") if name == "sheet"]
    key = next(value for name, value in sheets[0].items() if name.endswith("}id"))
    relations = [dict(its.items()) for _, _, its in _elements(archive, "xl/_rels/workbook.xml.rels")]
    target = next(its["Target"] for its in relations if its.get("Id") == key)
    return target[1:] if target.startswith("/") else f"xl/{target}"


def _shared_texts(archive: zipfile.ZipFile) -> list[str]:
    """The texts that cells name by their number."""
    texts: list[str] = []
    parts: list[str] = []
    is_phonetic = False
    if SHARED not in archive.namelist():
        return texts
    for event, name, element in _elements(archive, SHARED):
        if name == "rPh":
            is_phonetic = event == "start"
        elif event == "end" and name == "t" and not is_phonetic:
            parts.append(element.text or "")
        elif event == "end" and name == "si":
            texts.append(_unescaped("".join(parts)))
            parts.clear()
    return texts


def _unescaped(text: str) -> str:
    return encodable(_ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)) if "_x" in text else text


def _elements(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[str, str, Element]]:
    """Each element's start and end, with its name; what has ended is forgotten."""
    member = archive.getinfo(name)
    if member.compress_type not in PLAIN_METHODS or member.flag_bits & 1:
        raise ValueError("it is packed in an unusual way, or with a password")
    if member.file_size > MAX_XLSX_BYTES:  # more is never read, whatever follows
        raise ValueError(f"it unpacks to more than {MAX_XLSX_BYTES:,} bytes")
    around: list[Element] = []
    with archive.open(member) as handle:
        for event, element in iterparse(_PlainXml(handle), events=("start", "end")):  # noqa: S314 - no entities
            yield event, element.tag.rpartition("}")[2], element
            if event == "start":
                around.append(element)
            else:
                around.pop()
                if around:
                    around[-1].remove(element)


class _PlainXml:
    """An open XML file that declares no entities, which unpack to far more than they take."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._end = b""

    def read(self, num_bytes: int = -1, /) -> bytes:
        chunk = self._handle.read(num_bytes)
        if b"<!DOCTYPE" in self._end + chunk or b"\0" in chunk:
            raise ValueError("it declares entities, or is not UTF-8")
        self._end = chunk[-8:]
        return chunk
