"""What the sandbox's questions and programs both call things, in English, German and Russian: `words.json`, typed.

German and Russian change a noun's form with its place in the sentence, so a shape has several: as the subject, several
of them after "how many", and after "left of". A program knows a word by its stem, as those forms share it.
"""

import json
from pathlib import Path
from typing import Any

_WORDS: dict[str, Any] = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
LANGUAGES = ("en", "de", "ru")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 90, 200), "yellow": (240, 205, 40),
    "orange": (250, 130, 20), "purple": (130, 70, 180), "grey": (128, 128, 128),
}  # fmt: skip
NAMES: dict[str, dict[str, str]] = _WORDS["names"]  # by language: how an answer says a key
SHAPES: dict[str, dict[str, list[str]]] = _WORDS["shapes"]  # by language: as the subject, several, after "left of"
SIDES: dict[str, dict[str, list[str]]] = _WORDS["sides"]  # by language: beside another shape, the farthest of all
GENITIVE: dict[str, str] = _WORDS["colour_in_russian_count"]  # "of red colour"
PRINTED_WORDS: dict[str, str] = _WORDS["printed_words"]  # by language
WORDINGS: dict[str, dict[str, list[str]]] = _WORDS["wordings"]  # by task and language


def said(value: bool | int | str, language: str) -> str:
    """An answer as people say it: a truth as yes or no, a colour or shape by its name, all else as it is."""
    if isinstance(value, bool):
        return NAMES[language]["yes" if value else "no"]
    return NAMES[language].get(str(value), str(value))
