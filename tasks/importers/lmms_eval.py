"""lmms-eval: the sample logs that `--log_samples` writes, <VLM>/<date>_samples_<task>.jsonl.

    python -m tasks.importers.lmms_eval logs/*/*_samples_mmstar.jsonl --dataset mmstar/val-*.parquet --out recorded

A line of a log is a query and its answer: doc_id, doc (without its pictures, and missing in some versions), input (the
prompt), target (the gold), filtered_resps and, where it differs, resps (the raw answer). Pictures come from the data
set's own parquet files (--dataset, whose k-th row is doc_id k), or from a folder (--images), where the file is named by
a field of doc (--image-field), or else by doc_id. A data set that is not the logs' own is noticed by its questions.

Left out and counted: queries with no or several pictures, answers by likelihood instead of text, and queries with
several golds, unless --metric names the log's own right or wrong, which then is all that is kept of the answer.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arms_model.errors import ConfigError, DataError
from tasks.common.recorded import inside
from tasks.importers.choices import answer_type, without_letters
from tasks.importers.command import make_parser, run_importer
from tasks.importers.embedded import picture_bytes, texts
from tasks.importers.reading import read_json_lines, read_rows
from tasks.importers.recording import Answer, Query, Recording, StoredPicture, with_choices

_LOG_NAME = re.compile(r"(?:(?P<date>[\dT_-]+)_)?samples_(?P<task>.+)\.jsonl")
_CHOICE_FIELDS = ("choices", "options")
_LEAST_BASE64 = 200  # characters; what is shorter names a file
_VERDICTS = {0.0: False, 1.0: True}


@dataclass(frozen=True, kw_only=True)
class _Log:
    path: Path
    vlm: str
    benchmark: str


@dataclass
class _DataSet:
    """The rows of --dataset that the logs name, pictures stored."""

    fields: dict[int, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[int, list[StoredPicture]] = field(default_factory=dict)


def import_logs(options: argparse.Namespace, recording: Recording) -> None:
    """Read logs and their pictures into `recording`."""
    logs = [_log(path, options) for path in options.logs]
    if options.dataset and len({log.benchmark for log in logs}) > 1:
        raise ConfigError("--dataset belongs to one task, but the logs are of several; import them task by task.")
    dataset = _read_dataset(logs, options, recording) if options.dataset else None
    stored: dict[str, StoredPicture] = {}
    for log in logs:
        for number, row in read_json_lines(log.path):
            try:
                _take(row, log, options, recording, dataset=dataset, stored=stored)
            except DataError as error:
                recording.fault(f"{log.path}, line {number}: {error}")


def _take(
    row: dict[str, Any],
    log: _Log,
    options: argparse.Namespace,
    recording: Recording,
    *,
    dataset: _DataSet | None,
    stored: dict[str, StoredPicture],
) -> None:
    """Take one line of a log: its query, unless it is left out, and its answer."""
    doc_id = _doc_id(row)
    query_id = f"{log.benchmark}/{doc_id}"
    doc = _doc(row, doc_id, options, dataset)
    golds = texts(row.get("target") if options.answer_field is None else _field(doc, options.answer_field, "answer"))
    output, verdict = _output(row), _verdict(row, options.metric)
    if not golds or (len(golds) > 1 and verdict is None):
        recording.leave_out(
            query_id, "several gold answers, and no right or wrong by a metric" if golds else "no gold answer"
        )
        return
    if output is None:
        recording.leave_out(query_id, "no answer as text (answers by likelihood)")
        return
    query = _query(query_id, log, row, doc, golds[0], options)
    if query_id not in stored:
        if dataset is not None:
            pictures: Sequence[bytes | Path | StoredPicture] = dataset.pictures[doc_id]
        else:
            pictures = list(_pictures(doc, doc_id, options))
        if len(pictures) != 1:
            recording.leave_out(query_id, "several pictures" if pictures else "no picture")
            return
        picture = pictures[0]
        stored[query_id] = (
            picture if isinstance(picture, StoredPicture) else recording.store_picture(picture, name=query_id)
        )
    recording.add_query(query, stored[query_id])
    if len(golds) > 1:  # one gold cannot tell, so what the metric says is all that is kept
        output = None
    tokens = _tokens(row)
    recording.add_answer(
        Answer(
            query_id=query_id,
            vlm=log.vlm,
            output=output,
            reference_correct=verdict,
            prompt_tokens=tokens.get("input_tokens"),
            completion_tokens=tokens.get("output_tokens"),
        )
    )


def _query(
    query_id: str, log: _Log, row: dict[str, Any], doc: dict[str, Any], gold: str, options: argparse.Namespace
) -> Query:
    choices = _choices(doc, options.choices_field)
    question = doc.get(options.question_field)
    question = with_choices(question, choices) if isinstance(question, str) and question.strip() else _prompt(row)
    gold = gold.strip()
    if options.answers_count_from is not None and gold.isdecimal():
        place = int(gold) - options.answers_count_from
        if not 0 <= place < len(choices):
            raise DataError(f"the gold {gold} counts past the {len(choices)} choices; correct --answers-count-from")
        gold = chr(ord("A") + place)
    task = texts(_field(doc, options.task_field, "task")) if options.task_field else []
    return Query(
        query_id=query_id,
        benchmark=log.benchmark,
        task=", ".join(task) or log.benchmark,
        language=options.language,
        question=question,
        choices=choices or None,
        answer=gold,
        answer_type=answer_type(gold, choices),
        licence=options.licence,
    )


def _doc(row: dict[str, Any], doc_id: int, options: argparse.Namespace, dataset: _DataSet | None) -> dict[str, Any]:
    """The log's doc and what the data set's row has besides; they must be of one query."""
    doc = row.get("doc")
    doc = doc if isinstance(doc, dict) else {}
    if dataset is None:
        return doc
    if doc_id not in dataset.fields:
        raise DataError(f"doc_id {doc_id} is past the end of the data set: another split, or a part of it")
    other = dataset.fields[doc_id]
    question = other.get(options.question_field)
    said = doc.get(options.question_field, _prompt(row))
    if not isinstance(question, str):
        raise DataError(f"the data set has no text in {options.question_field!r}; name the field with --question-field")
    if _bare(question) not in _bare(str(said)):
        raise DataError(
            f"doc_id {doc_id}: the log asks {str(said)[:60]!r}, the data set {question[:60]!r}: another split, or its "
            "rows were filtered or shuffled before they were asked"
        )
    return other | doc


def _read_dataset(logs: Iterable[_Log], options: argparse.Namespace, recording: Recording) -> _DataSet:
    """Read the rows that the logs name; pictures are stored as they are met, so that few are in memory."""
    named = (row.get("doc_id") for log in logs for _, row in read_json_lines(log.path))
    wanted = {doc_id for doc_id in named if isinstance(doc_id, int)}
    dataset = _DataSet()
    rows = (row for path in options.dataset for _, row in read_rows(path))
    for doc_id, row in enumerate(rows):
        if doc_id not in wanted:
            continue
        if options.image_field not in row:
            raise ConfigError(
                f"the data set has no column {options.image_field!r}, it has {', '.join(row)}; name the pictures' with "
                "--image-field."
            )
        dataset.fields[doc_id] = {name: value for name, value in row.items() if name != options.image_field}
        dataset.pictures[doc_id] = []
        try:
            for picture in _pictures({options.image_field: row[options.image_field]}, None, options):
                dataset.pictures[doc_id].append(recording.store_picture(picture, name=f"of data-set row {doc_id}"))
        except DataError as error:
            recording.fault(f"data set, row {doc_id}: {error}")
    return dataset


def _pictures(doc: Mapping[str, Any], doc_id: int | None, options: argparse.Namespace) -> Iterator[bytes | Path]:
    """The pictures of a query: in its field, as bytes or as names of files, or a file named by doc_id."""
    cell = doc.get(options.image_field)
    cells = cell if isinstance(cell, list) else texts(cell) if isinstance(cell, str) else [cell]
    for item in cells:
        content = (item.get("bytes") or item.get("path")) if isinstance(item, dict) else item
        if isinstance(content, bytes):
            yield content
        elif isinstance(content, str) and len(content) >= _LEAST_BASE64:
            yield picture_bytes(content)
        elif isinstance(content, str) and content:
            if options.images is None:
                raise ConfigError(f"a picture is named {content!r}; say where it lies with --images FOLDER.")
            yield inside(options.images, content)
        elif content is not None:
            raise DataError(f"field {options.image_field!r} holds {type(content).__name__}, no picture and no name")
    if cell is None and doc_id is not None:
        if options.images is None:
            raise ConfigError("the logs hold no pictures; give the data set (--dataset) or a folder (--images).")
        yield from [inside(options.images, path.name) for path in sorted(options.images.glob(f"{doc_id}.*"))]


def _output(row: dict[str, Any]) -> str | None:
    """The raw answer: the first of `resps`, in its older versions a list in a list; None where it is no text."""
    value = row["resps"] if row.get("resps") not in (None, []) else row.get("filtered_resps")
    if isinstance(value, list) and len(value) > 1:
        return None  # a request for each choice
    while isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) else None


def _tokens(row: dict[str, Any]) -> dict[str, Any]:
    """The counts of the one request, which newer versions log where the model's server reports them."""
    counts = row.get("token_counts")
    counts = counts[0] if isinstance(counts, list) and len(counts) == 1 else counts
    return counts if isinstance(counts, dict) else {}


def _prompt(row: dict[str, Any]) -> str:
    """The first text of `input`, in older versions of `arguments`."""
    value = row.get("input", row.get("arguments"))
    while isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, str) and value.strip():
        return value
    raise DataError("no question: neither a field of doc nor `input` holds one; name the field with --question-field")


def _choices(doc: dict[str, Any], name: str | None) -> list[str]:
    for value in [_field(doc, name, "choices")] if name else map(doc.get, _CHOICE_FIELDS):
        choices = texts(value) if isinstance(value, list | str) else []
        if len(choices) > 1:
            return without_letters(choices)
    return []


def _field(doc: dict[str, Any], name: str, what: str) -> Any:
    """What a field that the user named holds."""
    if name not in doc:
        raise DataError(f"doc has no field {name!r}, it has {', '.join(doc) or 'none'}; correct --{what}-field")
    return doc[name]


def _verdict(row: dict[str, Any], metric: str | None) -> bool | None:
    """Right or wrong by a metric of the log (dots lead into it); None for values between."""
    if metric is None:
        return None
    value: Any = row
    for part in metric.split("."):
        if not isinstance(value, dict) or part not in value:
            raise DataError(f"no metric {metric!r}; the line has {', '.join(row)[:300]}")
        value = value[part]
    return _VERDICTS.get(value) if isinstance(value, int | float) else None


def _doc_id(row: dict[str, Any]) -> int:
    doc_id = row.get("doc_id")
    if isinstance(doc_id, int) and not isinstance(doc_id, bool) and doc_id >= 0:
        return doc_id
    raise DataError(f"doc_id is {doc_id!r}, expected a number from 0; this is no sample log of lmms-eval")


def _log(path: Path, options: argparse.Namespace) -> _Log:
    """Whose answers a log holds, and to which task: by its name, its folder's name, and the options."""
    match = _LOG_NAME.fullmatch(path.name)
    benchmark = options.benchmark or (match["task"] if match else None)
    if benchmark is None:
        raise ConfigError(f"{path.name} is not called <date>_samples_<task>.jsonl; name the task with --benchmark.")
    if options.vlm and len(options.logs) > 1:
        raise ConfigError("--vlm names one VLM, but there are several logs; import them one by one.")
    vlm = options.vlm or path.resolve().parent.name
    return _Log(path=path, vlm=vlm, benchmark=benchmark)


def _bare(text: str) -> str:
    return re.sub(r"\s", "", text)


def make_options() -> argparse.ArgumentParser:
    """The command's options."""
    parser = make_parser(
        "lmms_eval",
        description="Import sample logs of lmms-eval (jsonl) into a recorded folder.",
        example="python -m tasks.importers.lmms_eval logs/*/*_samples_mmstar.jsonl --dataset mmstar/val-*.parquet "
        "--out recorded",
    )
    add = parser.add_argument
    add("logs", type=Path, nargs="+", help="<VLM>/<date>_samples_<task>.jsonl; the folder's name names the VLM")
    add("--dataset", type=Path, nargs="+", metavar="FILE", help="the data set's split, parquet files in their order")
    add("--images", type=Path, metavar="FOLDER", help="where pictures lie, named by --image-field or by doc_id")
    add("--image-field", default="image", metavar="NAME", help="field of a picture or its file (default: image)")
    add("--question-field", default="question", metavar="NAME", help="field of the question (default: question)")
    add("--answer-field", metavar="NAME", help="field of the gold (default: the log's target)")
    add("--choices-field", metavar="NAME", help="field of the choices (default: choices or options)")
    add("--answers-count-from", type=int, choices=(0, 1), help="golds are the places of choices, counted from 0 or 1")
    add("--task-field", metavar="NAME", help="field of the skill or category")
    add("--metric", metavar="NAME", help="the log's own right or wrong, e.g. exact_match")
    add("--benchmark", metavar="NAME", help="what to call the task (default: its name in the log's)")
    add("--vlm", metavar="NAME", help="whose answers they are, where the folder's name does not say")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the importer; returns the exit code."""
    return run_importer("lmms_eval", make_options(), import_logs, argv)


if __name__ == "__main__":
    sys.exit(main())
