"""The sandbox's VLMs by name: small real programs that look at a picture's pixels and parse the question's words.

A program gets the picture's bytes and the question and nothing else: no gold answer, no query id, no benchmark's name.
What it is wrong at it is wrong at for a reason: a language it was not written for, a picture it shrinks too far, noise
it does not remove, things that touch. Where it has no skill it guesses, in the form asked for.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from sandbox import eyes
from sandbox.eyes import Sight
from sandbox.ocr import read_text
from sandbox.pictures import Answer, distance
from sandbox.understanding import Asked, understand
from sandbox.vocabulary import COLOURS, LANGUAGES, SHAPES, say

Skill = Callable[[bytes, Asked, Sight], Answer | None]  # None: looked and found nothing to say


# --- Skills -----------------------------------------------------------------------------------------------------------


def count(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """How many things there are, of the shape and colour that the question names."""
    if not (sight.knows_shapes or asked.colour):
        return None
    found = [thing for thing in eyes.things(picture, sight) if thing.colour == asked.colour or not asked.colour]
    return sum(thing.shape in asked.shapes or not asked.shapes for thing in found)


def colour_of_shape(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """The colour of the shape that the question names, or of the largest thing where it knows no shapes."""
    found = [thing for thing in eyes.things(picture, sight) if thing.shape in asked.shapes or not sight.knows_shapes]
    return max(found, key=lambda thing: thing.area).colour if found else None


def colour_of_ground(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """The colour along the picture's edges."""
    return eyes.ground(picture, sight)


def dots(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Dots on both sides of the line, added or compared."""
    found = [thing for thing in eyes.things(picture, sight) if thing.height < 0.5]
    left = sum(thing.centre[0] < 0.5 for thing in found)
    return len(found) if asked.task == "dots together" else left > len(found) - left


def place(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Which shape is farthest to a side, or whether one is to that side of another."""
    found = sorted(eyes.things(picture, sight), key=lambda thing: thing.area)
    where = {thing.shape: distance(asked.side or "left", thing.centre) for thing in found}  # the largest of its shape
    if asked.task == "farthest":
        return min(where, key=lambda shape: where[shape], default=None)
    pair = [where[shape] for shape in asked.shapes if shape in where]
    return pair[0] < pair[1] if len(pair) == 2 else None


def bars(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Bars by their height; their values by the grid lines."""
    return _compared(eyes.bars(picture, sight), asked)


def printed_values(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Bars by the values printed above them; without those it sees no chart."""
    numbers = [(x, int(text), y) for text, x, y in read_text(picture) if re.fullmatch(r"\d+", text)]
    foot = max((y for _, _, y in numbers), default=0.0) - 6
    values = [value for _, value, y in sorted(numbers) if y < foot]
    return _compared(values, asked) if 2 * len(values) == len(numbers) else None


def _compared(values: list[int], asked: Asked) -> Answer | None:
    if asked.task in ("highest bar", "lowest bar"):
        return values.index(max(values) if asked.task == "highest bar" else min(values)) + 1 if values else None
    named = [values[number - 1] for number in asked.numbers if 1 <= number <= len(values)]
    if asked.task == "value of bar":
        return named[0] if named else None
    return named[0] > named[1] if len(named) == 2 else None


def clock(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """The time by the hands."""
    time = eyes.clock(picture, sight)
    if time is None:
        return None
    hour, minute = time
    return f"{hour}:{minute:02d}" if asked.task == "time" else hour < asked.numbers[0]


def letters(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Printed words, numbers and calculations, letter by letter."""
    if asked.task == "word":
        return eyes.read_line(picture, sight, line=0, alphabet=eyes.LETTERS[asked.language]) or None
    if asked.task == "number":
        return eyes.read_line(picture, sight, line=1, alphabet="0123456789") or None
    return _calculated(eyes.read_line(picture, sight, line=0, alphabet="0123456789+-×"), asked)


def ocr(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Printed words, numbers and calculations, by OCR."""
    texts = [text for text, _, _ in read_text(picture)]
    if asked.task not in ("word", "number"):
        return _calculated(" ".join(texts), asked)
    pattern = r"[^\W\d]{2,}" if asked.task == "word" else r"\d+"
    return max((text for text in texts if re.fullmatch(pattern, text)), key=len, default=None)


def _calculated(text: str, asked: Asked) -> Answer | None:
    match = re.search(r"(\d+)\D*?\s*([-+−×xX*])\D*?\s*(\d+)", text)
    if match is None:
        return None
    a, b = int(match[1]), int(match[3])
    result = a + b if match[2] == "+" else a - b if match[2] in "-−" else a * b
    return result if asked.task == "result" else result > asked.numbers[0]


# --- From a skill to a text -------------------------------------------------------------------------------------------

_POSSIBLE: dict[str, Sequence[Answer]] = {  # what is guessed from, by task; a small number elsewhere
    **dict.fromkeys(("beside", "compare bars", "time before", "dots left", "result over"), (True, False)),
    **dict.fromkeys(("colour of shape", "colour of ground"), tuple(COLOURS)),
    "farthest": SHAPES,
    "time": [f"{hour}:{minute:02d}" for hour in range(1, 13) for minute in range(0, 60, 5)],
    "word": ("?",),
}


@dataclass(frozen=True)
class Program:
    """One VLM of the sandbox."""

    name: str  # the model name that the endpoint serves it under; sets its guesses apart from other programs'
    latency_s: float  # how long the endpoint waits before it answers
    skills: Mapping[str, Skill]  # by task
    languages: tuple[str, ...] = LANGUAGES  # asked in another it guesses, and does not know in which form
    sight: Sight = field(default_factory=Sight)
    style: tuple[str, str] = ("{text}", "{letter}")  # how it says an answer, and a choice, which has a {text} too

    def __call__(self, picture: bytes, question: str) -> str:
        """Answer a question about a picture; ValueError where that cannot be read."""
        asked = understand(question)
        chance = int.from_bytes(hashlib.sha256(self.name.encode() + question.encode() + picture).digest()[:8], "big")
        eyes.load(picture, self.sight)  # so that a file that is no picture is refused whatever is asked
        task = asked.task if asked.language in self.languages else ""
        value = self.skills[task](picture, asked, self.sight) if task in self.skills else None
        if not asked.choices:
            possible = _POSSIBLE.get(task, range(1, 10))
            answer = possible[chance % len(possible)] if value is None else value
            return self.style[0].format(text=say(answer, asked.language))
        letter = list(asked.choices)[chance % len(asked.choices)]
        if value is not None:
            text = say(value, asked.language).lower()
            alike = {key: SequenceMatcher(None, choice.lower(), text).ratio() for key, choice in asked.choices.items()}
            letter = max(alike, key=lambda key: alike[key])
        return self.style[1].format(letter=letter, text=asked.choices[letter])


_PRINTED = ("word", "number", "result", "result over")
_CHARTS = ("highest bar", "lowest bar", "value of bar", "compare bars")
_PLACES = dict.fromkeys(("dots together", "dots left"), dots) | dict.fromkeys(("beside", "farthest"), place)
_COLOURS = {"count": count, "colour of shape": colour_of_shape, "colour of ground": colour_of_ground}
_GAUGES = dict.fromkeys(_CHARTS, bars) | dict.fromkeys(("time", "time before"), clock)
_ALL = (
    # pool base
    Program("glyph-reader", 0.015, dict.fromkeys(_PRINTED, letters)),
    Program(
        "blob-counter", 0.010, languages=("en", "de"), sight=Sight(least_area=2),
        skills={"count": count} | _PLACES, style=("{text}", "({letter})"),
    ),
    Program(
        "palette-reader", 0.012, _COLOURS, style=("The answer is {text}.", "The answer is {letter}."),
        sight=Sight(parts_colours=True, least_area=30, knows_shapes=False, knows_shades=True),
    ),
    Program(
        "generalist-small", 0.025, sight=Sight(shrink=4, least_area=2), style=("Answer: {text}", "{letter}. {text}"),
        skills=_COLOURS | _PLACES | _GAUGES | dict.fromkeys(_PRINTED, letters),
    ),
    # pool new
    Program(
        "ocr-reader", 0.030, languages=("en", "de"), style=("{text}", "The answer is {letter}."),
        skills=dict.fromkeys(_PRINTED, ocr) | dict.fromkeys(_CHARTS, printed_values),
    ),
    Program(
        "gauge-reader", 0.020, languages=("en", "ru"), sight=Sight(cleans=True, knows_shades=True), skills=_GAUGES,
    ),
    Program(
        "scene-analyst", 0.060, languages=("en", "ru"), style=("The answer is {text}.", "{letter}. {text}"),
        sight=Sight(cleans=True, parts_colours=True, least_area=20, knows_shades=True), skills=_COLOURS | _PLACES,
    ),
)  # fmt: skip
PROGRAMS: dict[str, Program] = {program.name: program for program in _ALL}
