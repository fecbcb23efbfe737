"""What programs understand of a question: its language, what it asks for, and which things it names.

It goes by the words' stems, as a small model would, and knows nothing of how `sandbox.questions` words things: a
question that it does not follow is of no known task.
"""

import re
from dataclasses import dataclass

from sandbox.vocabulary import FORMS, SHAPES

_GERMAN = r"\b(?:wie|welche[rsn]?|was|ist|sind|liegt|lies|nenne|zähle|löse|zeigt|säule)\b"
_TASKS = {  # the first that fits
    "result over": r"(?:calculation|rechnung|вычислени).*(?:more|greater|größer|больше)",
    "result": r"calculation|rechnung|вычислен",
    "dots left": r"more dots|mehr punkte|больше точек",
    "dots together": r"\bdots|punkte|точек",
    "highest bar": r"highest bar|bar.*highest|höchsten säule|säule.*am höchsten|высокого столб|столб.*самый высок",
    "lowest bar": r"lowest bar|bar.*lowest|niedrigsten säule|säule.*am niedrig|низкого столб|столб.*низк",
    "value of bar": r"(?:value|wert).*(?:bar|säule)|значение",
    "compare bars": r"\bbar\b|säule|столб",
    "time before": r"(?:clock|time|uhr).*(?:before|vor )|час.*\bдо\b",
    "time": r"clock|\btime|\buhr\b|час",
    "colour of ground": r"background|hintergrund|\bфон",
    "number": r"which number|printed number|zahl\b|число",
    "word": r"\bword|wort\b|слово",
    "count": r"how many|count|wie viele|zähle|сколько|сосчитай",
    "colour of shape": r"colou?r|farbe|цвет",
    "farthest": r"farthest|highest|lowest|am weitesten|am höchsten|am tiefsten|всех",
    "beside": r"\bleft|\bright|above|below|links|rechts|oberhalb|unterhalb|слева|справа|выше|ниже",
}
_SIDES = {
    "left": r"\bleft|links|слева|левее",
    "right": r"\bright|rechts|справа|правее",
    "above": r"above|highest|oberhalb|höchsten|выше",
    "below": r"below|lowest|unterhalb|tiefsten|ниже",
}
_OPTION = re.compile(r"^([A-Z])\. (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """A question as a program understands it."""

    language: str  # en, de or ru
    task: str  # empty where it is not clear
    shapes: list[str]  # in the order of the text
    colour: str | None
    side: str | None
    numbers: list[int]  # in the order of the text; a 0 where it names none
    choices: dict[str, str]  # by letter; empty where it offers none


def understand(question: str) -> Asked:
    """Read a question; whatever the text, something comes back."""
    text = _OPTION.split(question)[0].lower()  # not casefold(), which writes ß as ss

    def first(patterns: dict[str, str]) -> str | None:
        return next((key for key, pattern in patterns.items() if re.search(pattern, text)), None)

    language = "ru" if re.search("[а-яё]", text) else "de" if re.search(_GERMAN, text) else "en"
    stems = {FORMS["answer"][language][shape].lower(): shape for shape in SHAPES}
    return Asked(
        language=language,
        task=first(_TASKS) or "",
        shapes=[stems[stem] for stem in re.findall(rf"\b({'|'.join(stems)})", text)],
        colour=first({colour: rf"\b{word}\b" for colour, word in FORMS["colour"][language].items()}),
        side=first(_SIDES),
        numbers=[int(digits) for digits in re.findall(r"\d{1,6}", text)] or [0],
        choices=dict(_OPTION.findall(question)),
    )
