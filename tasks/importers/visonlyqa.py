"""VisOnlyQA from a clone of its authors' repository: questions on what can be seen in scientific figures.

    git clone https://github.com/psunlpgroup/VisOnlyQA
    python -m tasks.importers.visonlyqa VisOnlyQA --out recorded

Read are dataset/test/{real,synthetic}/<task>.jsonl, dataset/test/images/ and
results/model_responses/eval_{real,synthetic}/<task>/prompt=<prompt>/<VLM>.jsonl. A response names no question: the
k-th line answers the k-th question of its task. Its prompt must hold the question, and its gold be the question's:
a file of another version of the data set would shift all labels.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from arms_model.errors import DataError
from tasks.common.recorded import inside
from tasks.importers.clones import opened_clone
from tasks.importers.command import make_parser, run_importer
from tasks.importers.reading import read_json_lines
from tasks.importers.recording import Answer, Query, Recording
from tasks.importers.rows import typed

log = logging.getLogger(__name__)
DATASET = Path("dataset/test")
RESPONSES = Path("results/model_responses")
PROMPTS = ("no_reasoning", "reasoning")
VLMS = {  # their file names -> names of presets/real.yaml; the others differ in upper and lower case only
    "llava_next_llama3": "llava-next-llama3-8b",
    "llava_next_yi_34b": "llava-next-yi-34b",
}
FIGURES = {  # licences of the figures, as the repository's LICENSE.md gives them
    "3d": "BSD",
    "chemistry": "Apache-2.0",
    "geometry": "CC-BY-SA-4.0",
    "syntheticgeometry": "GPL-3.0",
}


@dataclass(frozen=True, kw_only=True)
class _Question:
    id: str
    question: str
    answer: str
    image_path: str
    question_type: str
    response_options: list[str]
    source: str = ""

    @property
    def query_id(self) -> str:
        return f"visonlyqa/{self.id.removeprefix('visonlyqa_')[:16]}"


@dataclass(frozen=True, kw_only=True)
class _Response:
    prompt: str
    response: str | None
    y_pred: str | None
    y_true: str


def import_clone(options: argparse.Namespace, recording: Recording) -> None:
    """Read questions, pictures and responses of a clone into `recording`."""
    with opened_clone(options.clone, holds=f"{DATASET}/real") as clone:
        for split in ("real", "synthetic"):
            for path in sorted((clone / DATASET / split).glob("*.jsonl")):
                questions = _add_queries(path, clone / DATASET, options, recording)
                folder = clone / RESPONSES / f"eval_{split}" / path.stem / f"prompt={options.prompt}"
                for responses in sorted(folder.glob("*.jsonl")):
                    if f"_{path.stem}" in responses.stem:  # a VLM that was trained on this task
                        log.info("left out: %s", responses.relative_to(clone))
                        continue
                    _add_answers(responses, questions, recording)


def _add_queries(path: Path, images: Path, options: argparse.Namespace, recording: Recording) -> list[_Question | None]:
    """The questions in the file's order; None in the place of one at fault."""
    questions: list[_Question | None] = []
    for line, row in read_json_lines(path):
        question = None
        try:
            question = typed(_Question, row, f"{path.name}, line {line}")
            recording.add_query(_query(question, path.stem, options), inside(images, question.image_path))
        except DataError as error:
            recording.fault(str(error))
        questions.append(question)
    return questions


def _query(question: _Question, task: str, options: argparse.Namespace) -> Query:
    text, choices = _with_lettered_lines(question.question.strip(), question.response_options)
    category = task.split("__")[0]
    figures = FIGURES.get(category) or ("GPL-3.0" if question.source == "ChartQA" else "Apache-2.0")
    return Query(
        query_id=question.query_id,
        benchmark="VisOnlyQA",
        task=task,
        language=options.language,
        question=text,
        choices=choices,
        answer=question.answer,
        answer_type="free" if question.question_type == "multiple_answers" else "choice",
        licence=options.licence or f"GPL-3.0 (figures: {figures})",
    )


def _with_lettered_lines(question: str, options: list[str]) -> tuple[str, list[str]]:
    """Options that stand in the question as `(a) 1 (b) 2` as lines `A. 1`, and their texts; else all as it is."""
    marks = [re.search(rf"\({re.escape(option)}\)\s*", question) for option in options]
    found = [mark for mark in marks if mark]
    if not found or len(found) < len(options) or any(left.end() > right.start() for left, right in pairwise(found)):
        return question, options
    ends = [*(mark.start() for mark in found[1:]), len(question)]
    choices = [question[mark.end() : end].strip() for mark, end in zip(found, ends, strict=True)]
    lines = [f"\n{option.upper()}. {choice}" for option, choice in zip(options, choices, strict=True)]
    return question[: found[0].start()].rstrip() + "".join(lines), choices


def _add_answers(path: Path, questions: list[_Question | None], recording: Recording) -> None:
    vlm = VLMS.get(path.stem, path.stem.lower())
    where = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
    rows = list(read_json_lines(path))
    if len(rows) != len(questions):
        recording.fault(f"{where}: {len(rows)} lines, but the task has {len(questions)} questions; fetch it again")
        return
    for (line, row), question in zip(rows, questions, strict=True):
        if question is None:
            continue
        try:
            response = typed(_Response, row, f"{where}, line {line}")
        except DataError as error:
            recording.fault(str(error))
            continue
        if question.question.strip() not in response.prompt or response.y_true != question.answer:
            recording.fault(f"{where}, line {line}: answers another question than line {line} of the task's file")
            continue
        recording.add_answer(
            Answer(
                query_id=question.query_id,
                vlm=vlm,
                output=response.response,
                reference_correct=response.y_pred == response.y_true,
            )
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = make_parser(
        "visonlyqa",
        description=(
            "VisOnlyQA from a clone of github.com/psunlpgroup/VisOnlyQA (dataset/test/, results/model_responses/). "
            "Runs of VLMs that were trained on a task are left out. VLMs are named as in presets/real.yaml; unknown "
            "ones keep their file's name in lower case. Only pictures with equal bytes share an image group: "
            "near-copies are not looked for."
        ),
        example="python -m tasks.importers.visonlyqa ~/clones/VisOnlyQA --out recorded",
    )
    command.add_argument("clone", type=Path, help="the clone's folder, or an archive of it")
    command.add_argument("--prompt", choices=PROMPTS, default=PROMPTS[0], help="which of the authors' prompts was used")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Import what the command line names; returns the exit code."""
    return run_importer("visonlyqa", parser(), import_clone, argv)


if __name__ == "__main__":
    sys.exit(main())
