"""What programs can see in a picture: things and their shapes, colours, bars, the hands of a clock, printed letters.

How well each of them sees is its `Sight`: whether it shrinks the picture, removes noise, parts things that touch, knows
a dark shade. Nothing here knows a question.
"""

import colorsys
import io
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from sandbox.pictures import font
from sandbox.vocabulary import COLOURS

Pixels = NDArray[np.uint8]  # (H, W, 3)
LETTERS = {
    "en": "abcdefghijklmnopqrstuvwxyz",
    "de": "abcdefghijklmnopqrstuvwxyzäöüß",
    "ru": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "number": "0123456789",
    "calculation": "0123456789+-×",
}
_MAX_SIDE = 512  # a larger picture is scaled down first
_AWAY = 60  # least difference of a channel between a thing and the ground


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How a program sees.

    Args:
        shrink: it looks at every so many pixels only, across and down.
        cleans: a median filter removes speckles and grain.
        parts_colours: things of different colours that touch are two.
        least_area: a smaller thing is no thing, px.
        knows_shapes: tells a circle from a square.
        knows_shades: goes by a colour's hue, else by the nearest colour at full strength.
    """

    shrink: int = 1
    cleans: bool = False
    parts_colours: bool = False
    least_area: int = 1
    knows_shapes: bool = True
    knows_shades: bool = False


@dataclass(frozen=True)
class Thing:
    """Pixels that hang together: their middle across and down, height and number in px, colour and shape."""

    centre: tuple[float, float]
    height: int
    area: int
    colour: str
    shape: str


@lru_cache(maxsize=128)
def load(picture: bytes, sight: Sight) -> Pixels:
    """The picture as a program sees it.

    Raises:
        ValueError: not a picture that can be read.
    """
    try:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no picture that can be read: {error}") from None
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    pixels = np.asarray(image)[:: sight.shrink, :: sight.shrink]
    return np.asarray(ndimage.median_filter(pixels, size=(3, 3, 1))) if sight.cleans else pixels


def ground(pixels: Pixels) -> NDArray[np.float64]:
    """The colour along the edges."""
    edges = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    return np.asarray(np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0))


def _foreground(pixels: Pixels, away: int = _AWAY) -> NDArray[np.bool_]:
    return np.asarray(np.abs(pixels - ground(pixels)).max(axis=2) > away)


def name_colour(colour: NDArray[np.float64], *, knows_shades: bool) -> str:
    """The name of a colour: of the nearest at full strength, or of the nearest hue."""
    if not knows_shades:
        return min(COLOURS, key=lambda name: float(np.abs(colour - COLOURS[name]).sum()))
    hue, saturation, _ = colorsys.rgb_to_hsv(*(colour / 255))
    if saturation < 0.2:
        return "grey"
    hues = {name: colorsys.rgb_to_hsv(*(np.array(rgb) / 255))[0] for name, rgb in COLOURS.items() if name != "grey"}
    return min(hues, key=lambda name: abs((hues[name] - hue + 0.5) % 1 - 0.5))


def things(pixels: Pixels, sight: Sight) -> list[Thing]:
    """What stands on the ground."""
    mask = _foreground(pixels)
    layers = [mask]
    if sight.parts_colours:
        palette = np.array([*COLOURS.values(), (20, 20, 30)])
        nearest = np.abs(pixels[:, :, None, :].astype(np.int16) - palette).sum(axis=3).argmin(axis=2)
        layers = [mask & (nearest == place) for place in np.unique(nearest[mask])]
    found = []
    for layer in layers:
        labels, _ = ndimage.label(layer)
        for number, box in enumerate(ndimage.find_objects(labels), 1):
            inside = labels[box] == number
            if inside.sum() >= sight.least_area:
                colour = name_colour(np.median(pixels[box][inside], axis=0), knows_shades=sight.knows_shades)
                centre = ((box[1].start + box[1].stop) / 2, (box[0].start + box[0].stop) / 2)
                found.append(Thing(centre, len(inside), int(inside.sum()), colour, _shape(inside)))
    return found


def _shape(inside: NDArray[np.bool_]) -> str:
    """By how much of its box it fills, and by where it is widest."""
    filled = ndimage.binary_fill_holes(inside)
    share, widths = filled.mean(), filled.sum(axis=1)
    if share > 0.88:
        return "square"
    if share > 0.68:
        return "circle"
    return "triangle" if widths[-3:].max() > 0.7 * inside.shape[1] else "diamond"


def bars(pixels: Pixels, raw: Pixels) -> tuple[list[int], float | None]:
    """The bars of a chart.

    Args:
        pixels: the picture.
        raw: the same without noise removed, which would take thin lines along.

    Returns:
        Their heights from left to right, px, and the grid lines' distance, px, where there are some.
    """
    mask = _foreground(pixels)
    rows = mask.sum(axis=1)
    axis = int(rows.argmax())
    while axis > 0 and rows[axis - 1] >= 0.95 * rows[axis]:
        axis -= 1
    heights = np.array([_run(mask[:axis, column]) for column in range(mask.shape[1])])
    labels, count = ndimage.label(heights > 4)
    found = [heights[labels == number] for number in range(1, count + 1)]
    found = [columns for columns in found if len(columns) > 5]
    strip = raw[:axis, int(mask[axis].argmax()) + 1 : int((heights > 4).argmax()) - 1]  # left of the first bar
    is_line = np.abs(strip.mean(axis=1) - ground(pixels)).max(axis=1) > 20 if strip.size else np.zeros(0, bool)
    starts = np.flatnonzero(is_line[1:] & ~is_line[:-1])
    return [int(np.median(columns)) for columns in found], float(np.median(np.diff(starts))) if len(
        starts
    ) > 3 else None


def _run(column: NDArray[np.bool_]) -> int:
    """How many pixels of a column are set from its foot upwards, the first gap ends it."""
    gaps = np.flatnonzero(~column[::-1])
    return int(gaps[0]) if len(gaps) else len(column)


def clock(pixels: Pixels, *, sees_red: bool) -> tuple[int, int] | None:
    """The hour (0 to 11) and minute that a round clock shows.

    Args:
        pixels: the picture.
        sees_red: tells a red hand from the black ones.
    """
    dark = (pixels[..., 0] if sees_red else pixels.mean(axis=2)) < 110
    labels, count = ndimage.label(dark)
    if count == 0:
        return None
    box = max(ndimage.find_objects(labels), key=lambda box: (box[0].stop - box[0].start) * (box[1].stop - box[1].start))
    y, x = ((side.start + side.stop - 1) / 2 for side in box)
    radius = (box[1].stop - box[1].start) / 2
    soft = ndimage.uniform_filter(dark.astype(float), 3)

    def along(turn: NDArray[np.float64], start: float, end: float) -> NDArray[np.float64]:
        """How dark it is along a hand, for each of the turns."""
        at = np.linspace(start, end, 12)[:, None] * radius
        rows, columns = y - np.cos(2 * np.pi * turn) * at, x + np.sin(2 * np.pi * turn) * at
        return np.asarray(ndimage.map_coordinates(soft, [rows, columns], order=1).mean(axis=0))

    minute = int(along(np.arange(60) / 60, 0.56, 0.76).argmax())
    hour = int(along((np.arange(12) + minute / 60) / 12, 0.2, 0.46).argmax())
    return hour, minute


def read_line(pixels: Pixels, *, line: int, alphabet: str) -> str:
    """The letters of one printed line, each matched with those of a sans serif font.

    Args:
        pixels: the picture.
        line: which line, from the top.
        alphabet: a key of LETTERS.

    Returns:
        The text; empty where no line is found there.
    """
    mask = _foreground(pixels, 80)
    labels, count = ndimage.label(ndimage.binary_dilation(mask.any(axis=1), iterations=2))
    rows = [np.flatnonzero(labels == number) for number in range(1, count + 1)]
    rows = [band for band in rows if len(band) > 9]
    if line >= len(rows):
        return ""
    strip = mask[rows[line][0] : rows[line][-1] + 1]
    columns, count = ndimage.label(strip.any(axis=0))
    glyphs = [strip[:, box[0]] for box in ndimage.find_objects(columns)]
    return "".join(_letter(_tight(glyph), alphabet) for glyph in glyphs)


def _tight(glyph: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rows, columns = np.flatnonzero(glyph.any(axis=1)), np.flatnonzero(glyph.any(axis=0))
    return glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _letter(glyph: NDArray[np.bool_], alphabet: str) -> str:
    """The letter that a glyph is most like, by its pixels and by how wide it is for its height."""
    pixels, slope = _normal(glyph)
    return min(_templates(alphabet), key=lambda t: float(np.abs(t[1] - pixels).mean()) + 0.15 * abs(t[2] - slope))[0]


def _normal(glyph: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    small = Image.fromarray(glyph.astype(np.uint8) * 255).resize((12, 16), Image.Resampling.BOX)
    return np.asarray(small, np.float64) / 255, float(np.log(glyph.shape[1] / glyph.shape[0]))


@lru_cache
def _templates(alphabet: str) -> list[tuple[str, NDArray[np.float64], float]]:
    """Each letter as it looks in DejaVu Sans."""
    found = []
    for letter in LETTERS[alphabet]:
        image = Image.new("L", (60, 60))
        ImageDraw.Draw(image).text((10, 6), letter, font=font("DejaVuSans", 32), fill=255)
        found.append((letter, *_normal(_tight(np.asarray(image) > 100))))
    return found


def calculate(text: str) -> int | None:
    """The result of a printed sum, difference or product."""
    match = re.search(r"(\d+)\D*?\s*([-+−×xX*])\D*?\s*(\d+)", text)
    if match is None:
        return None
    a, b = int(match[1]), int(match[3])
    return a + b if match[2] == "+" else a - b if match[2] in "-−" else a * b
