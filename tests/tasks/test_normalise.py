"""The table of cases of the answer normaliser: each rule, each language, and near misses that must stay wrong.

All cases are made up.
"""

import time

import pytest

from tasks.common.normalise import judge, plain_text, read_choice, statements

SHAPES = ["circle", "square", "triangle", "pentagon", "hexagon"]
LETTERS = ["A", "B", "C", "D", "E"]
TRUTH = ["True", "False"]
SIZES = ["$4 \\mathrm{~cm}$", "$\\frac{3}{4} \\pi$", "$2\\sqrt{3}$", "$45^{\\circ}$", "12.5\\%"]


@pytest.mark.parametrize(
    ("output", "answer", "choices", "predicted"),
    [
        # a letter, bare or wrapped
        ("B", "B", SHAPES, "B"),
        ("b", "B", SHAPES, "B"),
        (" b\n", "b", SHAPES, "B"),
        ("B.", "B", SHAPES, "B"),
        ("(B)", "B", SHAPES, "B"),
        ("[b]", "B", SHAPES, "B"),
        ("**B**", "B", SHAPES, "B"),
        ("$\\text{(B)}$", "B", SHAPES, "B"),
        ("\\boxed{B}", "B", SHAPES, "B"),
        ("\\boxed{\\textbf{(B)}}", "B", SHAPES, "B"),
        ("So it is \\boxed{B", "B", SHAPES, "B"),  # cut off before the brace closed
        # a letter and its text
        ("(D) pentagon", "D", SHAPES, "D"),
        ("d) pentagon", "D", SHAPES, "D"),
        ("D. pentagon", "D", SHAPES, "D"),
        ("D: pentagon", "D", SHAPES, "D"),
        ("\\boxed{\\text{(A)}~4 \\text{ cm}}", "A", SIZES, "A"),
        ("(B) as in (C)", "B", ["as in (A)", "as in (C)", "other"], "B"),
        # a phrase that announces the answer
        ("The answer is B", "B", SHAPES, "B"),
        ("The correct answer is (b).", "B", SHAPES, "B"),
        ("First I thought of C.\nAnswer: B", "B", SHAPES, "B"),
        ("**Answer:** (B) square", "B", SHAPES, "B"),
        ("*Answer*: B", "B", SHAPES, "B"),
        ("The answer is B. The others have no right angle.", "B", SHAPES, "B"),
        ("The answer is A at first sight, yet the final answer is C.", "C", SHAPES, "C"),
        ("The answer is option B", "B", SHAPES, "B"),
        ("I would choose option C here", "C", SHAPES, "C"),
        ("Image D", "D", LETTERS, "D"),
        ("B\n\nIt has four equal sides.", "B", SHAPES, "B"),
        ("Square, as I see it.\n\nIt has four equal sides.", "B", SHAPES, "B"),
        ("<think>Could be C. The answer is C.</think>B", "B", SHAPES, "B"),
        # by the choice's text or value
        ("square", "B", SHAPES, "B"),
        ("A Square.", "B", SHAPES, "B"),
        ("The shape is a triangle.", "C", SHAPES, "C"),
        ("4 cm", "A", SIZES, "A"),
        ("4", "A", SIZES, "A"),
        ("3/4 pi", "B", SIZES, "B"),
        ("2 sqrt(3)", "C", SIZES, "C"),
        ("2√3", "C", SIZES, "C"),
        ("45 degrees", "D", SIZES, "D"),
        ("12.5 percent", "E", SIZES, "E"),
        ("The angle is approximately 45 degrees in 2006.", "B", ["90 degrees", "45 degrees"], "B"),
        ("G", "C", ["E", "F", "G"], "C"),  # no third letter G, but a choice's text
        # other languages
        ("答案是B", "B", SHAPES, "B"),
        ("正确答案:(B)", "B", SHAPES, "B"),
        ("答案应选 C。", "C", SHAPES, "C"),
        ("正解は B", "B", SHAPES, "B"),
        ("정답은 B", "B", SHAPES, "B"),
        ("La respuesta correcta es B.", "B", SHAPES, "B"),
        ("La réponse est (B)", "B", SHAPES, "B"),
        ("Die richtige Antwort ist B.", "B", SHAPES, "B"),
        ("A resposta é B", "B", SHAPES, "B"),
        ("La risposta corretta è B", "B", SHAPES, "B"),
        ("Правильный ответ: B", "B", SHAPES, "B"),
        ("الإجابة الصحيحة هي B", "B", SHAPES, "B"),
        ("सही उत्तर है B", "B", SHAPES, "B"),
        ("Đáp án là B", "B", SHAPES, "B"),
        ("Opción B", "B", SHAPES, "B"),
        ("选项C", "C", SHAPES, "C"),
    ],
)
def test_choice_is_read(output: str, answer: str, choices: list[str], predicted: str) -> None:
    assert judge(output, answer=answer, answer_type="choice", choices=choices) == (predicted, True)


@pytest.mark.parametrize(
    ("output", "choices"),
    [
        ("B or C", SHAPES),
        ("(B) or (C)", SHAPES),
        ("B, C", SHAPES),
        ("A, b, c", LETTERS),
        ("The answer is not B", SHAPES),
        ("It isn't option B.", SHAPES),
        ("A triangle is drawn.", LETTERS),  # an article, no letter
        ("F", SHAPES),  # there is no sixth choice
        ("Bottom", LETTERS),
        ("It is a square or a triangle", SHAPES),
        ("No idea.", SHAPES),
        ("We look for the square first.\nIt may be a square or a circle.", SHAPES),
        ("46 degrees", SIZES),
        ("4 m", SIZES),  # the choice is 4 cm
        ("145 degrees", ["45 degrees", "90 degrees"]),
        ("Around 0.45 of it", ["45", "5", "0.4"]),
        ("To find it, compare the square with the others. The correct answer is", SHAPES),  # cut off
        ("", SHAPES),
        ("   \n", SHAPES),
        ("<image>", LETTERS),
    ],
)
def test_choice_in_doubt_is_no_answer(output: str, choices: list[str]) -> None:
    for letter in "AB":
        assert judge(output, answer=letter, answer_type="choice", choices=choices) == (None, False)


def test_choice_read_but_wrong_is_kept_as_predicted() -> None:
    assert judge("(C) triangle", answer="B", answer_type="choice", choices=SHAPES) == ("C", False)


def test_choice_without_known_texts_is_read_by_its_letter() -> None:
    assert judge("The answer is (b).", answer="B", answer_type="choice", choices=None) == ("B", True)
    assert judge("C", answer="B", answer_type="choice", choices=[]) == ("C", False)
    assert judge("A square", answer="A", answer_type="choice", choices=[]) == (None, False)


def test_choice_letter_wins_over_a_text_of_another_choice() -> None:
    assert judge("(C) square", answer="B", answer_type="choice", choices=SHAPES) == ("C", False)


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        *[(word, "True") for word in ("True", "true.", "**True**", "Yes", "Yes, there is.", "Correct", "Answer: True")],
        *[(word, "False") for word in ("False", "FALSE", "No", "No, it is open.", "Incorrect", "\\boxed{False}")],
        *[(word, "True") for word in ("Sí", "Verdadero", "Oui", "Vrai", "Ja", "Wahr", "Sim", "Sì", "Да", "Верно")],
        *[(word, "False") for word in ("Falso", "Non", "Faux", "Nein", "Falsch", "Não", "Нет", "Неверно")],
        *[(word, "True") for word in ("是", "是的", "对", "正确", "はい", "예", "نعم", "صحيح", "हाँ", "Evet", "Đúng")],
        *[(word, "False") for word in ("否", "不是", "错误", "いいえ", "아니요", "لا", "خطأ", "नहीं", "Hayır", "Không")],
        ("答案:错误", "False"),
        ("True or False? Only the final answer (True, False).\n\nFalse", "False"),
        ("A", "True"),
        ("(b) False", "False"),
    ],
)
def test_yes_or_no_in_every_language(output: str, answer: str) -> None:
    assert judge(output, answer=answer, answer_type="choice", choices=TRUTH) == (answer, True)
    other = TRUTH[1 - TRUTH.index(answer)]
    assert judge(output, answer=other, answer_type="choice", choices=TRUTH) == (answer, False)


def test_yes_or_no_among_longer_choices_is_not_guessed() -> None:
    choices = ["No", "Yes, one", "Yes, two"]
    assert read_choice("Yes, two", choices) == 2
    assert read_choice("Yes", choices) is None
    assert read_choice("Not true", TRUTH) is None


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("7", "7"),
        ("7.0", "7"),
        ("7.", "7"),
        ("-7", "−7"),
        ("$7$", "7"),
        ("\\(7\\)", "7"),
        ("\\boxed{7}", "$\\boxed{7}$"),
        ("The result is $\\boxed{7}$ apples in all.", "7"),
        ("3 + 4 = 7", "7"),
        ("x = 7", "7"),
        ("The answer is: 7", "7"),
        ("The answer is 7. It follows from 3 and 4.", "7"),
        ("The bag holds 7 marbles.", "7"),
        ("7\n\nBecause 3 and 4 are added.", "7"),
        ("We add 3 and 4.\n\n7", "7"),
        # units, degrees, percent, money
        ("7 kg", "7"),
        ("7 apples", "7"),
        ("7", "7 kg"),
        ("7 kilograms", "7 kg"),
        ("7 CM^2", "$7 \\mathrm{~cm}^{2}$"),
        ("7 cm²", "7 square centimeters"),
        ("7 sq. cm", "7 cm^2"),
        ("55°", "55"),
        ("$55^\\circ$", "55 degrees"),
        ("55{degrees}", "55^{\\circ}"),
        ("20%", "20"),
        ("20 %", "0.2"),
        ("0.2", "20\\%"),
        ("\\$1,250", "1250"),
        ("60 km/h", "60"),
        # thousands marks, fractions, roots, powers, ratios
        ("1,234", "1234"),
        ("1 234 567", "1,234,567"),
        ("1'234", "1234"),
        ("1.234.567", "1234567"),
        ("1,234.5", "1234.5"),
        ("1/2", "\\frac{1}{2}"),
        ("0.5", "\\dfrac12"),
        ("½", "0.5"),
        ("1½", "\\frac{3}{2}"),
        ("1 1/2", "1.5"),
        ("$15\\frac{5}{8}$", "15.625"),
        ("-\\frac{24}{25}", "-24/25"),
        ("\\frac{\\sqrt{21}}{5}", "sqrt(21)/5"),
        ("2\\sqrt{3}", "2 sqrt(3)"),
        ("\\sqrt[3]{8}", "2"),
        ("4\\pi - 2\\sqrt{3}", "$4 \\pi-2 \\sqrt{3}$"),
        ("10^2", "100"),
        ("10²", "100"),
        ("1 : 2", "1:2"),
        ("3/6", "1:2"),
        # times
        ("3:40", "3:40"),
        ("03:40", "3:40"),
        ("12:00", "12:00"),
        ("The clock shows 3:40.", "3:40"),
        ("Es ist 3:40 Uhr.", "3:40"),
        ("1/10", "1:10"),  # which may be a ratio
        # other scripts
        ("७", "7"),
        ("١٢٫٥", "12.5"),
        ("答案是7。", "7"),
        ("The answer is 7", "7"),
        ("La respuesta es 7.", "7"),
        # words
        ("Paris.", "paris"),
        ("The answer is Paris. It lies on the Seine.", "Paris"),
        ("\\text{Red Square}", "red square"),
        ("Yes", "yes"),
        ("oui", "Yes"),
        # lists: in brackets the order counts
        ("(3, -4)", "(3,-4)"),
        ("(3.0, -4)", "(3,-4)"),
        ("4, 3", "3, 4"),
        ("red and blue", "blue, red"),
        ("{1; 2; 3}", "3, 2, 1"),
    ],
)
def test_free_answer_is_right(output: str, answer: str) -> None:
    predicted, correct = judge(output, answer=answer, answer_type="free", choices=[])
    assert correct
    assert predicted


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("8", "7"),
        ("-7", "7"),
        ("77", "7"),
        ("7.1", "7"),
        ("7!", "7"),
        ("7x", "7"),
        ("7\\pi", "7"),
        ("7 m", "7 cm"),
        ("7 cm", "7 cm^2"),
        ("7 thousand", "7"),
        ("7 or 8", "7"),
        ("It is not 7.", "7"),
        ("7 8", "56"),
        ("between 6 and 7", "7"),
        ("7 8/9 10", "7"),
        ("20%", "2"),
        ("1.234", "1234"),
        ("12,34", "1234"),
        ("1/2", "2"),
        ("2:1", "1:2"),
        ("2:30", "1:15"),  # as ratios they would be one
        ("3:40 or 4:40", "3:40"),
        ("It is not 3:40.", "3:40"),
        ("\\sqrt{7}", "7"),
        ("1.33", "\\frac{4}{3}"),
        ("seven", "7"),
        ("9^9^9^9", "7"),
        ("1/0", "7"),
        ("(-4, 3)", "(3,-4)"),
        ("(3,4)", "3.4"),
        ("3, 4, 4", "3, 3, 4"),
        ("3", "3, 4"),
        ("red", "blue, red"),
        ("Paris or London", "Paris"),
        ("not yes", "yes"),
        ("correct", "right"),  # a direction, not a verdict
        ("?", "7"),
    ],
)
def test_free_near_miss_stays_wrong(output: str, answer: str) -> None:
    assert not judge(output, answer=answer, answer_type="free", choices=[]).correct


@pytest.mark.parametrize(
    ("output", "answer", "language", "correct"),
    [
        ("3,5", "3.5", "de", True),
        ("3.5", "3,5", "de", True),
        ("1.234", "1234", "de", True),
        ("1.234,5", "1234,5", "es", True),
        ("1,234", "1.234", "fr", False),  # gold groups thousands there, the output has a decimal comma
        ("1,234", "1234", "en", True),
        ("1,234", "1234", "de", False),
        ("0,125", "1/8", "es", True),
        ("3,5", "3.5", "en", False),
        ("1.234,5", "1234.5", "en", True),  # two marks: the later is the decimal one everywhere
    ],
)
def test_decimal_comma_follows_the_language(output: str, answer: str, language: str, correct: bool) -> None:
    assert judge(output, answer=answer, answer_type="free", language=language).correct is correct


@pytest.mark.parametrize(
    ("output", "predicted", "correct"),
    [
        ("b,c", "b,c", True),
        ("b, c", "b,c", True),
        ("C, B", "b,c", True),
        ("(b), (c)", "b,c", True),
        ("(B) and (C)", "b,c", True),
        ("b.\n\nc.", "b,c", True),
        ("The answer is b and c.", "b,c", True),
        ("b", "b", False),
        ("a, b, c", "a,b,c", False),
        ("both", None, False),
        ("b-c-b-c", None, False),
        ("", None, False),
    ],
)
def test_letter_set_ignores_order_and_case(output: str, predicted: str | None, correct: bool) -> None:
    verdict = judge(output, answer="b,c", answer_type="free", choices=["a", "b", "c", "d"])
    assert verdict == (predicted, correct)


@pytest.mark.parametrize("answer_type", ["choice", "free"])
@pytest.mark.parametrize("output", [None, "", " \n\t"])
def test_no_output_is_no_answer_and_wrong(output: str | None, answer_type: str) -> None:
    assert judge(output, answer="B", answer_type=answer_type, choices=SHAPES) == (None, False)
    assert judge(output, answer="7", answer_type="free") == (None, False)


def test_gold_in_a_box_is_read_from_the_box() -> None:
    assert judge("3/4", answer="$\\boxed{\\frac{3}{4}}$", answer_type="free").correct
    assert not judge("3/4", answer="\\boxed{} the answer is:", answer_type="free").correct


def test_time_among_choices_is_not_taken_for_a_ratio() -> None:
    choices = ["2:30", "1:15"]
    assert judge("1:15", answer="B", answer_type="choice", choices=choices) == ("B", True)
    assert judge("It shows 2:30", answer="B", answer_type="choice", choices=choices) == ("A", False)


def test_predicted_time_is_kept_as_a_time() -> None:
    assert judge("It is 03:05.", answer="3:40", answer_type="free").predicted == "3:05"


def test_predicted_number_has_one_form() -> None:
    outputs = ["1,500 grams", "$1500 \\mathrm{~g}$", "The answer is 1500g."]
    assert {judge(output, answer="3", answer_type="free").predicted for output in outputs} == {"1500 g"}


def test_statements_prefer_what_is_announced_last() -> None:
    assert statements("\\boxed{1}, so the answer is 2") == ["2", "2"]
    assert statements("The answer is 1, no: \\boxed{2}") == ["2"]
    assert statements("one, as seen\ntwo\nthree") == ["three", "one"]
    assert statements("a first line that is much too long to be an answer\nthree") == ["three"]
    assert statements("red, blue") == ["red, blue"]
    assert statements("") == []


def test_plain_text_keeps_words_and_drops_marks() -> None:
    assert plain_text("**Bold** and `code`, 3*4, −5") == "Bold and code, 3*4, -5"


def test_hostile_outputs_are_judged_quickly() -> None:
    started = time.perf_counter()
    for output in ("(" * 20_000, "1" * 20_000, "\\frac{" * 5_000, "2^" * 5_000 + "2", "a, " * 20_000, "{" * 50_000):
        assert not judge(output, answer="7", answer_type="free").correct
        assert not judge(output, answer="B", answer_type="choice", choices=SHAPES).correct
    assert time.perf_counter() - started < 10
