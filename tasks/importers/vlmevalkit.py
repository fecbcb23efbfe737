"""VLMEvalKit: its data sets (tsv with the pictures inside) and what it wrote of the VLMs that it asked.

    python -m tasks.importers.vlmevalkit MMStar.tsv outputs/*/*_MMStar.xlsx --out recorded

The data set gives the queries: index, question, hint, A, B, ..., answer, category, and the picture in `image` (base64,
or the index of the row that has it) or in `image_path`. A result file, `<VLM>_<data set>.xlsx` (tsv, json), gives a
VLM's answers: index, prediction, and `hit` where a judge has read it. Questions and golds of both must agree, since
an index alone does not tell two versions of a data set apart.

Rows without a question or a gold, with several golds, and with no or several pictures are left out and counted.
"""

import argparse
import contextlib
import re
import string
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms_model.errors import ConfigError, DataError
from tasks.common.recorded import inside
from tasks.importers.choices import answer_type, without_letters
from tasks.importers.command import make_parser, run_importer
from tasks.importers.embedded import picture_bytes, texts
from tasks.importers.reading import read_rows
from tasks.importers.recording import Answer, Query, Recording, StoredPicture, with_choices

FAILED = "Failed to obtain answer"  # VLMEvalKit writes this, and more, where a request failed
_LONGEST_INDEX = 64  # characters; what is longer in column `image` is a picture
_VERDICTS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What result files are held against."""

    question: str
    answer: str | None


def import_results(options: argparse.Namespace, recording: Recording) -> None:
    """Read a data set and its result files into `recording`."""
    benchmark = options.benchmark or options.dataset.stem.removesuffix("_local")
    vlms = [_vlm_name(path, options) for path in options.results]
    rows = _Dataset(options, benchmark, recording).read()
    for path, vlm in zip(options.results, vlms, strict=True):
        _add_answers(path, vlm, benchmark, rows, recording)


class _Dataset:
    """Reads the data set row by row; a row whose picture stands further below waits for it."""

    def __init__(self, options: argparse.Namespace, benchmark: str, recording: Recording) -> None:
        self._options, self._benchmark, self._recording = options, benchmark, recording
        self._rows: dict[str, _Row] = {}
        self._pictures: dict[str, StoredPicture] = {}
        self._waiting: list[tuple[Query, str]] = []

    def read(self) -> dict[str, _Row]:
        """Take all rows; gives them by index."""
        path = self._options.dataset
        for number, row in read_rows(path):
            if number == 1:
                _refuse_missing(path, row, ("index", "question", "answer"))
            index = _index(row)
            if index is None:
                self._recording.fault(f"{path}, row {number}: no index")
                continue
            if index in self._rows:
                self._recording.fault(f"{path}, row {number}: index {index} stands twice; keep one")
                continue
            self._rows[index] = _Row(question=_text(row, "question") or "", answer=_text(row, "answer"))
            try:
                self._take(index, row)
            except DataError as error:
                self._recording.fault(f"{path}, index {index}: {error}")
        self._store_missing()
        for query, owner in self._waiting:
            if owner in self._pictures:
                self._recording.add_query(query, self._pictures[owner])
            else:
                self._recording.leave_out(
                    query.query_id, f"no single picture in the row that `image` names ({path.name})"
                )
        return self._rows

    def _store_missing(self) -> None:
        """Store the pictures that rows wait for and that stand in rows which were left out."""
        missing = {owner for _, owner in self._waiting} - self._pictures.keys()
        for number, row in read_rows(self._options.dataset) if missing else ():
            index, images = _index(row), texts(row.get("image"))
            if index in missing and len(images) == 1 and len(images[0]) > _LONGEST_INDEX:
                try:
                    self._pictures[index] = self._recording.store_picture(picture_bytes(images[0]), name=f"of {index}")
                except DataError as error:
                    self._recording.fault(f"{self._options.dataset}, row {number}: {error}")

    def _take(self, index: str, row: dict[str, Any]) -> None:
        query_id = f"{self._benchmark}/{index}"
        if _text(row, "question") is None:
            self._recording.leave_out(query_id, "no question")
            return
        answers = texts(row.get("answer"))
        if len(answers) != 1:
            reason = "several gold answers, so not exact match" if answers else "no gold answer"
            self._recording.leave_out(query_id, reason)
            return
        query = self._query(query_id, row, answers[0])
        images, paths = texts(row.get("image")), texts(row.get("image_path"))
        if len(images or paths) != 1:
            self._recording.leave_out(query_id, "several pictures" if images or paths else "no picture")
        elif not images:
            self._recording.add_query(query, self._file(paths[0]))
        elif len(images[0]) > _LONGEST_INDEX:
            self._pictures[index] = self._recording.store_picture(picture_bytes(images[0]), name=query_id)
            self._recording.add_query(query, self._pictures[index])
        else:
            self._waiting.append((query, _whole(images[0])))

    def _query(self, query_id: str, row: dict[str, Any], answer: str) -> Query:
        choices = _choices(row)
        question = "\n".join(part for part in (_text(row, "hint"), _text(row, "question")) if part)
        return Query(
            query_id=query_id,
            benchmark=self._benchmark,
            task=_text(row, "category") or _text(row, "l2-category") or self._benchmark,
            language=self._options.language,
            question=with_choices(question, choices),
            choices=choices or None,
            answer=answer.strip(),
            answer_type=answer_type(answer.strip(), choices),
            licence=self._options.licence,
        )

    def _file(self, name: str) -> Path:
        """A picture that the data set names; VLMEvalKit writes whole paths into the data sets that it has unpacked."""
        images = self._options.images
        if images is None:
            raise ConfigError("the data set has its pictures as files (`image_path`); say where with --images FOLDER.")
        return inside(images, name)


def _add_answers(path: Path, vlm: str, benchmark: str, rows: dict[str, _Row], recording: Recording) -> None:
    seen: set[str] = set()
    for number, row in read_rows(path):
        if number == 1:
            _refuse_missing(path, row, ("index", "prediction"))
        index = _index(row)
        faults = list(_faults(index, row, rows, seen))
        if faults:
            recording.fault(f"{path}, row {number}: {'; '.join(faults)}")
        elif index is not None:
            seen.add(index)
            recording.add_answer(_answer(f"{benchmark}/{index}", vlm, row))
    if not seen:
        recording.fault(f"{path}: no answer in it")


def _faults(index: str | None, row: dict[str, Any], rows: dict[str, _Row], seen: set[str]) -> Iterator[str]:
    """What does not fit between a result's row and the data set's."""
    if index is None:
        yield "no index"
        return
    if index in seen:
        yield f"index {index} stands twice; keep one"
    if index not in rows:
        yield f"index {index} is not in the data set; it is another data set, or another version"
        return
    for name, expected in (("question", rows[index].question), ("answer", rows[index].answer)):
        found = _text(row, name)
        if found is not None and expected is not None and not _same(found, expected):
            yield f"index {index}: {name} {found[:60]!r}, but the data set has {expected[:60]!r}: another version of it"


def _answer(query_id: str, vlm: str, row: dict[str, Any]) -> Answer:
    prediction = _text(row, "prediction")
    verdict = _VERDICTS.get(str(row.get("hit")).strip().lower())
    if prediction is not None and prediction.startswith(FAILED):
        return Answer(query_id=query_id, vlm=vlm, error=prediction[:500])
    if prediction is None and verdict is None:  # a table cannot tell an empty answer from none
        return Answer(query_id=query_id, vlm=vlm, error="no prediction in the result file")
    return Answer(query_id=query_id, vlm=vlm, output=prediction, reference_correct=verdict)


def _choices(row: dict[str, Any]) -> list[str]:
    """The texts in columns A, B, ... up to the last one that is filled."""
    cells = [_text(row, letter) for letter in string.ascii_uppercase]
    filled = [cell for cell in cells if cell]
    if filled != [cell for cell in cells[: len(filled)] if cell]:
        raise DataError("a choice is missing between others, so the letters would shift; fill it")
    return without_letters(filled)


def _vlm_name(path: Path, options: argparse.Namespace) -> str:
    """The VLM whose answers a file holds: --vlm, or the part of the file's name before that of the data set."""
    if options.vlm:
        if len(options.results) > 1:
            raise ConfigError("--vlm names one VLM, but there are several result files; import them one by one.")
        return str(options.vlm)
    dataset = re.escape(options.dataset.stem.removesuffix("_local"))
    match = re.fullmatch(rf"(.+?)_{dataset}(?:_.+)?", path.stem)
    if not match:
        raise ConfigError(
            f"{path.name} is not called <VLM>_{options.dataset.stem}{path.suffix}, so it does not say whose answers it "
            "holds; rename it, or name the VLM with --vlm."
        )
    return match[1]


def _refuse_missing(path: Path, row: dict[str, Any], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in row]
    if missing:
        raise DataError(f"{path}: column {', '.join(missing)} is missing; it has {', '.join(map(str, row))[:500]}.")


def _text(row: dict[str, Any], name: str) -> str | None:
    cell = row.get(name)
    return None if cell is None or cell == "" else str(cell)


def _index(row: dict[str, Any]) -> str | None:
    text = _text(row, "index")
    return None if text is None else _whole(text)


def _whole(index: str) -> str:
    """An index as text: a table that holds numbers may write 7 as 7.0."""
    return index.strip().removesuffix(".0")


def _same(found: str, expected: str) -> bool:
    """Whether two cells hold the same, but for blanks and ways of writing a number, which spreadsheets change."""
    with contextlib.suppress(ValueError):
        return float(found) == float(expected)
    return re.sub(r"\s|_x000D_", "", found) == re.sub(r"\s|_x000D_", "", expected)


def make_options() -> argparse.ArgumentParser:
    """The command's options."""
    parser = make_parser(
        "vlmevalkit",
        description="Import a VLMEvalKit data set and result files (xlsx, tsv, json) into a recorded folder.",
        example="python -m tasks.importers.vlmevalkit MMStar.tsv outputs/*/*_MMStar.xlsx --out recorded",
    )
    parser.add_argument("dataset", type=Path, help="the data set's tsv, as it lies in VLMEvalKit's LMUData folder")
    parser.add_argument("results", type=Path, nargs="*", help="result files, <VLM>_<data set>.xlsx, .tsv or .json")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="where the files in column `image_path` lie")
    parser.add_argument("--benchmark", metavar="NAME", help="what to call the data set (default: its file's name)")
    parser.add_argument("--vlm", metavar="NAME", help="whose answers they are, where the file's name does not say")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the importer; returns the exit code."""
    return run_importer("vlmevalkit", make_options(), import_results, argv)


if __name__ == "__main__":
    sys.exit(main())
