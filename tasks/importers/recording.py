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
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from arms_model.errors import ConfigError, DataError, StorageError
from arms_model.pictures import DEFAULT_MAX_PIXELS, check_header
from tasks.common import recorded
from tasks.common.files import folder_written_whole
from tasks.common.tables import SCHEMAS, write_parquet

log = logging.getLogger(__name__)
MAX_PICTURE_BYTES = 200_000_000
_MAX_FAULTS = 1000  # then reading on is a waste: the file is another than the importer takes it for
_MAX_NAMED = 20
_ROWS_A_CHUNK = 20_000
_PROGRESS_S = 10.0
_OUTPUTS = {"query_id": pl.String(), "vlm": pl.String(), "output": pl.String(), "reference_correct": pl.Boolean()} | {
    name: SCHEMAS["collect"][name] for name in ("error", "latency_s", "prompt_tokens", "completion_tokens", "cost_usd")
}
_SUFFIXES = {
    b"\x89PNG": "png", b"\xff\xd8": "jpg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif",
    b"MM\0*": "tif",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question about one picture.

    Attributes:
        query_id: unique in the folder; begin it with the benchmark, as in `chartqa/17`.
        benchmark: what the query belongs to.
        task: the skill or category within the benchmark; the benchmark's name where none is known.
        language: ISO 639-1.
        question: as the VLM was asked it, as far as it is the question's own (choices may stand in it).
        choices: the choices' texts in the order of their letters; None where there are none.
        answer: the gold: a choice's letter or text, a number, letters such as `b,c`, or words.
        answer_type: `choice` or `free`.
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


class Recording:
    """A recorded folder in the making; see `recording`."""

    def __init__(self, folder: Path, *, max_pixels: int) -> None:
        self._folder = folder
        self._max_pixels = max_pixels
        self._faults: list[str] = []
        self._left_out: dict[str, str] = {}
        self._queries = _Rows({name: dtype for name, dtype in SCHEMAS["queries"].items()})
        self._outputs = _Rows(_OUTPUTS)
        self._next_progress = time.monotonic() + _PROGRESS_S

    def add_query(self, query: Query, picture: bytes | Path) -> None:
        """Take a query and store its picture; what is wrong with them becomes a fault.

        Args:
            query: the query.
            picture: the picture file's bytes, or the file.
        """
        raise NotImplementedError

    def add_answer(self, answer: Answer) -> None:
        """Take an answer; its query may come before or after it, or stand in the folder already."""
        raise NotImplementedError

    def leave_out(self, query_id: str, reason: str) -> None:
        """Say that a query is sound but not for us (no picture, several pictures); its answers are left out with it.

        Args:
            query_id: of the query.
            reason: counted in the summary, so a few words that are alike for all such queries.
        """
        raise NotImplementedError

    def fault(self, message: str) -> None:
        """Gather something that must be corrected; the message says where (file, row) and what.

        Raises:
            DataError: there are so many that reading on is a waste.
        """
        raise NotImplementedError


class _Rows:
    def __init__(self, schema: dict[str, pl.DataType]) -> None:
        self.schema = schema


@contextlib.contextmanager
def recording(out: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Iterator[Recording]:
    """Make `out` a recorded folder, or add to the one there; written when the block ends well and without faults.

    Args:
        out: the recorded folder.
        max_pixels: a picture with more is at fault, by its header.

    Raises:
        ConfigError: `out` is a file, or a folder that holds something else.
        DataError: faults were gathered, or a key stands there with other content; nothing was changed.
        StorageError: the disk is full, the place cannot be written, or somebody changed the folder meanwhile.
    """
    raise NotImplementedError
    yield
