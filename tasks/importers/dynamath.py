"""DynaMath from a clone of its authors' repository: 501 question programs, ten draws each, right or wrong of 14 VLMs.

    git clone https://github.com/DynaMath/DynaMath
    python -m tasks.importers.dynamath DynaMath --out recorded

Read are `samples and result/10trials/trial<k>/dataset.json` (the k-th draw of each question), its image/ folder, and
`samples and result/<VLM>-result.csv` (a row a question, `Variant 1` to `Variant 10` with `correct` or `fail`). The
program's number is the query's template. A draw that repeats an earlier one's picture and question is left out.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from arms_model.errors import DataError
from tasks.common.recorded import inside
from tasks.importers.clones import opened_clone
from tasks.importers.command import make_parser, run_importer
from tasks.importers.reading import read_json, read_rows
from tasks.importers.recording import Answer, Query, Recording
from tasks.importers.rows import typed_rows

RESULTS = Path("samples and result")
LICENCE = "MIT"
VLMS = {  # their file names -> names of presets/real.yaml
    "GPT4o": "gpt-4o-2024-08-06",
    "Gemini1.5-Pro": "gemini-1.5-pro-001",
    "InternVL2-26b": "internvl2-26b",
    "InternVL2-40B": "internvl2-40b",
    "InternVL2-76B": "internvl2-llama3-76b",
    "InternVL2-8b": "internvl2-8b",
    "Qwen2-72B": "qwen2-vl-72b-instruct",
    "Qwen2-7B": "qwen2-vl-7b-instruct",
    "claude3.5": "claude-3-5-sonnet-20240620",
    "deepseek7B": "deepseek-vl-7b-chat",
    "llama-3.2-90B": "llama-3.2-90b-vision-instruct",
    "llava1.5-7B": "llava-v1.5-7b",
    "llava1.6-34B": "llava-next-yi-34b",
    "llava1.6-vicuna-13B": "llava-v1.6-vicuna-13b",
}
VERDICTS = {"correct": True, "fail": False}
_REPEATED = "repeats the picture and question of an earlier draw"


@dataclass(frozen=True, kw_only=True)
class _Draw:
    question: str
    answer: str
    image: str
    answer_type: str
    subject: str


def import_clone(options: argparse.Namespace, recording: Recording) -> None:
    """Read the draws, their pictures and the verdicts of a clone into `recording`."""
    with opened_clone(options.clone, holds=f"{RESULTS}/10trials") as clone:
        numbers, variants = _add_queries(clone / RESULTS / "10trials", options, recording)
        for path in sorted((clone / RESULTS).glob("*-result.csv")):
            name = path.stem.removesuffix("-result")
            _add_verdicts(path, VLMS.get(name, name), numbers, variants, recording)


def _add_queries(trials: Path, options: argparse.Namespace, recording: Recording) -> tuple[set[str], list[int]]:
    """The numbers of the questions and of the draws that are there."""
    numbers: set[str] = set()
    seen: dict[tuple[str, str], str] = {}
    variants = [int(folder.name[5:]) for folder in trials.iterdir() if re.fullmatch(r"trial[1-9]\d{0,3}", folder.name)]
    for variant in sorted(variants):
        path = trials / f"trial{variant}" / "dataset.json"
        for number, draw in _draws(path, recording):
            numbers.add(number)
            query_id = f"dynamath/{number}-{variant}"
            try:
                picture = inside(path.parent, draw.image)
            except DataError as error:
                recording.fault(f"{path.parent.name}, question {number}: {error}")
                continue
            with picture.open("rb") as handle:
                key = (hashlib.file_digest(handle, "sha256").hexdigest(), draw.question)
            if seen.setdefault(key, query_id) == query_id:
                recording.add_query(_query(query_id, number, draw, options), picture)
            else:
                recording.leave_out(query_id, _REPEATED)
    return numbers, sorted(variants)


def _draws(path: Path, recording: Recording) -> Iterator[tuple[str, _Draw]]:
    where = f"{path.parent.name}/{path.name}"
    draws = read_json(path)
    if not isinstance(draws, dict):
        raise DataError(f"{where}: expected an object of questions by their number, got {type(draws).__name__}.")
    for number, draw in typed_rows(_Draw, draws.items(), f"{where}, question", fault=recording.fault):
        if re.fullmatch(r"\d{1,9}", number):
            yield number, draw
        else:
            recording.fault(f"{where}: {number[:40]!r} is no number of a question.")


def _query(query_id: str, number: str, draw: _Draw, options: argparse.Namespace) -> Query:
    is_choice = draw.answer_type == "multiple choice"
    return Query(
        query_id=query_id,
        benchmark="DynaMath",
        task=draw.subject.replace(" ", "_"),
        language=options.language,
        question=draw.question,
        choices=_choices(draw) if is_choice else None,
        answer=draw.answer,
        answer_type="choice" if is_choice else "free",
        template=f"dynamath/{number}",
        licence=options.licence or LICENCE,
    )


def _choices(draw: _Draw) -> list[str] | None:
    """The choices, which stand in the question as `(A) 1 (B) 2`; None where they cannot be told from the rest."""
    _, *parts = re.split(r"\(([A-Z])\)", draw.question)
    letters, texts = parts[::2], [text.strip() for text in parts[1::2]]
    is_clear = letters == list(ascii_uppercase[: len(letters)]) and all(texts) and draw.answer in letters
    return texts if is_clear else None


def _add_verdicts(path: Path, vlm: str, numbers: set[str], variants: list[int], recording: Recording) -> None:
    seen = set()
    for _, row in read_rows(path):
        question = row.get("Question ID")
        number = re.fullmatch(r"Q(\d+)", question or "")
        if not number:  # the last rows sum up
            continue
        seen.add(number[1])
        for variant in variants:
            verdict = row.get(f"Variant {variant}")
            if verdict not in VERDICTS:
                recording.fault(
                    f"{path.name}, {question}, Variant {variant}: expected correct or fail, got {verdict!r}"
                )
                continue
            recording.add_answer(
                Answer(
                    query_id=f"dynamath/{number[1]}-{variant}",
                    vlm=vlm,
                    reference_correct=VERDICTS[verdict],
                )
            )
    if missing := sorted(numbers - seen, key=int):
        recording.fault(f"{path.name}: no row of question {', '.join(missing[:5])}; it is cut off, fetch it again")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = make_parser(
        "dynamath",
        description=(
            "DynaMath from a clone of github.com/DynaMath/DynaMath (its folder 'samples and result'). Only right or "
            "wrong is kept there, so answers have no text. VLMs are named as in presets/real.yaml; unknown ones keep "
            "their file's name. Only pictures with equal bytes share an image group; a question program is a template."
        ),
        example="python -m tasks.importers.dynamath ~/clones/DynaMath --out recorded",
    )
    command.add_argument("clone", type=Path, help="the clone's folder, or an archive of it")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Import what the command line names; returns the exit code."""
    return run_importer("dynamath", parser(), import_clone, argv)


if __name__ == "__main__":
    sys.exit(main())
