"""Choices and golds as formats write them: golds that are letters, choices that carry their letters with them."""

import re
from collections.abc import Sequence
from typing import Literal

_LETTERED = re.compile(r"\s*\(?([A-Za-z])\s*[.):]\)?\s+(.*)", re.DOTALL)


def answer_type(answer: str, choices: Sequence[str] | None) -> Literal["choice", "free"]:
    """`choice` where the gold names one: by its letter, or by its text where the texts are known."""
    if choices:
        return "choice" if answer in choices or re.fullmatch("[A-Za-z]", answer) else "free"
    return "choice" if re.fullmatch("[A-J]", answer) else "free"


def without_letters(choices: Sequence[str]) -> list[str]:
    """The choices' texts, where all begin with their own letter, as in `A. red`, `(B) green`; else as they are."""
    parts = [_LETTERED.fullmatch(choice) for choice in choices]
    letters = [part[1].upper() if part else "" for part in parts]
    if letters == [chr(ord("A") + place) for place in range(len(choices))]:
        return [part[2].strip() for part in parts if part]
    return list(choices)
