"""MATH-Vision (MATH-V) from a clone of its authors' repository: 3,040 competition questions, raw answers of VLMs.

    git clone https://github.com/mathllm/MATH-V
    python -m tasks.importers.mathv MATH-V --out recorded

Read are data/test.jsonl (questions), images/ and outputs/**/*.jsonl (a file a VLM: id, response, correct). A run whose
name ends in -CoT had another prompt; one with "(Text ...)" in its name, and the random baseline, saw no picture.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from arms_model.errors import DataError
from tasks.common.recorded import inside
from tasks.importers.clones import opened_clone
from tasks.importers.command import make_parser, run_importer
from tasks.importers.reading import read_json_lines
from tasks.importers.recording import Answer, Query, Recording, with_choices
from tasks.importers.rows import typed_rows

log = logging.getLogger(__name__)
QUESTIONS = "data/test.jsonl"
LICENCE = "MIT (repo LICENSE; questions from public math contests)"
VLMS = {  # their file names -> names of presets/real.yaml
    "Gemini-Pro": "gemini-1.0-pro-vision",
    "InternLM-XComposer2-VL": "internlm-xcomposer2-vl-7b",
    "LLaVA-v1.5-13B": "llava-v1.5-13b",
    "LLaVA-v1.5-7B": "llava-v1.5-7b",
    "Qwen-VL-Max": "qwen-vl-max",
    "Qwen-VL-Plus": "qwen-vl-plus",
    "SPHINX-MoE": "sphinx-moe",
    "SPHINX-v2": "sphinx-v2",
    "ShareGPT4V-13B": "sharegpt4v-13b",
    "ShareGPT4V-7B": "sharegpt4v-7b",
}
_COT = "-CoT"


@dataclass(frozen=True, kw_only=True)
class _Question:
    id: str
    question: str
    options: list[str]
    answer: str
    subject: str
    image: str


@dataclass(frozen=True, kw_only=True)
class _Output:
    id: str
    response: str | None = None
    correct: bool | None = None


def import_clone(options: argparse.Namespace, recording: Recording) -> None:
    """Read questions, pictures and outputs of a clone into `recording`."""
    with opened_clone(options.clone, holds=QUESTIONS) as clone:
        rows = read_json_lines(clone / QUESTIONS)
        for line, question in typed_rows(_Question, rows, f"{QUESTIONS}, line", fault=recording.fault):
            try:
                recording.add_query(_query(question, options), inside(clone, question.image))
            except DataError as error:
                recording.fault(f"{QUESTIONS}, line {line}: {error}")
        for path in sorted((clone / "outputs").rglob("*.jsonl")):
            name = path.stem
            if "(Text" in name or name == "Random-Chance" or name.endswith(_COT) != options.cot:
                log.info("left out: %s", path.relative_to(clone))
                continue
            name = name.removesuffix(_COT)
            _add_answers(path, VLMS.get(name, name), recording)


def _query(question: _Question, options: argparse.Namespace) -> Query:
    choices = [
        choice if choice.strip() else letter for letter, choice in zip(ascii_uppercase, question.options, strict=False)
    ]
    return Query(
        query_id=f"mathv/{question.id}",
        benchmark="MATH-Vision",
        task=question.subject,
        language=options.language,
        question=with_choices(question.question, choices),
        choices=choices,
        answer=question.answer,
        answer_type="choice" if question.options else "free",
        licence=options.licence or LICENCE,
    )


def _add_answers(path: Path, vlm: str, recording: Recording) -> None:
    for _, output in typed_rows(_Output, read_json_lines(path), f"{path.name}, line", fault=recording.fault):
        recording.add_answer(
            Answer(
                query_id=f"mathv/{output.id}",
                vlm=vlm,
                output=output.response,
                reference_correct=output.correct,
            )
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = make_parser(
        "mathv",
        description=(
            "MATH-Vision from a clone of github.com/mathllm/MATH-V (data/test.jsonl, images/, outputs/**/*.jsonl). "
            "VLMs are named as in presets/real.yaml; unknown ones keep their file's name. Only pictures with equal "
            "bytes share an image group: near-copies are not looked for."
        ),
        example="python -m tasks.importers.mathv ~/clones/MATH-V --out recorded",
    )
    command.add_argument("clone", type=Path, help="the clone's folder, or an archive of it")
    command.add_argument("--cot", action="store_true", help="take the chain-of-thought runs instead of the direct ones")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Import what the command line names; returns the exit code."""
    return run_importer("mathv", parser(), import_clone, argv)


if __name__ == "__main__":
    sys.exit(main())
