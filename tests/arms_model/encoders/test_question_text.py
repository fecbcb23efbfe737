import pytest

from arms_model.encoders.question_text import question_text


@pytest.mark.parametrize(
    ("question", "choices", "expected"),
    [
        ("How many?", None, "How many?"),
        ("How many?", [], "How many?"),
        ("Which is it?\nA. cat\nB. dog", ["cat", "dog"], "Which is it?\nA. cat\nB. dog"),
        ("Which? (A) cat (B) dog", ["cat", "dog"], "Which? (A) cat (B) dog"),
        ("Do they touch? Answer with Yes/No.", ["Yes", "No"], "Do they touch? Answer with Yes/No."),
        ("Which is it?", ["cat", "dog"], "Which is it?\nA. cat\nB. dog"),
        ("Is it a cat?", ["cat", "dog"], "Is it a cat?\nA. cat\nB. dog"),  # one stands there by chance
        ("There are 14 and 2.5", ["4", "2"], "There are 14 and 2.5\nA. 4\nB. 2"),  # not as wholes
        ("Pick $2 \\pi$ or $3$.", ["$2 \\pi$", "$3$"], "Pick $2 \\pi$ or $3$."),
        ("Which figure fits?", ["A", "B", "C"], "Which figure fits?\nChoices: A, B, C"),
        ("Which of (A), (B), (C) fits?", ["A", "B", "C"], "Which of (A), (B), (C) fits?"),
        ("A cat, B or C?", ["A", "B", "C"], "A cat, B or C?\nChoices: A, B, C"),
        ("几个?", ["一个", "两个"], "几个?\nA. 一个\nB. 两个"),
    ],
)
def test_choices_stand_in_the_text_once(question: str, choices: list[str] | None, expected: str) -> None:
    assert question_text(question, choices) == expected


def test_text_with_its_choices_stays_as_it_is() -> None:
    once = question_text("Which is it?", ["cat", "dog"])
    assert question_text(once, ["cat", "dog"]) == once
