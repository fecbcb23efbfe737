"""Values that formats write inside a text: pictures as base64, lists as JSON or Python has them."""

import ast
import base64
import binascii
import json
import re

from arms_model.errors import DataError

_DATA_URL = re.compile(r"data:[\w/+.-]*;base64,", re.IGNORECASE)


def picture_bytes(text: str) -> bytes:
    """A picture file's bytes from base64, with or without a data URL's beginning.

    Raises:
        DataError: it is no whole base64.
    """
    text = _DATA_URL.sub("", text, count=1)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"the picture is no whole base64 ({error}; it begins with {text[:20]!r})") from None


def texts(cell: object) -> list[str]:
    """The texts in a cell: those of a list of texts, also of one written out as text; else the cell as one text."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        for read in (json.loads, ast.literal_eval):  # the second reads constants only and runs nothing
            try:
                value = read(cell.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return value
    if isinstance(cell, list):
        return [str(item) for item in cell]
    return [] if cell is None or cell == "" else [str(cell)]
