import math

import numpy as np
import pytest

from arms_model.encoders.surface import NAMES, SurfaceEncoder, surface_numbers

TEXT = "How many red balls cost $2.50?\nA. 3\nB. 14"


def test_numbers_of_a_text_counted_by_hand() -> None:
    numbers = surface_numbers(TEXT)
    # How many red balls cost 2 50 A 3 B 14: eleven words, all different, 27 signs; 41 signs in all on three lines
    assert numbers["log_characters"] == pytest.approx(math.log1p(41))
    assert numbers["log_words"] == pytest.approx(math.log1p(11))
    assert numbers["log_lines"] == pytest.approx(math.log1p(3))
    assert numbers["mean_word_length"] == pytest.approx(27 / 11 / 10)
    assert numbers["distinct_word_share"] == 1.0
    assert numbers["num_options"] == pytest.approx(0.2)
    assert numbers["log_numbers"] == pytest.approx(math.log1p(3))  # 2.50, 3, 14
    assert numbers["digit_share"] == pytest.approx(6 / 41)
    assert numbers["has_decimal"] == 1.0
    assert numbers["log_latex_marks"] == pytest.approx(math.log1p(1))
    assert numbers["log_count_words"] == pytest.approx(math.log1p(1))  # "how many"
    assert numbers["log_why_how_words"] == pytest.approx(math.log1p(1))  # "how"
    assert numbers["log_colour_words"] == pytest.approx(math.log1p(1))  # "red"
    assert numbers["ends_with_question_mark"] == 0.0
    assert numbers["upper_case_share"] == pytest.approx(3 / 21)  # H, A, B of 21 letters
    assert numbers["other_script_share"] == 0.0


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("有多少个红球？", "log_count_words"),
        ("赤いボールはいくつありますか？", "log_count_words"),
        ("빨간 공이 몇 개입니까?", "log_count_words"),
        ("Сколько красных шаров?", "log_count_words"),
        ("¿Cuántos globos hay?", "log_count_words"),
        ("Wie viele Bälle sind rot?", "log_count_words"),
        ("كم عدد الكرات؟", "log_count_words"),
        ("कितने लाल गोले हैं?", "log_count_words"),
    ],
)
def test_counting_questions_are_known_in_several_languages(text: str, name: str) -> None:
    assert surface_numbers(text)[name] > 0


@pytest.mark.parametrize("text", ["有多少？", "多少?", "كم؟"])
def test_question_marks_of_several_scripts_count(text: str) -> None:
    assert surface_numbers(text)["ends_with_question_mark"] == 1.0


def test_full_width_signs_count_like_plain_ones() -> None:
    assert surface_numbers("Ａ．３\nＢ．１４") == surface_numbers("A.3\nB.14")


def test_scripts_without_spaces_count_signs_as_words() -> None:
    numbers = surface_numbers("红球ab")
    assert numbers["log_words"] == pytest.approx(math.log1p(3))
    assert numbers["unspaced_script_share"] == pytest.approx(2 / 4)
    assert numbers["other_script_share"] == pytest.approx(2 / 4)


@pytest.mark.parametrize("text", ["", " ", "\n", "?", "😀", "\\frac{1}{2}", "a" * 20_000])
def test_any_text_gives_finite_numbers(text: str) -> None:
    numbers = surface_numbers(text)
    assert set(numbers) == set(NAMES)
    assert all(math.isfinite(value) for value in numbers.values())


def test_vectors_hold_the_numbers_in_the_order_of_names() -> None:
    encoder = SurfaceEncoder()
    vectors = encoder.encode([encoder.prepare(TEXT), encoder.prepare("x")])
    assert vectors.shape == (2, encoder.width)
    assert vectors.dtype == np.float32
    assert vectors[0, NAMES.index("num_options")] == np.float32(0.2)
