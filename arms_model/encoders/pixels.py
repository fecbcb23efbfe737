"""Picture to numbers that can be read off its pixels: size, brightness, colours, edges, white, and a thumbnail.

No weights. The numbers are taken from a copy of at most 256 px, so that they hardly depend on the picture's resolution;
its size is that of the original. Source of colourfulness: Hasler and Süsstrunk, "Measuring colourfulness in natural
images", 2003, equation for M^(3).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arms_model.encoders.identity import identity_of
from arms_model.encoders.protocol import Modality

_VERSION = 1
_SIDE = 256
_THUMBNAIL = 12

NAMES: tuple[str, ...] = (
    "log_width", "log_height", "log_aspect",
    "red_mean", "green_mean", "blue_mean", "grey_mean", "grey_deviation", "saturation_mean", "colourfulness",
    "white_share", "black_share", "grey_pixel_share", "log_colours",
    "edge_mean", "strong_edge_share", "horizontal_edge_share", "entropy",
    "left_ink", "right_ink", "top_ink", "bottom_ink",
    *(f"thumbnail_{row}_{column}" for row in range(_THUMBNAIL) for column in range(_THUMBNAIL)),
)  # fmt: skip


class PixelsEncoder:
    """The numbers that `NAMES` lists."""

    modality: Modality = "picture"
    width = len(NAMES)
    identity = identity_of("pixels", version=_VERSION)

    def prepare(self, item: Image.Image) -> NDArray[np.float32]:
        """The picture's numbers, (width,) float32."""
        numbers = pixel_numbers(item)
        return np.array([numbers[name] for name in NAMES], dtype=np.float32)

    def encode(self, prepared: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """The prepared numbers, (B, width) float32."""
        return np.stack(prepared)


def pixel_numbers(picture: Image.Image) -> dict[str, float]:
    """The numbers of a picture by name.

    Args:
        picture: any size, mode RGB.

    Returns:
        One finite number for each of `NAMES`; shares and means lie in [0, 1].
    """
    width, height = picture.size
    scale = min(1.0, _SIDE / max(width, height))
    small = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX)
    pixels: NDArray[np.float32] = np.asarray(small, dtype=np.float32) / np.float32(255)  # (height, width, 3)
    grey = np.asarray(small.convert("L"), dtype=np.float32) / np.float32(255)  # (height, width)
    size = {"log_width": math.log(width), "log_height": math.log(height), "log_aspect": math.log(width / height)}
    return size | _colours(pixels, grey) | _edges(grey) | _ink(grey) | _thumbnail(small)


def _colours(pixels: NDArray[np.float32], grey: NDArray[np.float32]) -> dict[str, float]:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    brightest, darkest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    spread = brightest - darkest
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    levels = (pixels * 15.999).astype(np.int32)
    colours = 256 * levels[..., 0] + 16 * levels[..., 1] + levels[..., 2]
    return {
        "red_mean": red.mean(),
        "green_mean": green.mean(),
        "blue_mean": blue.mean(),
        "grey_mean": grey.mean(),
        "grey_deviation": grey.std(),
        "saturation_mean": spread.mean(),
        "colourfulness": math.hypot(red_green.std(), yellow_blue.std())
        + 0.3 * math.hypot(red_green.mean(), yellow_blue.mean()),
        "white_share": (darkest > 0.95).mean(),
        "black_share": (brightest < 0.1).mean(),
        "grey_pixel_share": (spread < 0.05).mean(),
        "log_colours": math.log(np.count_nonzero(np.bincount(colours.ravel()))),
    }


def _edges(grey: NDArray[np.float32]) -> dict[str, float]:
    across = np.abs(np.diff(grey, axis=1)) if grey.shape[1] > 1 else np.zeros((1, 1))
    down = np.abs(np.diff(grey, axis=0)) if grey.shape[0] > 1 else np.zeros((1, 1))
    histogram = np.bincount((grey * 31.999).astype(np.int32).ravel(), minlength=32) / grey.size
    filled = histogram[histogram > 0]
    return {
        "edge_mean": (across.mean() + down.mean()) / 2,
        "strong_edge_share": ((across > 0.2).mean() + (down > 0.2).mean()) / 2,
        "horizontal_edge_share": down.sum() / max(across.sum() + down.sum(), 1e-9),
        "entropy": max(0.0, -float((filled * np.log2(filled)).sum()) / 5),
    }


def _ink(grey: NDArray[np.float32]) -> dict[str, float]:
    """How dark each half is: where on the page the drawing stands."""
    rows, columns = grey.shape
    ink = 1 - grey
    return {
        "left_ink": ink[:, : (columns + 1) // 2].mean(),
        "right_ink": ink[:, columns // 2 :].mean(),
        "top_ink": ink[: (rows + 1) // 2].mean(),
        "bottom_ink": ink[rows // 2 :].mean(),
    }


def _thumbnail(picture: Image.Image) -> dict[str, float]:
    small = (
        np.asarray(picture.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), dtype=np.float64) / 255
    )
    return {
        f"thumbnail_{row}_{column}": small[row, column] for row in range(_THUMBNAIL) for column in range(_THUMBNAIL)
    }
