"""What programs can see in a picture: things and their shapes, colours, bars, the hands of a clock, printed letters.

How well each of them sees is its `Sight`: whether it shrinks the picture, removes noise, parts things that touch, knows
a dark shade. Nothing here knows a question.
"""

import io
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from sandbox.pictures import font
from sandbox.vocabulary import COLOURS

Pixels = NDArray[np.uint8]  # (H, W, 3)
Mask = NDArray[np.bool_]  # (H, W)
LETTERS = {
    "en": "abcdefghijklmnopqrstuvwxyz",
    "de": "abcdefghijklmnopqrstuvwxyzäöüß",
    "ru": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
}
_MAX_SIDE = 512  # a larger picture is scaled down first


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How a program sees."""

    shrink: int = 1  # it looks at every so many pixels only, across and down
    cleans: bool = False  # a median filter removes speckles and grain
    parts_colours: bool = False  # things of different colours that touch are two
    least_area: int = 1  # a smaller thing is no thing, px
    knows_shapes: bool = True  # tells a circle from a square
    knows_shades: bool = False  # knows a dark red for red; tells a red hand of a clock from black ones


@dataclass(frozen=True)
class Thing:
    """Pixels that hang together."""

    centre: tuple[float, float]  # across and down, as shares of the picture
    height: float  # as a share of the picture
    area: int  # px
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


def _ground(pixels: Pixels) -> NDArray[np.float64]:
    """The colour along the edges."""
    edges = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    return np.asarray(np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0))


def _foreground(pixels: Pixels, away: int = 60) -> Mask:
    """Where a channel is farther than `away` from the ground."""
    return np.asarray(np.abs(pixels - _ground(pixels)).max(axis=2) > away)


def _name(colour: NDArray[np.float64], sight: Sight) -> str:
    """The nearest of the colours; who knows shades compares them at full strength, else as they are."""

    def seen(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
        return 255 * rgb / (rgb.max() + 1) if sight.knows_shades else rgb

    return min(COLOURS, key=lambda name: float(np.abs(seen(colour) - seen(np.array(COLOURS[name]))).sum()))


def ground(picture: bytes, sight: Sight) -> str:
    """The background's colour."""
    return _name(_ground(load(picture, sight)), sight)


def things(picture: bytes, sight: Sight) -> list[Thing]:
    """What stands on the ground."""
    pixels = load(picture, sight)
    rows, columns, _ = pixels.shape
    mask = _foreground(pixels)
    layers = [mask]
    if sight.parts_colours:
        palette = np.array([*COLOURS.values(), (20, 20, 30)])
        nearest = np.abs(pixels[:, :, None, :].astype(np.int16) - palette).sum(axis=3).argmin(axis=2)
        layers = [mask & (nearest == place) for place in np.unique(nearest[mask])]
    found = []
    for layer in layers:
        labels, _ = ndimage.label(layer)
        for number, (down, across) in enumerate(ndimage.find_objects(labels), 1):
            inside = labels[down, across] == number
            if inside.sum() >= sight.least_area:
                centre = ((across.start + across.stop) / 2 / columns, (down.start + down.stop) / 2 / rows)
                colour = _name(np.median(pixels[down, across][inside], axis=0), sight)
                found.append(Thing(centre, len(inside) / rows, int(inside.sum()), colour, _shape(inside)))
    return found


def _shape(inside: Mask) -> str:
    """By how much of its box it fills, and by where it is widest."""
    filled = ndimage.binary_fill_holes(inside)
    share, widths = filled.mean(), filled.sum(axis=1)
    if share > 0.88:
        return "square"
    if share > 0.68:
        return "circle"
    return "triangle" if widths[-3:].max() > 0.7 * inside.shape[1] else "diamond"


def bars(picture: bytes, sight: Sight) -> list[int]:
    """The heights of a chart's bars from left to right, by its grid lines; in px where there are none."""
    pixels = load(picture, sight)
    mask = _foreground(pixels)
    rows = mask.sum(axis=1)
    axis = int(rows.argmax())
    while axis > 0 and rows[axis - 1] >= 0.95 * rows[axis]:
        axis -= 1
    heights = mask[:axis][::-1].cumprod(axis=0).sum(axis=0)  # of each column, up to its first gap
    found = [heights[columns] for columns in ndimage.find_objects(ndimage.label(heights > 4)[0])]
    raw = load(picture, replace(sight, cleans=False))  # a median filter would take thin lines along
    strip = raw[:axis, int(mask[axis].argmax()) + 1 : int((heights > 4).argmax()) - 1]  # left of the first bar
    is_line = np.abs(strip.mean(axis=1) - _ground(pixels)).max(axis=1) > 20 if strip.size else np.zeros(0, bool)
    lines = np.flatnonzero(is_line[1:] & ~is_line[:-1])
    unit = np.median(np.diff(lines)) if len(lines) > 3 else 1
    return [round(np.median(columns) / unit) for columns in found if len(columns) > 5]


def clock(picture: bytes, sight: Sight) -> tuple[int, int] | None:
    """The hour (1 to 12) and minute that a round clock shows."""
    pixels = load(picture, sight)
    dark = (pixels[..., 0] if sight.knows_shades else pixels.mean(axis=2)) < 110
    boxes = ndimage.find_objects(ndimage.label(dark)[0])
    if not boxes:
        return None
    down, across = max(boxes, key=lambda box: (box[0].stop - box[0].start) * (box[1].stop - box[1].start))
    y, x = (down.start + down.stop - 1) / 2, (across.start + across.stop - 1) / 2
    radius = (across.stop - across.start) / 2
    soft = ndimage.uniform_filter(dark.astype(float), 3)

    def darkest(turn: NDArray[np.float64], start: float, end: float) -> int:
        """Which of the turns has a hand along it."""
        at = np.linspace(start, end, 12)[:, None] * radius
        rows, columns = y - np.cos(2 * np.pi * turn) * at, x + np.sin(2 * np.pi * turn) * at
        return int(ndimage.map_coordinates(soft, [rows, columns], order=1).mean(axis=0).argmax())

    minute = darkest(np.arange(60) / 60, 0.56, 0.76)
    return darkest((np.arange(12) + minute / 60) / 12, 0.2, 0.46) or 12, minute


def read_line(picture: bytes, sight: Sight, *, line: int, alphabet: str) -> str:
    """The letters of a printed line, counted from the top, each as the most like one of the alphabet."""
    mask = _foreground(load(picture, sight), away=80)
    labels, _ = ndimage.label(ndimage.binary_dilation(mask.any(axis=1), iterations=2))
    lines = [mask[rows] for rows in ndimage.find_objects(labels) if rows[0].stop - rows[0].start > 9]
    if line >= len(lines):
        return ""
    boxes = ndimage.find_objects(ndimage.label(lines[line].any(axis=0))[0])
    return "".join(_letter(lines[line][:, columns], alphabet) for (columns,) in boxes)


def _letter(glyph: Mask, alphabet: str) -> str:
    """By its pixels and by how wide it is for its height."""
    pixels, slope = _normal(glyph)
    return min(_templates(alphabet), key=lambda t: float(np.abs(t[1] - pixels).mean()) + 0.15 * abs(t[2] - slope))[0]


def _normal(glyph: Mask) -> tuple[NDArray[np.float64], float]:
    """A glyph without the ground around it in 16 x 12 px, and how wide it is for its height."""
    image = Image.fromarray(glyph.astype(np.uint8) * 255)
    tight = image.crop(image.getbbox())
    small = tight.resize((12, 16), Image.Resampling.BOX)
    return np.asarray(small, np.float64) / 255, float(np.log(tight.width / tight.height))


@lru_cache
def _templates(alphabet: str) -> list[tuple[str, NDArray[np.float64], float]]:
    """Each letter as it looks in DejaVu Sans."""
    found = []
    for letter in alphabet:
        image = Image.new("L", (60, 60))
        ImageDraw.Draw(image).text((10, 6), letter, font=font("DejaVuSans", 32), fill=255)
        found.append((letter, *_normal(np.asarray(image) > 100)))
    return found
