"""Write a recorded folder (`tasks/common/recorded.py` has its layout): what every importer ends in.

An importer reads somebody's format and says what stands there, query by query and answer by answer, in any order; what
is at fault is gathered, so that one run names all of it, and then nothing is written. The folder appears whole or not
at all. One that already holds a recorded set is added to: a key that comes again with the same content is kept once,
with other content it is refused. So several benchmarks, VLMs and formats can be brought into one folder, and the same
command can be given twice.

Pictures are stored as they come, under the hash of their bytes, and only their header is read.
"""

import contextlib
import hashlib
import logging
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from string import ascii_uppercase
from typing import Literal, NamedTuple

import polars as pl

from arms_model.errors import ConfigError, DataError, StorageError
from arms_model.pictures import DEFAULT_MAX_PIXELS, check_header
from tasks.common import recorded
from tasks.common.files import folder_written_whole
from tasks.common.tables import KEYS, SCHEMAS, write_parquet
from tasks.importers.gathering import Rows, united

log = logging.getLogger(__name__)
MAX_PICTURE_BYTES = 200_000_000
OUTPUTS_SCHEMA: dict[str, pl.DataType] = {
    "reference_correct" if name == "imported_correct" else name: dtype for name, dtype in SCHEMAS["collect"].items()
}
_MAX_FAULTS = 1000  # then reading on is a waste: the file is another than the importer takes it for
_NUM_NAMED = 20
_PROGRESS_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question about one picture.

    Attributes:
        query_id: unique in the folder; begin it with the benchmark, as in `chartqa/17`.
        benchmark: what the query belongs to.
        task: the skill or category within the benchmark; the benchmark's name where none is known.
        language: ISO 639-1.
        question: what a VLM is asked, with its choices written in it (`with_choices` adds them).
        answer: the gold: a choice's letter or text, a number, letters such as `b,c`, or words.
        answer_type: `choice` or `free`.
        choices: the choices' texts in the order of their letters; None where there are none.
        image_group: near-copies of a picture share one; None for the picture's own hash.
        template: questions made from one pattern share one; None for the image group.
        source_image_sha256: hash of the picture that this one was made from.
        licence: of the query and its picture.
    """

    query_id: str
    benchmark: str
    task: str
    language: str
    question: str
    answer: str
    answer_type: Literal["choice", "free"]
    choices: Sequence[str] | None = None
    image_group: str | None = None
    template: str | None = None
    source_image_sha256: str | None = None
    licence: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one VLM said to one query.

    Attributes:
        query_id: of the query.
        vlm: what tables and `params.yaml: vlms` call the VLM.
        output: its raw text; the empty text is an answer too. None where only right or wrong was kept, or an error.
        reference_correct: right or wrong by the source's own judge, where it says.
        error: why there is no answer; such a row gets no label.
        latency_s: seconds until the answer was there.
        prompt_tokens: tokens asked.
        completion_tokens: tokens answered.
        cost_usd: what it cost.
    """

    query_id: str
    vlm: str
    output: str | None = None
    reference_correct: bool | None = None
    error: str | None = None
    latency_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None


class StoredPicture(NamedTuple):
    """A picture that stands in the folder: its path there and the hash of its bytes."""

    image: str
    sha256: str


def with_choices(question: str, choices: Sequence[str] | None) -> str:
    """The question with its choices below it as lettered lines, unless they stand in it behind their letters."""
    lettered = list(zip(ascii_uppercase, choices or (), strict=False))
    marks = (rf"\b{letter}\s*[.):]\)?\s*{re.escape(choice.strip())}(?!\w)" for letter, choice in lettered)
    if all(re.search(mark, question, re.IGNORECASE) for mark in marks):
        return question
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in lettered)])


class Recording:
    """A recorded folder in the making; `recording` makes one.

    Attributes:
        num_queries: queries taken so far.
        num_answers: answers taken so far.
        left_out: the reason for each query that was left out, by query_id.
    """

    def __init__(self, folder: Path, *, max_pixels: int) -> None:
        self.num_queries = self.num_answers = 0
        self.left_out: dict[str, str] = {}
        self._folder = folder
        self._max_pixels = max_pixels
        self._faults: list[str] = []
        self._queries = Rows(SCHEMAS["queries"])
        self._outputs = Rows(OUTPUTS_SCHEMA)
        self._next_progress = time.monotonic() + _PROGRESS_S

    def add_query(self, query: Query, picture: bytes | Path | StoredPicture) -> None:
        """Take a query and store its picture; what is wrong with them becomes a fault.

        Args:
            query: the query.
            picture: the picture file's bytes, the file, or what `store_picture` gave.
        """
        if faults := _faults_of_query(query):
            self.fault(f"query {query.query_id}: {'; '.join(faults)}")
            return
        try:
            stored = picture if isinstance(picture, StoredPicture) else self.store_picture(picture, name=query.query_id)
        except DataError as error:
            self.fault(f"query {query.query_id}: {error}")
            return
        values = {field.name: getattr(query, field.name) for field in fields(query)}
        values |= {"image": stored.image, "image_sha256": stored.sha256}
        values["choices"] = list(query.choices) if query.choices else None
        values["image_group"] = query.image_group or stored.sha256
        values["template"] = query.template or values["image_group"]
        self._queries.append(values)
        self.num_queries += 1
        self._tell_progress()

    def add_answer(self, answer: Answer) -> None:
        """Take an answer; its query may come before or after it, or stand in the folder already."""
        if faults := _faults_of_answer(answer):
            self.fault(f"answer of {answer.vlm} to {answer.query_id}: {'; '.join(faults)}")
            return
        self._outputs.append({name: getattr(answer, name, None) for name in OUTPUTS_SCHEMA})
        self.num_answers += 1
        self._tell_progress()

    def store_picture(self, picture: bytes | Path, *, name: str) -> StoredPicture:
        """Store a picture, for several queries to share.

        Args:
            picture: the picture file's bytes, or the file.
            name: what to call it in messages where it is no file.

        Raises:
            DataError: it is missing, empty, no picture, or too large.
        """
        if isinstance(picture, Path):
            check_header(picture, max_pixels=self._max_pixels)
            num_bytes, name = picture.stat().st_size, str(picture)
        else:
            num_bytes = len(picture)
        if num_bytes > MAX_PICTURE_BYTES:
            raise DataError(f"picture {name} has {num_bytes:,} bytes, at most {MAX_PICTURE_BYTES:,} are allowed.")
        content = picture.read_bytes() if isinstance(picture, Path) else picture
        sha256 = hashlib.sha256(content).hexdigest()
        image = f"{recorded.IMAGES}/{sha256[:2]}/{sha256}.{recorded.suffix(content)}"
        place = self._folder / image
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            try:
                check_header(place, max_pixels=self._max_pixels)
            except DataError as error:
                place.unlink()
                raise DataError(str(error).replace(str(place), name)) from None
        return StoredPicture(image, sha256)

    def leave_out(self, query_id: str, reason: str) -> None:
        """Say that a query is sound but not for us (no picture, several pictures); its answers are left out with it.

        Args:
            query_id: of the query.
            reason: counted in the summary, so a few words that are alike for all such queries.
        """
        self.left_out.setdefault(query_id, reason)

    def fault(self, message: str) -> None:
        """Gather something that must be corrected; the message says where (file, row) and what.

        Raises:
            DataError: there are so many that reading on is a waste.
        """
        self._faults.append(message)
        if len(self._faults) >= _MAX_FAULTS:
            self.refuse_faults(" The rest was not read.")

    def refuse_faults(self, remark: str = "") -> None:
        """Raise DataError where faults were gathered; the first are named."""
        if self._faults:
            lines = "\n  ".join(self._faults[:_NUM_NAMED])
            number = "1 fault" if len(self._faults) == 1 else f"{len(self._faults)} faults"
            raise DataError(
                f"{number}, nothing was written.{remark} Correct the source (or leave those rows out of it) and run "
                f"the same command again. The first:\n  {lines}"
            )

    def finish(self, queries: pl.DataFrame | None, outputs: pl.DataFrame | None) -> None:
        """Write the tables beside the pictures: what was taken, and what stood in the folder before.

        Args:
            queries: table `queries` as it stood in the folder; None for a new one.
            outputs: its outputs, in the columns of `OUTPUTS_SCHEMA`.

        Raises:
            DataError: faults were gathered, nothing was taken, or a key has two contents.
        """
        self.refuse_faults()
        taken = self._queries.frame()
        if queries is None and not taken.height:
            reasons = Counter(self.left_out.values()).most_common(_NUM_NAMED)
            left_out = "; ".join(f"{count} {reason}" for reason, count in reasons) or "none"
            raise DataError(f"no query was found in the source (left out: {left_out}); nothing was written.")
        all_queries = united(queries, taken, key=KEYS["queries"], but="image", what="queries")
        known = set(all_queries["query_id"])
        self.left_out = {query_id: reason for query_id, reason in self.left_out.items() if query_id not in known}
        answers = self._outputs.frame().filter(~pl.col("query_id").is_in(list(self.left_out)))
        unknown = answers.join(all_queries, on="query_id", how="anti").select("query_id", "vlm")
        if unknown.height:
            rows = recorded.named(unknown.sort("query_id", "vlm").iter_rows(), unknown.height)
            raise DataError(
                f"answers to queries that are not there: {rows}. Nothing was written; give the data set that they "
                "belong to, or leave them out."
            )
        write_parquet(self._folder / recorded.QUERIES, all_queries)
        if outputs is not None or answers.height:
            all_outputs = united(outputs, answers, key=KEYS["collect"], but=None, what="answers")
            write_parquet(self._folder / recorded.OUTPUTS, all_outputs)
            recorded.read_outputs(self._folder)
        recorded.read_queries(self._folder)

    def _tell_progress(self) -> None:
        if time.monotonic() > self._next_progress:
            self._next_progress = time.monotonic() + _PROGRESS_S
            log.info("%d queries and %d answers so far", self.num_queries, self.num_answers)


@contextlib.contextmanager
def recording(out: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Iterator[Recording]:
    """Make `out` a recorded folder, or add to the one there; written when the block ends well and without faults.

    The new folder is built beside the old one, whose files it shares (hard links), and takes its place at the end.

    Args:
        out: the recorded folder.
        max_pixels: a picture with more is at fault, by its header.

    Raises:
        ConfigError: `out` is a file, or a folder that holds something else.
        DataError: faults were gathered, or a key stands there with other content; nothing was changed.
        StorageError: the disk is full, the place cannot be written, or somebody changed the folder meanwhile.
    """
    out = out.resolve()
    has_set = _holds_recorded_set(out)
    queries = recorded.read_queries(out) if has_set else None
    outputs = None
    if has_set and (out / recorded.OUTPUTS).exists():
        outputs = recorded.read_outputs(out).rename({"imported_correct": "reference_correct"})
    before = _state(out)
    with folder_written_whole(out) as folder:
        if has_set:
            shutil.copytree(out, folder, copy_function=_link_or_copy, symlinks=True, dirs_exist_ok=True)
        taken = Recording(folder, max_pixels=max_pixels)
        yield taken
        taken.finish(queries, outputs)
        if _state(out) != before:
            raise StorageError(
                f"{out} was changed by another program while this one read; nothing was written, run it again."
            )


def _faults_of_query(query: Query) -> list[str]:
    texts = ("query_id", "benchmark", "task", "language", "question", "answer")
    faults = [f"{name} is {getattr(query, name)!r}, expected some text" for name in texts if _is_blank(query, name)]
    if query.answer_type not in ("choice", "free"):
        faults.append(f"answer_type is {query.answer_type!r}, expected 'choice' or 'free'")
    choices = query.choices or ()
    if any(not isinstance(choice, str) or not choice.strip() for choice in choices):
        faults.append("a choice is empty or no text")
    elif not faults and query.answer_type == "choice" and choices and not recorded.is_among(query.answer, choices):
        faults.append(f"the answer {query.answer[:60]!r} is none of the {len(choices)} choices")
    return faults


def _is_blank(query: Query, name: str) -> bool:
    value = getattr(query, name)
    return not isinstance(value, str) or not value.strip()


def _faults_of_answer(answer: Answer) -> list[str]:
    faults = []
    for name in ("query_id", "vlm"):
        value = getattr(answer, name)
        if not isinstance(value, str) or not value.strip():
            faults.append(f"{name} is {value!r}, expected some text")
    texts = {"output": answer.output, "error": answer.error}
    faults += [
        f"{name} is {type(v).__name__}, expected text" for name, v in texts.items() if not isinstance(v, str | None)
    ]
    if not isinstance(answer.reference_correct, bool | None):
        faults.append(f"reference_correct is {answer.reference_correct!r}, expected true, false or nothing")
    for name in ("latency_s", "prompt_tokens", "completion_tokens", "cost_usd"):
        value = getattr(answer, name)
        kinds = int if name.endswith("tokens") else int | float
        is_number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (is_number and value >= 0):
            faults.append(f"{name} is {value!r}, expected a number of 0 or more")
    if answer.output is None and answer.reference_correct is None and answer.error is None:
        faults.append("it has neither an output nor a right or wrong nor an error")
    if answer.error is not None and answer.reference_correct:
        faults.append("it is an error, but called right")
    return faults


def _holds_recorded_set(out: Path) -> bool:
    if not out.exists():
        return False
    if not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder that holds a recorded set, or one that is not there.")
    if (out / recorded.QUERIES).exists():
        return True
    if any(out.iterdir()):
        raise ConfigError(
            f"--out {out} holds something else (no {recorded.QUERIES}); name a folder that is new or empty, or one "
            "that an importer made."
        )
    return False


def _state(out: Path) -> list[tuple[int, int] | None]:
    """Changes when somebody writes one of the folder's tables."""
    tables = [out / recorded.QUERIES, out / recorded.OUTPUTS]
    return [(path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None for path in tables]


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)
