"""What a VLM is asked about a query: the prompt, the picture as it is sent, and the key of the answer.

The key decides whether something was asked before. It holds all that decides the answer and nothing else: the
endpoint's stable name and model, the messages, the picture as sent, and the generation parameters; never a host, a
port, a time-out or a price. The picture stands in it by the stored file's hash, and, where it is scaled or converted on
the way, by the rule that does it (`PICTURE_RULE`): so no picture is decoded to find out that its answer is known, and a
new version of the imaging library asks nobody again.
"""

import base64
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image

from arms_model.pictures import decode_picture, picture_header, read_bytes
from tasks.common.vlms import Vlm

PICTURE_RULE = 1  # raise it when scaling or encoding gives other pixels on purpose
MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}  # sent as stored
_JPEG_QUALITY = 90


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A query's picture as it is sent.

    Attributes:
        path: the stored file.
        sha256: hash of the stored file.
        media_type: how it is sent.
        size: width and height as sent, px.
        max_side: the longest side it is scaled down to, px; None where the stored bytes are sent.
        max_pixels: a stored picture with more is refused.
    """

    path: Path
    sha256: str
    media_type: str
    size: tuple[int, int]
    max_side: int | None
    max_pixels: int

    def identity(self) -> dict[str, Any]:
        """What stands for the picture in a key."""
        if self.max_side is None:
            return {"sha256": self.sha256}
        return {"sha256": self.sha256, "max_side": self.max_side, "rule": PICTURE_RULE}

    def data_url(self) -> str:
        """The picture as a data URL; reads the file, and scales it where that is due.

        Raises:
            DataError: the file is missing or damaged.
        """
        data = read_bytes(self.path)
        if self.max_side is not None:
            picture = decode_picture(data, name=str(self.path), max_pixels=self.max_pixels)
            size = _scaled_size(picture.size, self.max_side)  # by its upright size: EXIF may have turned it
            scaled = picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
            data = _encoded(scaled, media_type=self.media_type)
        return f"data:{self.media_type};base64,{base64.b64encode(data).decode()}"


def picture_as_sent(path: Path, *, sha256: str, max_side: int | None, max_pixels: int) -> Picture:
    """How a stored picture is sent, from its header alone.

    Args:
        path: the stored file.
        sha256: its hash.
        max_side: the longest side that the endpoint takes, px; None for any.
        max_pixels: a picture with more is refused.

    Raises:
        DataError: the file is missing, empty, no picture, or has too many pixels.
    """
    stored_as, size = picture_header(path, max_pixels=max_pixels)
    limit = max(size) if max_side is None else min(max_side, max(size))
    is_sent_as_stored = limit == max(size) and stored_as in MEDIA_TYPES
    return Picture(
        path=path,
        sha256=sha256,
        media_type=MEDIA_TYPES[stored_as if is_sent_as_stored or stored_as == "JPEG" else "PNG"],
        size=_scaled_size(size, limit),
        max_side=None if is_sent_as_stored else limit,
        max_pixels=max_pixels,
    )


def _scaled_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    width, height = size
    longest = max(size)
    if longest <= max_side:
        return size
    return max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest))


def _encoded(picture: Image.Image, *, media_type: str) -> bytes:
    stream = io.BytesIO()
    if media_type == MEDIA_TYPES["JPEG"]:
        picture.save(stream, "JPEG", quality=_JPEG_QUALITY)
    else:
        picture.save(stream, "PNG")
    return stream.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One question to one VLM.

    Attributes:
        query_id: the query.
        prompt: the user message's text.
        picture: the picture.
        key: the answer's key in the store.
    """

    query_id: str
    prompt: str
    picture: Picture
    key: str


def make_request(vlm: Vlm, *, query_id: str, prompt: str, picture: Picture) -> Request:
    """The request, with its key."""
    endpoint = vlm.endpoint
    assert endpoint is not None, f"{vlm.name} has no endpoint"  # noqa: S101 - checked when params are read
    parts = {
        "endpoint": endpoint.name, "model": endpoint.model, "system": endpoint.system, "prompt": prompt,
        "picture": picture.identity(), "image_detail": endpoint.image_detail,
        "generation": {name: _plain(value) for name, value in _generation(vlm).items()},
    }  # fmt: skip
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return Request(query_id=query_id, prompt=prompt, picture=picture, key=hashlib.sha256(text.encode()).hexdigest())


def render_prompt(template: str, *, question: str, choices: list[str] | None, language: str) -> str:
    """Fill a block's prompt template; braces inside the question stay as they are."""
    options = "\n".join(f"{_letter(position)}. {choice}" for position, choice in enumerate(choices or ()))
    values = {"question": question, "options": options, "language": language}
    return re.sub(r"\{(question|options|language)\}", lambda name: values[name[1]], template).strip()


def _letter(position: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    rounds, rest = divmod(position, len(ascii_uppercase))
    return (_letter(rounds - 1) if rounds else "") + ascii_uppercase[rest]


def message_body(vlm: Vlm, request: Request) -> dict[str, Any]:
    """The arguments of `chat.completions.create`; reads the picture.

    Raises:
        DataError: the picture's file is missing or damaged.
    """
    endpoint = vlm.endpoint
    assert endpoint is not None, f"{vlm.name} has no endpoint"  # noqa: S101
    image_url = {"url": request.picture.data_url()}
    if endpoint.image_detail is not None:
        image_url["detail"] = endpoint.image_detail
    user = [{"type": "image_url", "image_url": image_url}, {"type": "text", "text": request.prompt}]
    system = [{"role": "system", "content": endpoint.system}] if endpoint.system else []
    return {"model": endpoint.model, "messages": [*system, {"role": "user", "content": user}], **_generation(vlm)}


def _plain(value: Any) -> Any:
    """A temperature of 0.0 is one of 0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _generation(vlm: Vlm) -> dict[str, Any]:
    generation = vlm.endpoint.generation if vlm.endpoint else {}
    return {name: value for name, value in generation.items() if value is not None}
