"""VLMs are blind (BlindTest) from a clone of its authors' repository: drawn pictures, right or wrong of four VLMs.

    git clone https://github.com/anguyen8/vision-llms-are-blind
    python -m tasks.importers.blindtest vision-llms-are-blind --dataset valid-00000-of-00001.parquet --out recorded

The clone holds a copy of each picture for every VLM and prompt, under src/<task>/images/, in a folder `correct` or
`incorrect`: that is all that is kept of an answer. Copies are known by their bytes. Most gold answers stand in the file
names; the circled letter and the number of subway routes do not, so for these two tasks the data set as published on
the hub (XAI/vlmsareblind: image, task, prompt, groundtruth) is needed, and its pictures are known by their pixels.
Without it they are left out. Of each task's two prompts one is read.
"""

import argparse
import hashlib
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from arms_model.errors import ConfigError, DataError
from arms_model.pictures import decode_picture, open_picture
from tasks.common.recorded import inside
from tasks.importers.clones import opened_clone
from tasks.importers.command import make_parser, run_importer
from tasks.importers.reading import read_rows
from tasks.importers.recording import Answer, Query, Recording
from tasks.importers.rows import typed

log = logging.getLogger(__name__)
LICENCE = "MIT"
BRACKETS = "in curly brackets"
Golds = dict[tuple[str, str], list[tuple[str, str]]]  # (data set's task, hash of the pixels) -> (prompt, gold)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One task under one of its prompts.

    Attributes:
        name: our name for it.
        folder: under src/.
        path: what the lower-case path under images/ has where this prompt was asked.
        question: the prompt.
        gold: what the file's name says of the gold; None where the data set is needed.
        dataset: the data set's own name for the task, where it is needed.
    """

    name: str
    folder: str
    path: str
    question: str
    gold: str | None = None
    dataset: str = ""


@dataclass(frozen=True, kw_only=True)
class _Published:
    task: str
    prompt: str
    groundtruth: str


_GRID = (
    f"Count the number of rows and columns and answer with numbers {BRACKETS}. For example, rows={{5}} columns={{6}}"
)
TASKS = (
    _Task(
        name="line_intersection",
        folder="LineIntersection",
        path="count",
        gold=r"gt_(\d+)_",
        question="Count the intersection points where the blue and red lines meet. "
        f"Put your answer {BRACKETS}, e.g., {{2}}.",
    ),
    _Task(
        name="two_circles_overlapping",
        folder="TouchingCircle",
        path="overlap",
        gold=r"distance_(-?[0-9]+(?:[.][0-9]+)?)\.png",
        question="Are the two circles overlapping? Answer with Yes/No.",
    ),
    _Task(
        name="two_circles_touching",
        folder="TouchingCircle",
        path="touch",
        gold=r"distance_(-?[0-9]+(?:[.][0-9]+)?)\.png",
        question="Are the two circles touching each other? Answer with Yes/No.",
    ),
    _Task(
        name="circled_letter",
        folder="CircledWord",
        path="which letter",
        dataset="Circled Letter",
        question="Which letter is being circled?",
    ),
    _Task(
        name="counting_circles",
        folder="CountingCircles",
        path="circles/.*count",
        gold=r"num[a-z]+_(\d+)_",
        question=f"Count the circles in the image. Answer with a number {BRACKETS} e.g. {{3}}.",
    ),
    _Task(
        name="counting_pentagons",
        folder="CountingCircles",
        path="pentagons/.*count",
        gold=r"num[a-z]+_(\d+)_",
        question=f"Count the pentagons in the image. Answer with a number {BRACKETS} e.g. {{3}}.",
    ),
    _Task(
        name="nested_squares",
        folder="NestedSquares",
        path="count",
        gold=r"depth_(\d+)_",
        question="Count total number of squares in the image. "
        f"Answer with only the number in numerical format {BRACKETS} e.g. {{3}}.",
    ),
    _Task(
        name="grid_blank",
        folder="CountingRowsAndColumns",
        path=r"countrc.*_blank\.png",
        gold=r"_(\d+)x(\d+)_",
        question=_GRID,
    ),
    _Task(
        name="grid_text",
        folder="CountingRowsAndColumns",
        path=r"countrc.*_text\.png",
        gold=r"_(\d+)x(\d+)_",
        question=_GRID,
    ),
    _Task(
        name="subway_paths",
        folder="SubwayMap",
        path="count.*_[a-d]_[a-d]_[^/]*$",
        dataset="Subway Connections",
        question="Count the one-colored routes that go from {} to {}. "
        f"Answer with a number {BRACKETS}, e.g., {{{{3}}}}",
    ),
)


def import_clone(options: argparse.Namespace, recording: Recording) -> None:
    """Read pictures and verdicts of a clone, and gold answers of the data set, into `recording`."""
    golds = _published_golds(options.dataset, max_pixels=options.max_pixels)
    with opened_clone(options.clone, holds="src/LineIntersection/images") as clone:
        for task in TASKS:
            if task.gold is None and not golds:
                log.warning(
                    "left out: %s, whose gold answers stand in the data set only; name it by --dataset", task.name
                )
                continue
            _import_task(task, clone, golds, options, recording)


def _import_task(task: _Task, clone: Path, golds: Golds, options: argparse.Namespace, recording: Recording) -> None:
    verdicts: dict[tuple[str, str], set[bool]] = defaultdict(set)
    first: dict[str, str] = {}  # query -> the copy that stands for it
    for path, vlm, is_correct in _copies(task, clone, recording):
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        stations = re.search(r"_([A-D])_([A-D])_", path.name, re.IGNORECASE) if task.name == "subway_paths" else None
        ends = [station.upper() for station in stations.groups()] if stations else []
        query_id = f"blindtest/{task.name}/{digest[:16]}" + (f"-{''.join(ends)}" if ends else "")
        verdicts[query_id, vlm].add(is_correct)
        if query_id in first:
            continue
        first[query_id] = path.name
        question = task.question.format(*ends) if ends else task.question
        try:
            answer = _gold(task, path, question, golds, max_pixels=options.max_pixels)
        except DataError as error:
            recording.fault(str(error))
            continue
        if answer is None:
            recording.leave_out(query_id, "the data set has no gold answer to its picture")
            continue
        recording.add_query(_query(query_id, task, question, answer, options), path)
    for (query_id, vlm), both in verdicts.items():
        if len(both) == 1:
            recording.add_answer(Answer(query_id=query_id, vlm=vlm, reference_correct=both.pop()))
        else:
            log.info("left out: %s of %s, which is filed as correct and as incorrect", query_id, vlm)


def _copies(task: _Task, clone: Path, recording: Recording) -> Iterator[tuple[Path, str, bool]]:
    """The copies of pictures that were asked under the task's prompt, with VLM and verdict."""
    images = clone / "src" / task.folder / "images"
    for path in sorted(images.rglob("*.png")):
        place = path.relative_to(images)
        if not re.search(task.path, place.as_posix().lower()):
            continue
        vlm = _vlm(" ".join(place.parts[:-1]).lower())
        verdict = next((m for part in place.parts[:-1] if (m := re.search(r"(?:^|[-_ ])(in)?corrects?$", part))), None)
        if vlm is None or verdict is None:
            log.info("left out: %s, whose folders name no VLM or no verdict", path.relative_to(clone))
            continue
        try:
            yield inside(clone, path.relative_to(clone).as_posix()), vlm, verdict[1] is None
        except DataError as error:
            recording.fault(str(error))


def _vlm(folders: str) -> str | None:
    """The VLM that the folders' names mean, each task's in another spelling, by its name in presets/real.yaml."""
    if "gemini" in folders:
        return "gemini-1.5-pro-001"
    if "gpt" in folders:
        return "gpt-4o-2024-05-13"
    if re.search(r"sonnet|claude|calude", folders):
        return "claude-3-5-sonnet-20240620" if re.search(r"3[._-]5", folders) else "claude-3-sonnet-20240229"
    return None


def _gold(task: _Task, path: Path, question: str, golds: Golds, *, max_pixels: int) -> str | None:
    """The gold answer; None where the data set does not have the picture."""
    if task.gold is None:
        key = (task.dataset, _pixels(open_picture(path, max_pixels=max_pixels)))
        stations = re.search(r"from \w to \w", question)
        fitting = [gold for prompt, gold in golds.get(key, []) if not stations or stations[0] in prompt]
        return fitting[0] if fitting else None
    found = re.search(task.gold, path.name, re.IGNORECASE)
    if not found:
        raise DataError(f"{path.name}: a file name of task {task.name} should tell its gold answer as {task.gold}.")
    if task.name == "two_circles_overlapping":
        return "Yes" if float(found[1]) < 0 else "No"
    if task.name == "two_circles_touching":  # circles that overlap touch each other too
        return "Yes" if float(found[1]) <= 0 else "No"
    return f"({found[1]},{found[2]})" if len(found.groups()) == 2 else found[1]


def _query(query_id: str, task: _Task, question: str, answer: str, options: argparse.Namespace) -> Query:
    is_choice = answer in ("Yes", "No")
    return Query(
        query_id=query_id,
        benchmark="BlindTest",
        task=task.name,
        language=options.language,
        question=question,
        choices=["Yes", "No"] if is_choice else None,
        answer=answer,
        answer_type="choice" if is_choice else "free",
        licence=options.licence or LICENCE,
    )


def _published_golds(paths: Sequence[Path], *, max_pixels: int) -> Golds:
    golds: Golds = defaultdict(list)
    needed = {task.dataset for task in TASKS if task.gold is None}
    for path in paths:
        if path.suffix != ".parquet":
            raise ConfigError(f"--dataset: {path} is no parquet file; name the data set's files as they are published.")
        for number, row in read_rows(path):
            where = f"{path}, row {number}"
            published = typed(_Published, row, where)
            if published.task in needed:
                picture = decode_picture(_bytes(row.get("image"), where), name=where, max_pixels=max_pixels)
                gold = published.groundtruth.strip("{} ")
                golds[published.task, _pixels(picture)].append((published.prompt, gold))
    return golds


def _bytes(image: Any, where: str) -> bytes:
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        raise DataError(f"{where}: column 'image' holds no picture's bytes but {type(content).__name__}.")
    return content


def _pixels(picture: Image.Image) -> str:
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = make_parser(
        "blindtest",
        description=(
            "VLMs are blind (BlindTest) from a clone of github.com/anguyen8/vision-llms-are-blind (src/*/images/). "
            "Only right or wrong is kept there, by folder, so answers have no text. VLMs are named as in "
            "presets/real.yaml. Only pictures with equal bytes share an image group: near-copies are not looked for."
        ),
        example=(
            "python -m tasks.importers.blindtest ~/clones/vision-llms-are-blind "
            "--dataset ~/vlmsareblind/valid-00000-of-00001.parquet --out recorded"
        ),
    )
    command.add_argument("clone", type=Path, help="the clone's folder, or an archive of it")
    command.add_argument(
        "--dataset",
        type=Path,
        nargs="+",
        default=[],
        metavar="PARQUET",
        help="files of the data set XAI/vlmsareblind as published: gold answers for circled letters and subway routes",
    )
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Import what the command line names; returns the exit code."""
    return run_importer("blindtest", parser(), import_clone, argv)


if __name__ == "__main__":
    sys.exit(main())
