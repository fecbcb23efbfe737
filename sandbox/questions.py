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
import string
import sys
from pathlib import Path
from typing import Any

import polars as pl

from sandbox.pictures import SCENES, Ask, spoil
from sandbox.vocabulary import GENITIVE, LANGUAGES, NAMES, SHAPES, SIDES, said

LICENCE = "CC0-1.0"
SHARES = (0.5, 0.25, 0.25)  # of the languages
WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "word": {
        "en": ("Which word is printed in the picture?", "Read the word in the image.", "What does the word say?"),
        "de": ("Welches Wort steht im Bild?", "Lies das gedruckte Wort."),
        "ru": ("Какое слово написано на картинке?", "Прочитай слово на изображении."),
    },
    "number": {
        "en": ("Which number is printed below the word?", "Read the printed number."),
        "de": ("Welche Zahl ist gedruckt?", "Lies die Zahl unter dem Wort."),
        "ru": ("Какое число напечатано?", "Прочитай число под словом."),
    },
    "count": {
        "en": ("How many shapes are there?", "Count all shapes.", "How many shapes does the picture show?"),
        "de": ("Wie viele Formen sind es?", "Zähle alle Formen."),
        "ru": ("Сколько всего фигур?", "Сосчитай все фигуры."),
    },
    "count of shape": {
        "en": ("How many {several} are there?", "Count the {several}.", "How many {several} can you see?"),
        "de": ("Wie viele {several} sind zu sehen?", "Zähle: Wie viele {several} gibt es?"),
        "ru": ("Сколько здесь {several}?", "Сосчитай: сколько {several} на картинке?"),
    },
    "count of colour": {
        "en": ("How many shapes are {colour}?", "Count the {colour} shapes."),
        "de": ("Wie viele Formen sind {colour}?", "Zähle: Wie viele Formen haben die Farbe {colour}?"),
        "ru": ("Сколько фигур {colour} цвета?", "Сосчитай фигуры {colour} цвета."),
    },
    "colour of shape": {
        "en": ("What colour is {subject}?", "Name the colour of {subject}.", "Which colour has {subject}?"),
        "de": ("Welche Farbe hat {subject}?", "Nenne die Farbe: {subject}."),
        "ru": ("Какого цвета {subject}?", "Назови цвет: {subject}."),
    },
    "colour of ground": {
        "en": ("What colour is the background?", "Name the background's colour."),
        "de": ("Welche Farbe hat der Hintergrund?", "Nenne die Farbe des Hintergrunds."),
        "ru": ("Какого цвета фон?", "Назови цвет фона."),
    },
    "highest bar": {
        "en": ("Which bar is the highest?", "Give the number of the highest bar."),
        "de": ("Welche Säule ist am höchsten?", "Nenne die Nummer der höchsten Säule."),
        "ru": ("Какой столбец самый высокий?", "Назови номер самого высокого столбца."),
    },
    "lowest bar": {
        "en": ("Which bar is the lowest?", "Give the number of the lowest bar."),
        "de": ("Welche Säule ist am niedrigsten?", "Nenne die Nummer der niedrigsten Säule."),
        "ru": ("Какой столбец самый низкий?", "Назови номер самого низкого столбца."),
    },
    "compare bars": {
        "en": ("Is bar {one} higher than bar {other}?", "Bar {one} and bar {other}: is the first one higher?"),
        "de": ("Ist Säule {one} höher als Säule {other}?",),
        "ru": ("Столбец {one} выше, чем столбец {other}?",),
    },
    "value of bar": {
        "en": ("What is the value of bar {one}?", "Which value has bar {one}?"),
        "de": ("Welchen Wert hat Säule {one}?",),
        "ru": ("Какое значение у столбца {one}?",),
    },
    "time": {
        "en": ("What time does the clock show?", "Read the clock.", "What is the time on this clock?"),
        "de": ("Wie spät ist es auf der Uhr?", "Welche Zeit zeigt die Uhr?"),
        "ru": ("Который час на часах?", "Какое время показывают часы?"),
    },
    "time before": {
        "en": ("Is the time on the clock before {limit} o'clock?", "Does the clock show a time before {limit}:00?"),
        "de": ("Zeigt die Uhr eine Zeit vor {limit} Uhr?",),
        "ru": ("Часы показывают время до {limit} часов?",),
    },
    "beside": {
        "en": ("Is {subject} {side} {of}?", "Look at the picture: is {subject} {side} {of}?"),
        "de": ("Ist {subject} {side} {of}?", "Liegt {subject} {side} {of}?"),
        "ru": ("{subject} находится {side} {of}?", "Верно ли, что {subject} {side} {of}?"),
    },
    "farthest": {
        "en": ("Which shape is {far}?", "Name the shape that is {far}."),
        "de": ("Welche Form liegt {far}?", "Nenne die Form, die {far} ist."),
        "ru": ("Какая фигура {far}?", "Назови фигуру, которая {far}."),
    },
    "result": {
        "en": ("What is the result of the calculation?", "Work out the calculation in the picture."),
        "de": ("Was ist das Ergebnis der Rechnung?", "Löse die Rechnung im Bild."),
        "ru": ("Чему равен результат вычисления?", "Реши пример: вычисление на картинке."),
    },
    "result over": {
        "en": ("Is the result of the calculation more than {limit}?",),
        "de": ("Ist das Ergebnis der Rechnung größer als {limit}?",),
        "ru": ("Результат вычисления больше, чем {limit}?",),
    },
    "dots together": {
        "en": ("How many dots are on both sides together?", "Add the dots on the left to the dots on the right."),
        "de": ("Wie viele Punkte sind es auf beiden Seiten zusammen?",),
        "ru": ("Сколько точек на обеих сторонах вместе?",),
    },
    "dots left": {
        "en": ("Are there more dots on the left of the line than on its right?",),
        "de": ("Sind links von der Linie mehr Punkte als rechts?",),
        "ru": ("Слева от линии больше точек, чем справа?",),
    },
}


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
    question = wordings[wording].format(**{slot: _form(slot, key, language) for slot, key in ask.slots.items()})
    row = {"question": question[0].upper() + question[1:], "answer": said(ask.answer, language), "choices": None}
    is_choice = bool(ask.others) and rng.random() < 0.5
    if is_choice:
        choices = [said(value, language) for value in (ask.answer, *ask.others)]
        rng.shuffle(choices)
        letters = string.ascii_uppercase[: len(choices)]
        lines = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
        row |= {"question": "\n".join([row["question"], *lines]), "choices": choices}
        row["answer"] = letters[choices.index(said(ask.answer, language))]
    kind = "choice" if is_choice else "free"
    return row | {"answer_type": kind, "template": f"{benchmark}/{ask.task}/{language}/{kind}/{wording}"}


def _form(slot: str, key: str, language: str) -> str:
    """A slot's word in the form that its place in the sentence asks for."""
    if slot in ("subject", "several", "of"):
        return SHAPES[key][language][("subject", "several", "of").index(slot)]
    if slot in ("side", "far"):
        return SIDES[key][language][("side", "far").index(slot)]
    if slot == "colour":
        return GENITIVE[key] if language == "ru" else NAMES[language][key]
    return key


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
