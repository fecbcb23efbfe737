"""The sandbox's pictures: each benchmark draws a scene by seeded chance and knows what may be asked of it.

What makes a picture hard is drawn into it: small or pale letters, other fonts, overlapping shapes, dark shades, bars
that differ by a little, a second hand, speckles and grain. So programs fail where people's eyes would have to try.
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sandbox.vocabulary import COLOURS, PRINTED_WORDS, SHAPES, SIDES

WIDTH, HEIGHT = 224, 160
Answer = bool | int | str
Rgb = tuple[int, ...]
PAPERS: tuple[Rgb, ...] = ((255, 255, 255), (250, 246, 232), (232, 242, 250))
INK: Rgb = (25, 25, 35)
_CORNERS = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)), "triangle": ((0, -1), (1, 1), (-1, 1)),
    "diamond": ((0, -1), (1, 0), (0, 1), (-1, 0)),
}  # fmt: skip
FONTS = ("DejaVuSans", "DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold")


@dataclass(frozen=True)
class Ask:
    """One thing to ask of a scene."""

    task: str  # a key of the wordings in `words.json`
    answer: Answer
    slots: dict[str, str] = field(default_factory=dict)  # what fills the wording's blanks, as keys of the vocabulary
    others: Sequence[Answer] = ()  # wrong answers to choose from; empty where it is never asked with choices


Scene = tuple[Image.Image, Ask, Ask]


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that matplotlib carries; DejaVu holds Latin, umlauts and Cyrillic."""
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / f"fonts/ttf/{name}.ttf"), size)


def paper(colour: Rgb) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture and the pen for it."""
    image = Image.new("RGB", (WIDTH, HEIGHT), colour)
    return image, ImageDraw.Draw(image)


def spoil(image: Image.Image, rng: random.Random) -> Image.Image:
    """Four of ten pictures as they are, the others with speckles or grain."""
    kind = rng.choices(("clean", "speckles", "grain"), (0.4, 0.3, 0.3))[0]
    noise = np.random.default_rng(rng.getrandbits(32))
    pixels = np.asarray(image).astype(np.int16)
    if kind == "speckles":
        place = noise.random((HEIGHT, WIDTH)) < rng.choice((0.01, 0.03))
        pixels[place] = noise.choice((0, 255), (int(place.sum()), 1))
    elif kind == "grain":
        pixels += np.rint(noise.normal(0, rng.choice((12, 32)), (HEIGHT, WIDTH, 1))).astype(np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def shade(colour: str, rng: random.Random) -> Rgb:
    """A colour, as it is or darker."""
    factor = rng.choice((1.0, 1.0, 0.8, 0.6))
    return tuple(int(channel * factor) for channel in COLOURS[colour])


def draw_shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, size: float, fill: Rgb) -> None:
    """Draw `shape` around (x, y), `size` px wide."""
    half = size / 2
    if shape == "circle":
        pen.ellipse([x - half, y - half, x + half, y + half], fill=fill)
    else:
        pen.polygon([(x + half * across, y + half * down) for across, down in _CORNERS[shape]], fill=fill)


def places(rng: random.Random, count: int, *, apart: float, margin: float) -> list[tuple[float, float]]:
    """`count` points at least `apart` from each other and `margin` from the edges."""
    found: list[tuple[float, float]] = []
    for attempt in itertools.count(1):
        point = (rng.uniform(margin, WIDTH - margin), rng.uniform(margin, HEIGHT - margin))
        if all(math.dist(point, other) >= apart for other in found):
            found.append(point)
        if len(found) == count:
            break
        if attempt % 200 == 0:  # the first points left no room for the others
            found = []
    return found


def near(number: int, rng: random.Random) -> list[int]:
    """Wrong numbers close to the right one."""
    return rng.sample([n for n in range(max(0, number - 4), number + 5) if n != number], 3)


def print_text(pen: ImageDraw.ImageDraw, text: str, rng: random.Random, *, y: int) -> None:
    """Print one line in a font, size and ink of its own."""
    size, ink = rng.choice((11, 16, 22, 30)), rng.choice((INK, INK, (60, 80, 150), (165, 165, 160)))
    face = font(rng.choice(FONTS), size)
    pen.text((rng.randint(8, max(9, int(WIDTH - 8 - pen.textlength(text, face)))), y), text, font=face, fill=ink)


def reading(rng: random.Random, language: str) -> Scene:
    """A word above a number."""
    image, pen = paper(rng.choice(PAPERS))
    word, *others = rng.sample(PRINTED_WORDS[language].split(), 4)
    number = rng.randint(100, 9999)
    print_text(pen, word, rng, y=rng.randint(15, 40))
    print_text(pen, str(number), rng, y=rng.randint(85, 110))
    wrong = [wrong for wrong in dict.fromkeys(int(_swap(str(number), rng)) for _ in range(20)) if wrong != number]
    return image, Ask("word", word, others=others), Ask("number", number, others=wrong[:3])


def _swap(digits: str, rng: random.Random) -> str:
    place = rng.randrange(len(digits))
    return digits[:place] + rng.choice("123456789") + digits[place + 1 :]


def counting(rng: random.Random, language: str) -> Scene:
    """Shapes of several kinds and colours, apart or overlapping."""
    image, pen = paper(rng.choice(PAPERS))
    size, count = rng.choice((13, 18, 24)), rng.randint(2, 12)
    kinds, colours = rng.sample(SHAPES, rng.randint(2, 3)), rng.sample(list(COLOURS), rng.randint(2, 4))
    drawn = [(rng.choice(kinds), rng.choice(colours)) for _ in range(count)]
    apart = size * rng.choice((1.6, 0.8))
    for (shape, colour), (x, y) in zip(drawn, places(rng, count, apart=apart, margin=size), strict=True):
        draw_shape(pen, shape, x, y, size, COLOURS[colour])
    kind, colour = rng.choice(kinds), rng.choice(colours)
    of_kind, of_colour = sum(shape == kind for shape, _ in drawn), sum(name == colour for _, name in drawn)
    of_shape = Ask("count of shape", of_kind, slots={"several": kind}, others=near(of_kind, rng))
    first = rng.choice((Ask("count", count, others=near(count, rng)), of_shape))
    return image, first, Ask("count of colour", of_colour, slots={"colour": colour})


def colours(rng: random.Random, language: str) -> Scene:
    """Shapes in shades, on a coloured ground."""
    ground, *names = rng.sample(list(COLOURS), rng.randint(2, 5))
    image, pen = paper(shade(ground, rng))
    shapes = rng.sample(SHAPES, len(names))
    for shape, name, (x, y) in zip(shapes, names, places(rng, len(names), apart=52, margin=28), strict=True):
        draw_shape(pen, shape, x, y, rng.randint(26, 48), shade(name, rng))
    wrong = [name for name in rng.sample(list(COLOURS), 5) if name not in (ground, names[0])][:3]
    of_shape = Ask("colour of shape", names[0], slots={"subject": shapes[0]}, others=[ground, *wrong[:2]])
    return image, of_shape, Ask("colour of ground", ground, others=[names[0], *wrong[:2]])


def charts(rng: random.Random, language: str) -> Scene:
    """Bars on grid lines, one a unit, or with their values printed above them."""
    image, pen = paper(rng.choice(PAPERS))
    count, is_printed = rng.randint(3, 6), rng.random() < 0.4
    values = rng.sample(range(1, 12) if rng.random() < 0.6 else range(5, 6 + count), count)
    base, unit, step = 140, 10, (WIDTH - 30) // count
    for line in range(0 if is_printed else 13):
        pen.line([16, base - unit * line, WIDTH - 8, base - unit * line], fill=(200, 200, 200))
    fill = shade(rng.choice(list(COLOURS)), rng)
    for place, value in enumerate(values):
        left = 22 + place * step
        pen.rectangle([left, base - unit * value, left + step - 12, base], fill=fill)
        pen.text((left + 4, base + 3), str(place + 1), font=font("DejaVuSans", 12), fill=INK)
        if is_printed:
            pen.text((left + 2, base - unit * value - 15), str(value), font=font("DejaVuSans", 12), fill=INK)
    pen.line([16, base, WIDTH - 8, base], fill=INK, width=2)
    end = rng.choice(("highest", "lowest"))
    best = values.index(max(values) if end == "highest" else min(values)) + 1
    one, other = rng.sample(range(1, count + 1), 2)
    others = [place for place in range(1, count + 1) if place != best]
    first = Ask(f"{end} bar", best, others=rng.sample(others, min(3, len(others))))
    value, slots = values[one - 1], {"one": str(one), "other": str(other)}
    of_bar = Ask("value of bar", value, slots=slots, others=near(value, rng))
    return image, first, rng.choice((Ask("compare bars", value > values[other - 1], slots=slots), of_bar))


def clocks(rng: random.Random, language: str) -> Scene:
    """A round clock with two hands, sometimes a red third one."""
    image, pen = paper(rng.choice(PAPERS))
    radius = rng.choice((36, 50, 66))
    x, y = rng.randint(radius + 4, WIDTH - radius - 4), rng.randint(radius + 4, HEIGHT - radius - 4)
    hour, minute = rng.randint(1, 11), rng.choice((rng.randrange(0, 60, 5), rng.randrange(60)))
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], outline=INK, width=3, fill=(255, 255, 255))

    def hand(turn: float, start: float, end: float, width: int, fill: Rgb) -> None:
        across, up = math.sin(2 * math.pi * turn), -math.cos(2 * math.pi * turn)
        ends = [x + across * radius * start, y + up * radius * start, x + across * radius * end, y + up * radius * end]
        pen.line(ends, fill=fill, width=width)

    for tick in range(12) if rng.random() < 0.7 else range(0, 12, 3):
        hand(tick / 12, 0.88, 1.0, 2, INK)
    if rng.random() < 0.35:
        hand(rng.random(), 0.0, 0.85, 1, (214, 39, 40))
    hand((hour + minute / 60) / 12, 0.0, 0.5, 4, INK)
    hand(minute / 60, 0.0, 0.8, 2, INK)

    def time(hour: int, minute: int) -> str:
        return f"{hour % 12 or 12}:{minute % 60:02d}"

    wrong = [time(hour + 1, minute), time(hour, minute + rng.choice((10, 20, 30))), time(minute // 5, 5 * hour)]
    limit = rng.randint(3, 9)
    others = [text for text in dict.fromkeys(wrong) if text != time(hour, minute)]
    before = Ask("time before", hour < limit, slots={"limit": str(limit)})
    return image, Ask("time", time(hour, minute), others=others), before


def spatial(rng: random.Random, language: str) -> Scene:
    """Four different shapes, and where they stand."""
    image, pen = paper(rng.choice(PAPERS))
    shapes, size = rng.sample(SHAPES, rng.randint(3, 4)), rng.choice((16, 24, 34))
    points = places(rng, len(shapes), apart=size * 1.3, margin=size)
    while min(abs(a[axis] - b[axis]) for axis in (0, 1) for a in points for b in points if a is not b) < 5:
        points = places(rng, len(shapes), apart=size * 1.3, margin=size)
    where = dict(zip(shapes, points, strict=True))
    for shape, (x, y) in where.items():
        draw_shape(pen, shape, x, y, size, COLOURS[rng.choice(list(COLOURS))])
    side, far = rng.choice(SIDES), rng.choice(SIDES)
    one, other = rng.sample(shapes, 2)
    farthest = min(shapes, key=lambda shape: distance(far, where[shape]))
    is_beside = distance(side, where[one]) < distance(side, where[other])
    beside = Ask("beside", is_beside, slots={"subject": one, "of": other, "side": side})
    return image, beside, Ask("farthest", farthest, slots={"far": far}, others=[s for s in shapes if s != farthest])


def distance(side: str, point: tuple[float, float]) -> float:
    """How far a point is from the picture's edge on that side, up to a constant."""
    return {"left": point[0], "right": -point[0], "above": point[1], "below": -point[1]}[side]


def arithmetic(rng: random.Random, language: str) -> Scene:
    """A printed calculation, or dots on both sides of a line."""
    image, pen = paper(rng.choice(PAPERS))
    if rng.random() < 0.5:
        a, b = rng.randint(11, 59), rng.randint(2, 9)
        sign, result = rng.choice((("+", a + b), ("-", a - b), ("×", a * b)))
        print_text(pen, f"{a} {sign} {b}", rng, y=rng.randint(30, 90))
        limit = result + rng.choice((-7, -3, 2, 6))
        over = Ask("result over", result > limit, slots={"limit": str(limit)})
        return image, Ask("result", result, others=near(result, rng)), over
    size, middle = rng.choice((9, 14)), WIDTH // 2
    points = places(rng, rng.randint(3, 13), apart=size * rng.choice((1.5, 0.85)), margin=size)
    points = [(x, y) for x, y in points if abs(x - middle) > size]
    pen.line([middle, 0, middle, HEIGHT], fill=INK, width=2)
    for x, y in points:
        draw_shape(pen, "circle", x, y, size, INK)
    left = sum(x < middle for x, _ in points)
    together = Ask("dots together", len(points), others=near(len(points), rng))
    return image, together, Ask("dots left", left > len(points) - left)


SCENES: dict[str, Callable[[random.Random, str], Scene]] = {
    scene.__name__: scene for scene in (reading, counting, colours, charts, clocks, spatial, arithmetic)
}
