"""What programs understand of a question: its language, what it asks for, and which things it names.

It goes by the words' stems, as a small model would, and knows nothing of how `sandbox.questions` words things: a
question that it does not follow is of no known task.
"""

import re
from dataclasses import dataclass

from sandbox.vocabulary import COLOURS, GENITIVE, NAMES, SHAPES

_GERMAN = r"wie|welche[rsn]?|was|ist|sind|liegt|lies|nenne|zähle|löse|zeigt|säule"
_TASKS: tuple[tuple[str, str], ...] = (  # the first that fits
    ("result over", r"(?:calculation|rechnung|вычислени).*(?:more|greater|größer|больше)"),
    ("result", r"calculation|rechnung|вычислен"),
    ("dots left", r"more dots|mehr punkte|больше точек"),
    ("dots together", r"\bdots|punkte|точек"),
    ("highest bar", r"highest bar|bar.*highest|höchsten säule|säule.*am höchsten|высокого столб|столб.*самый высок"),
    ("lowest bar", r"lowest bar|bar.*lowest|niedrigsten säule|säule.*am niedrig|низкого столб|столб.*низк"),
    ("value of bar", r"(?:value|wert).*(?:bar|säule)|значение"),
    ("compare bars", r"\bbar\b|säule|столб"),
    ("time before", r"(?:clock|time|uhr).*(?:before|vor )|час.*\bдо\b"),
    ("time", r"clock|\btime|\buhr\b|час"),
    ("colour of ground", r"background|hintergrund|\bфон"),
    ("number", r"which number|printed number|zahl\b|число"),
    ("word", r"\bword|wort\b|слово"),
    ("count", r"how many|count|wie viele|zähle|сколько|сосчитай"),
    ("colour of shape", r"colou?r|farbe|цвет"),
    ("farthest", r"farthest|highest|lowest|am weitesten|am höchsten|am tiefsten|всех"),
    ("beside", r"\bleft|\bright|above|below|links|rechts|oberhalb|unterhalb|слева|справа|выше|ниже"),
)  # fmt: skip
_SIDES = {
    "left": r"\bleft|links|слева|левее",
    "right": r"\bright|rechts|справа|правее",
    "above": r"above|highest|oberhalb|höchsten|выше",
    "below": r"below|lowest|unterhalb|tiefsten|ниже",
}
_OPTION = re.compile(r"^([A-Z])\. (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """A question as a program understands it.

    Args:
        language: en, de or ru.
        task: what it asks for; empty where that is not clear.
        shapes: those that it names, in the order of the text.
        colour: the one that it names, or None.
        side: left, right, above, below, or None.
        numbers: in the order of the text.
        choices: the texts behind the letters; empty where it offers none.
    """

    language: str
    task: str
    shapes: tuple[str, ...]
    colour: str | None
    side: str | None
    numbers: tuple[int, ...]
    choices: tuple[str, ...]


def understand(question: str) -> Asked:
    """Read a question; whatever the text, something comes back."""
    text = _OPTION.split(question)[0].lower()  # not casefold(), which writes ß as ss
    language = "ru" if re.search("[а-яё]", text) else "de" if re.search(rf"\b(?:{_GERMAN})\b", text) else "en"
    named = [
        (found.start(), shape)
        for shape in SHAPES
        for found in re.finditer(rf"\b{NAMES[language][shape].lower()}", text)
    ]
    colours = GENITIVE if language == "ru" else {colour: NAMES[language][colour] for colour in COLOURS}
    return Asked(
        language=language,
        task=next((task for task, pattern in _TASKS if re.search(pattern, text)), ""),
        shapes=tuple(shape for _, shape in sorted(named)),
        colour=next((colour for colour, word in colours.items() if re.search(rf"\b{word}\b", text)), None),
        side=next((side for side, pattern in _SIDES.items() if re.search(pattern, text)), None),
        numbers=tuple(int(digits) for digits in re.findall(r"\d{1,6}", text)),
        choices=tuple(choice for _, choice in _OPTION.findall(question)),
    )
