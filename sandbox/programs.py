"""The sandbox's VLMs by name: small real programs that look at a picture's pixels and parse the question's words.

A program gets the picture's bytes and the question and nothing else: no gold answer, no query id, no benchmark's name.
What it is wrong at it is wrong at for a reason: a language it was not written for, a picture it shrinks too far, noise
it does not remove, things that touch. Where it has no skill it guesses, in the form asked for.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sandbox import eyes
from sandbox.eyes import Sight
from sandbox.ocr import read_text
from sandbox.pictures import Answer, distance
from sandbox.understanding import Asked, understand
from sandbox.vocabulary import COLOURS, LANGUAGES, SHAPES, said

Skill = Callable[[bytes, Asked, Sight], Answer | None]  # None: looked and found nothing to say


@dataclass(frozen=True, kw_only=True)
class Program:
    """One VLM of the sandbox.

    Args:
        name: the model name that the endpoint serves it under.
        latency_s: seconds that the endpoint waits before it answers, as a larger model would take longer.
        answer: the picture file's bytes and the question's text to the answer's text; CPU-bound and safe to call from
            several threads; raises ValueError for a picture that cannot be read.
    """

    name: str
    latency_s: float
    answer: Callable[[bytes, str], str]


# --- Skills -----------------------------------------------------------------------------------------------------------


def count(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """How many things there are, of the shape and colour that the question names."""
    if not (sight.knows_shapes or asked.colour):
        return None
    found = eyes.things(eyes.load(picture, sight), sight)
    found = [thing for thing in found if thing.colour == asked.colour or not asked.colour]
    return sum(thing.shape in asked.shapes or not asked.shapes for thing in found)


def colour_of_shape(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """The colour of the shape that the question names, or of the largest thing where it knows no shapes."""
    found = eyes.things(eyes.load(picture, sight), sight)
    found = [thing for thing in found if thing.shape in asked.shapes or not sight.knows_shapes]
    return max(found, key=lambda thing: thing.area).colour if found else None


def colour_of_ground(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """The colour along the picture's edges."""
    return eyes.name_colour(eyes.ground(eyes.load(picture, sight)), knows_shades=sight.knows_shades)


def dots(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Dots on both sides of the line, added or compared."""
    pixels = eyes.load(picture, sight)
    found = [thing for thing in eyes.things(pixels, sight) if thing.height < len(pixels) // 2]
    left = sum(thing.centre[0] < pixels.shape[1] / 2 for thing in found)
    return len(found) if asked.task == "dots together" else left > len(found) - left


def place(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Which shape is farthest to a side, or whether one is to that side of another."""
    found = eyes.things(eyes.load(picture, sight), sight)
    where = {thing.shape: distance(asked.side or "left", thing.centre) for thing in sorted(found, key=lambda t: t.area)}
    if asked.task == "farthest":
        return min(where, key=lambda shape: where[shape], default=None)
    pair = [where[shape] for shape in asked.shapes if shape in where]
    return pair[0] < pair[1] if len(pair) == 2 else None


def compare(values: list[int], asked: Asked) -> Answer | None:
    """What is asked about bars of these values."""
    named = [values[number - 1] for number in asked.numbers if 1 <= number <= len(values)]
    if asked.task in ("highest bar", "lowest bar") and values:
        return values.index(max(values) if asked.task == "highest bar" else min(values)) + 1
    if asked.task == "value of bar" and named:
        return named[0]
    return named[0] > named[1] if asked.task == "compare bars" and len(named) == 2 else None


def bars(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Bars by their height; their values by the grid lines."""
    heights, unit = eyes.bars(eyes.load(picture, sight), eyes.load(picture, replace(sight, cleans=False)))
    if asked.task == "value of bar" and unit is None:
        return None
    return compare([round(height / unit) for height in heights] if unit else heights, asked)


def clock(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """The time by the hands."""
    time = eyes.clock(eyes.load(picture, sight), sees_red=sight.knows_shades)
    if time is None or asked.task == "time":
        return f"{time[0] or 12}:{time[1]:02d}" if time else None
    return (time[0] or 12) < asked.numbers[0] if asked.numbers else None


def letters(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Printed words, numbers and calculations, letter by letter."""
    pixels = eyes.load(picture, sight)
    if asked.task == "word":
        return eyes.read_line(pixels, line=0, alphabet=asked.language) or None
    if asked.task == "number":
        return eyes.read_line(pixels, line=1, alphabet="number") or None
    return _calculated(eyes.read_line(pixels, line=0, alphabet="calculation"), asked)


def ocr(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Printed words, numbers and calculations, by OCR."""
    texts = [text for text, _, _ in read_text(picture)]
    if asked.task == "word":
        return max((t for t in texts if re.fullmatch(r"[^\W\d]{2,}", t)), key=len, default=None)
    if asked.task == "number":
        return max((text for text in texts if re.fullmatch(r"\d+", text)), key=len, default=None)
    return _calculated(" ".join(texts), asked)


def printed_values(picture: bytes, asked: Asked, sight: Sight) -> Answer | None:
    """Bars by the values printed above them; without those it sees no chart."""
    numbers = [(x, int(text), y) for text, x, y in read_text(picture) if re.fullmatch(r"\d+", text)]
    foot = max((y for _, _, y in numbers), default=0.0) - 6
    values = [value for _, value, y in sorted(numbers) if y < foot]
    return compare(values, asked) if len(values) == sum(y >= foot for _, _, y in numbers) else None


def _calculated(text: str, asked: Asked) -> Answer | None:
    result = eyes.calculate(text)
    if result is None or asked.task == "result":
        return result
    return result > asked.numbers[0] if asked.numbers else None


# --- From a skill to a text -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mind:
    """A program: its languages, its sight, what it can do, and how it puts an answer.

    Args:
        name: sets its guesses apart from other programs'.
        languages: those it understands; asked in another it guesses, and does not know in which form.
        sight: how it sees.
        skills: by task.
        style: how it says an answer; {text}, and for choices {letter}, are filled in.
    """

    name: str
    languages: tuple[str, ...] = LANGUAGES
    sight: Sight = field(default_factory=Sight)
    skills: Mapping[str, Skill]
    style: tuple[str, str] = ("{text}", "{letter}")

    def __call__(self, picture: bytes, question: str) -> str:
        """Answer a question about a picture."""
        asked = understand(question)
        chance = int.from_bytes(hashlib.sha256(self.name.encode() + question.encode() + picture).digest()[:8], "big")
        eyes.load(picture, self.sight)  # so that a file that is no picture is refused whatever is asked
        skill = self.skills.get(asked.task) if asked.language in self.languages else None
        value = skill(picture, asked, self.sight) if skill else None
        text = said(value, asked.language) if value is not None else None
        if asked.choices:
            same = [n for n, choice in enumerate(asked.choices) if text and choice.casefold() == text.casefold()]
            number = same[0] if same else _nearest(text, asked.choices, chance)
            return self.style[1].format(letter="ABCDEFGHIJ"[number % 10], text=asked.choices[number])
        return self.style[0].format(text=text if text is not None else self._guess(asked, chance))

    def _guess(self, asked: Asked, chance: int) -> str:
        if asked.language not in self.languages:
            return str(chance % 9 + 1)
        if asked.task in ("beside", "compare bars", "time before", "dots left", "result over"):
            return said(chance % 2 == 0, asked.language)
        forms = {"word": "?", "farthest": list(SHAPES)[chance % 4], "time": f"{chance % 12 + 1}:{chance % 11 * 5:02d}"}
        forms |= dict.fromkeys(("colour of shape", "colour of ground"), list(COLOURS)[chance % 7])
        return said(forms.get(asked.task, chance % 9 + 1), asked.language)


def _nearest(text: str | None, choices: tuple[str, ...], chance: int) -> int:
    """The choice that shares most letters with what was found; a guess where nothing was."""
    if text is None:
        return chance % len(choices)
    alike = [(Counter(choice) & Counter(text)).total() - abs(len(choice) - len(text)) for choice in choices]
    return alike.index(max(alike))


def _program(name: str, latency_s: float, **mind: Any) -> Program:
    return Program(name=name, latency_s=latency_s, answer=Mind(name=name, **mind))


_PRINTED = ("word", "number", "result", "result over")
_CHARTS = ("highest bar", "lowest bar", "value of bar", "compare bars")
_PLACES = dict.fromkeys(("dots together", "dots left"), dots) | dict.fromkeys(("beside", "farthest"), place)
_COLOURS = {"count": count, "colour of shape": colour_of_shape, "colour of ground": colour_of_ground}
_GAUGES = dict.fromkeys(_CHARTS, bars) | dict.fromkeys(("time", "time before"), clock)
_ALL = (
    # pool base
    _program("glyph-reader", 0.015, skills=dict.fromkeys(_PRINTED, letters)),
    _program(
        "blob-counter", 0.010, languages=("en", "de"), sight=Sight(least_area=2),
        skills={"count": count} | _PLACES, style=("{text}", "({letter})"),
    ),
    _program(
        "palette-reader", 0.012, skills=_COLOURS, style=("The answer is {text}.", "The answer is {letter}."),
        sight=Sight(parts_colours=True, least_area=30, knows_shapes=False, knows_shades=True),
    ),
    _program(
        "generalist-small", 0.025, sight=Sight(shrink=4, least_area=2), style=("Answer: {text}", "{letter}. {text}"),
        skills=_COLOURS | _PLACES | _GAUGES | dict.fromkeys(_PRINTED, letters),
    ),
    # pool new
    _program(
        "ocr-reader", 0.030, languages=("en", "de"), style=("{text}", "The answer is {letter}."),
        skills=dict.fromkeys(_PRINTED, ocr) | dict.fromkeys(_CHARTS, printed_values),
    ),
    _program(
        "gauge-reader", 0.020, languages=("en", "ru"), sight=Sight(cleans=True, knows_shades=True), skills=_GAUGES,
    ),
    _program(
        "scene-analyst", 0.060, languages=("en", "ru"), style=("The answer is {text}.", "{letter}. {text}"),
        sight=Sight(cleans=True, parts_colours=True, least_area=20, knows_shades=True), skills=_COLOURS | _PLACES,
    ),
)  # fmt: skip
PROGRAMS: dict[str, Program] = {program.name: program for program in _ALL}
