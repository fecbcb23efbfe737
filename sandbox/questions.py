"""The sandbox's query set: pictures and questions with exact known answers, made from a seed.

    python -m sandbox.questions --out FOLDER --seed 0 --num-queries 1000

writes queries.parquet and images/ into FOLDER, in the layout of recorded benchmarks. Two questions share each picture.
The same seed gives the same bytes, and more queries begin with those of a smaller set. Seven benchmarks, one a skill,
take turns; half of the pictures are asked about in English, a quarter each in German and Russian.
"""

import argparse
import hashlib
import io
import random
import sys
from pathlib import Path
from typing import Any

import polars as pl

from sandbox.pictures import SCENES, Ask, spoil
from sandbox.vocabulary import LANGUAGES, WORDINGS, say

LICENCE = "CC0-1.0"
SHARES = (0.5, 0.25, 0.25)  # of the languages


def query_set(*, seed: int, num_queries: int) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Questions and pictures.

    Args:
        seed: another one gives other pictures and questions.
        num_queries: how many questions.

    Returns:
        The rows of the table `queries`, and the pictures as PNG by their path.
    """
    rows: list[dict[str, Any]] = []
    images = {}
    for number in range((num_queries + 1) // 2):
        rng = random.Random(f"{seed}/{number}")
        benchmark = list(SCENES)[number % len(SCENES)]
        language = rng.choices(LANGUAGES, SHARES)[0]
        drawing, *asks = SCENES[benchmark](rng, language)
        stream = io.BytesIO()
        spoil(drawing, rng).save(stream, "PNG", optimize=False)
        group, image = f"{benchmark}-{seed}-{number:05d}", f"images/{benchmark}/{number:05d}.png"
        images[image] = stream.getvalue()
        for place, ask in enumerate(asks):
            rows.append(_worded(ask, language, benchmark, rng) | {
                "query_id": f"{group}-{place}", "benchmark": benchmark, "task": ask.task, "language": language,
                "image": image, "image_sha256": hashlib.sha256(images[image]).hexdigest(), "image_group": group,
                "source_image_sha256": None, "licence": LICENCE,
            })  # fmt: skip
    return rows[:num_queries], images


def _worded(ask: Ask, language: str, benchmark: str, rng: random.Random) -> dict[str, Any]:
    """The question in words, with lettered choices where it has some, and its answer."""
    wordings = WORDINGS[ask.task][language]
    wording = rng.randrange(len(wordings))
    question = wordings[wording].format(**{slot: say(key, language, slot=slot) for slot, key in ask.slots.items()})
    question, answer, choices = question[0].upper() + question[1:], say(ask.answer, language), None
    if ask.others and rng.random() < 0.5:
        choices = [say(value, language) for value in (ask.answer, *ask.others)]
        rng.shuffle(choices)
        question += "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=False))
        answer = "ABCD"[choices.index(answer)]
    kind = "choice" if choices else "free"
    template = f"{benchmark}/{ask.task}/{language}/{kind}/{wording}"
    return {"question": question, "answer": answer, "choices": choices, "answer_type": kind, "template": template}


def main() -> int:
    """Write the query set that the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.questions",
        description="Draw pictures and write questions with exact answers: queries.parquet and images/.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to; made if it is not there")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    parser.add_argument("--num-queries", type=int, default=1000, metavar="N", help="how many (default: 1000)")
    arguments = parser.parse_args()
    if arguments.num_queries < 1:
        parser.error(f"--num-queries must be 1 or more, not {arguments.num_queries}")
    rows, images = query_set(seed=arguments.seed, num_queries=arguments.num_queries)
    for image, content in images.items():
        place: Path = arguments.out / image
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    frame = pl.DataFrame(rows, schema_overrides={"choices": pl.List(pl.String), "source_image_sha256": pl.String})
    frame.write_parquet(arguments.out / "queries.parquet", statistics=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
