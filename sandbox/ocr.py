"""Printed text by rapidocr, an OCR package that ships its models: Latin letters with umlauts, digits, no Cyrillic.

The text of a picture is kept by its hash in `.arms/sandbox/ocr.sqlite`, so that a second run reads none again.
"""

import hashlib
import json
import sqlite3
from contextlib import closing
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from sandbox.eyes import Sight, load

STORE = Path(".arms/sandbox/ocr.sqlite")
_ONE_AT_A_TIME = Lock()
Token = tuple[str, float, float]  # text, and its middle across and down, px


@lru_cache(maxsize=256)
def read_text(picture: bytes) -> list[Token]:
    """What is printed in a picture, from the top left on.

    Raises:
        ValueError: not a picture that can be read.
    """
    key = f"{version('rapidocr')}/{hashlib.sha256(picture).hexdigest()}"
    STORE.parent.mkdir(parents=True, exist_ok=True)
    with _ONE_AT_A_TIME, closing(sqlite3.connect(STORE, timeout=30)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS texts (key TEXT PRIMARY KEY, tokens TEXT NOT NULL)")
        kept = connection.execute("SELECT tokens FROM texts WHERE key = ?", (key,)).fetchone()
        if kept is None:
            kept = (json.dumps(_read(picture)),)
            connection.execute("INSERT OR REPLACE INTO texts VALUES (?, ?)", (key, *kept))
    return [(text, x, y) for text, x, y in json.loads(kept[0])]


def _read(picture: bytes) -> list[Token]:
    image = Image.fromarray(load(picture, Sight()))
    image = image.resize((image.width * 2, image.height * 2))  # small letters are found better
    result = _engine()(np.asarray(image)[..., ::-1], use_det=True, use_cls=False, use_rec=True)
    if result.txts is None:
        return []
    middles = [box.mean(axis=0) / 2 for box in result.boxes]
    return [(text, float(x), float(y)) for text, (x, y) in zip(result.txts, middles, strict=True)]


@cache
def _engine() -> Any:
    from rapidocr import RapidOCR  # here: it loads its models, half a second that other programs need not wait

    one_thread = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    return RapidOCR(
        params=one_thread | {"Global.log_level": "error", "Det.limit_side_len": 640, "Det.limit_type": "max"}
    )
