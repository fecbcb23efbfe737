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
SHAPES = ("circle", "square", "triangle", "diamond")
SIDES = ("left", "right", "above", "below")
FORMS: dict[str, dict[str, dict[str, str]]] = _WORDS["forms"]  # by a sentence's slot and language: how it says a key
PRINTED_WORDS: dict[str, str] = _WORDS["printed_words"]  # by language
WORDINGS: dict[str, dict[str, list[str]]] = _WORDS["wordings"]  # by task and language


def say(value: bool | int | str, language: str, *, slot: str = "answer") -> str:
    """A value in words: a truth as yes or no, a colour, shape or side in its slot's form, all else as it is."""
    key = str(value) if not isinstance(value, bool) else "yes" if value else "no"
    return FORMS.get(slot, {}).get(language, {}).get(key, key)
