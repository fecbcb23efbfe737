"""The text that encoders see of a question: the one place that decides how its choices are included.

The pipeline and the serving gateway must give an encoder the same text for the same question, so both call this.
"""

import re
from collections.abc import Sequence


def question_text(question: str, choices: Sequence[str] | None) -> str:
    """The question with its choices, each once.

    Most recorded questions already hold their choices ("A. 4", "(A) 4", "Yes/No"); they are left as they are. Where a
    choice is missing from the text, all are added as lines `A. ...`. Where the choices are only letters, their texts
    being part of the picture, one line `Choices: A, B, C` is added, unless the text already lists the letters: it
    tells the encoder that this is a question with choices, and how many.

    Args:
        question: the question's own text.
        choices: the choices' texts in order; None or empty for a free answer.

    Returns:
        The text to encode.
    """
    choices = [choice.strip() for choice in choices or ()]
    if not choices:
        return question
    letters = [chr(ord("A") + position) for position in range(len(choices))]
    if choices == letters:
        if all(re.search(rf"(?<!\w){letter}[.):]", question) for letter in letters):
            return question
        return f"{question}\nChoices: {', '.join(letters)}"
    if all(_stands_in(choice, question) for choice in choices):
        return question
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))])


def _stands_in(choice: str, question: str) -> bool:
    """Whether `choice` stands in the text as a whole: '4' does not stand in '14' nor in '4.5'."""
    return bool(re.search(rf"(?<![\w.]){re.escape(choice)}(?!\w|\.\d)", question))
