"""Open pictures of unknown origin safely: what cannot be used is refused by name, never guessed.

A picture's size is read from its header before anything is decoded, so a small file that would unpack to gigabytes
costs nothing. Only formats that carry pixels are read: PIL also knows PostScript, which starts another program. A
decoded picture is upright (EXIF orientation applied), opaque (transparency shown on white) and RGB.
"""

import io
import struct
import threading
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from arms_model.errors import DataError

DEFAULT_MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
_OPENING = threading.Lock()


def open_picture(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Read and decode a picture file.

    Args:
        path: the file.
        max_pixels: pictures with more pixels are refused from their header.

    Returns:
        The picture, upright, mode RGB.

    Raises:
        DataError: the file is missing, empty, truncated, no picture, or has too many pixels.
    """
    return decode_picture(read_bytes(path), name=str(path), max_pixels=max_pixels)


def read_bytes(path: Path) -> bytes:
    """A picture file's bytes.

    Raises:
        DataError: the file is missing.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DataError(f"picture {path} is missing; put the file there, or drop the queries that name it.") from None


def decode_picture(data: bytes, *, name: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decode a picture file's bytes.

    Args:
        data: the file's content.
        name: what to call the picture in error texts.
        max_pixels: pictures with more pixels are refused from their header.

    Returns:
        The picture, upright, mode RGB.

    Raises:
        DataError: empty, truncated, no picture, or too many pixels.
    """
    with _opened(io.BytesIO(data), name=name, num_bytes=len(data), max_pixels=max_pixels) as picture:
        try:
            picture.load()
            return _opaque_rgb(ImageOps.exif_transpose(picture))
        except _UNREADABLE as error:
            raise DataError(
                f"picture {name} ({len(data)} bytes) is truncated or damaged ({error}); fetch or write it again."
            ) from None


def check_header(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Check a picture file by its header alone: cheap, but a file cut further on passes.

    Args:
        path: the file.
        max_pixels: pictures with more pixels are refused.

    Returns:
        Width and height as stored, px.

    Raises:
        DataError: the file is missing, empty, no picture, or has too many pixels.
    """
    return picture_header(path, max_pixels=max_pixels)[1]


def picture_header(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[str, tuple[int, int]]:
    """What a picture file's header says; else like `check_header`.

    Returns:
        The format, one of `FORMATS`; width and height as stored, px.
    """
    try:
        num_bytes = path.stat().st_size
        with (
            path.open("rb") as handle,
            _opened(handle, name=str(path), num_bytes=num_bytes, max_pixels=max_pixels) as picture,
        ):
            return str(picture.format), picture.size
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DataError(f"picture {path} is missing; put the file there, or drop the queries that name it.") from None


def _opened(stream: BinaryIO, *, name: str, num_bytes: int, max_pixels: int) -> Image.Image:
    """The picture with its header read and checked, nothing decoded."""
    if not num_bytes:
        raise DataError(f"picture {name} is empty (0 bytes); fetch or write it again.")
    try:
        with _OPENING:  # PIL's own limit is one global number: ours takes its place while a header is read
            pil_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = Image.open(stream, formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = pil_limit
    except _UNREADABLE:
        raise DataError(
            f"picture {name} ({num_bytes} bytes) is no picture that can be read; expected {', '.join(FORMATS)}. "
            "Convert it."
        ) from None
    width, height = picture.size
    if width * height > max_pixels:
        picture.close()
        raise DataError(
            f"picture {name} has {width} x {height} px ({width * height:,}), at most {max_pixels:,} are allowed; "
            "scale it down, or raise max_pixels."
        )
    return picture


def _opaque_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits a pixel and more: PIL would cut at 255
        values = np.asarray(picture, dtype=np.float64)
        top = 255.0 if values.max(initial=0) <= 255 else 65535.0
        return Image.fromarray(np.clip(values * (255 / top), 0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")
