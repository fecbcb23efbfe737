"""Question text to numbers that can be counted on its surface: length, choices, digits, LaTeX, question words.

No weights, no language model: works for any script, costs microseconds, and on recorded outputs alone reaches nearly
what sentence vectors reach. Counts with long tails are log(1 + count). The text is brought to one form first (Unicode
NFKC), so that full-width digits and letters count like plain ones.
"""

import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from arms_model.encoders.identity import identity_of
from arms_model.encoders.protocol import Modality

_VERSION = 1

# Scripts written without spaces between words: each sign counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]|[^\W_]+(?:['’][^\W_]+)*")
_OPTION = re.compile(r"(?m)(?:^[ \t]*\(?[A-Ja-j][.):、]|\([A-J]\))[ \t]*(?=\S)")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

# Per feature: words (English, German, French, Spanish, Russian, Arabic; `_` joins two in a row), and signs of
# scripts without spaces (Chinese, Japanese, Korean, Hindi), which count wherever they stand. Words that mean
# something else in English ("was", "comment") are left out.
_LISTS: dict[str, tuple[str, str]] = {
    "count": (
        "how_many how_much number_of count total wieviel wieviele wie_viel wie_viele combien cuánto cuántos cuántas "
        "сколько كم",
        "多少 几个 いくつ 何個 何本 몇 कितन",
    ),
    "what": ("what quel quelle quels quelles que qué cuál что ما ماذا", "什么 何 무엇 क्या"),
    "which": ("which welche welcher welches lequel laquelle какой какая какое أي", "哪 どの どれ 어느 어떤 कौन"),
    "where": ("where wo où dónde где أين", "哪里 どこ 어디 कहाँ"),
    "who_when": ("who whose when wer wann qui quand quién cuándo кто когда متى", "谁 何时 誰 いつ 누가 언제 कब"),
    "why_how": (
        "why how explain warum wie pourquoi por_qué cómo почему как لماذا كيف",
        "为什么 怎么 如何 なぜ 왜 어떻게 क्यों",
    ),
    "yes_no": ("yes no true false ja nein oui non sí да нет نعم لا", "是否 はい いいえ 예 아니"),
    "comparison": (
        "more less fewer than equal same different larger smaller greater higher lower longer shorter mehr weniger "
        "moins más menos больше меньше أكثر أقل",
        "比 より 보다",
    ),
    "extreme": (
        "most least maximum maximal minimum minimal largest smallest greatest highest lowest longest shortest first "
        "last meiste meisten mayor menor",
        "最 一番 가장 सबसे",
    ),
    "negation": ("not never none except without nicht kein keine pas sans не ليس", "不 没 ない 않 नहीं"),
    "shape": (
        "angle angles triangle triangles circle circles square squares rectangle rectangles polygon polygons line "
        "lines radius area perimeter length degree degrees winkel dreieck cercle ángulo угол круг",
        "三角 角 圆 円 面积 面積 각형",
    ),
    "chart": (
        "graph graphs chart charts plot plots axis axes table tables bar bars legend function functions curve curves "
        "diagram diagrams",
        "表 图 図 グラフ 그래프",
    ),
    "colour": (
        "red blue green yellow orange purple black white gray grey brown pink color colors colored colour colours "
        "coloured",
        "红 蓝 绿 黄 赤 青 緑 색",
    ),
    "task": (
        "if given suppose determine calculate compute find solve estimate evaluate wenn falls si если",
        "如果 求 もし 만약",
    ),
}
_WORDS = {name: frozenset(words.split()) for name, (words, _) in _LISTS.items()}
_SIGNS = {name: tuple(signs.split()) for name, (_, signs) in _LISTS.items()}

NAMES: tuple[str, ...] = (
    "log_characters", "log_words", "log_lines", "log_sentences", "mean_word_length", "distinct_word_share",
    "num_options", "log_option_characters", "option_digit_share",
    "log_numbers", "digit_share", "has_decimal",
    "log_latex_marks", "log_operators", "log_brackets",
    "ends_with_question_mark", "upper_case_share", "other_script_share", "unspaced_script_share",
    *(f"log_{name}_words" for name in _LISTS),
)  # fmt: skip


class SurfaceEncoder:
    """The numbers that `NAMES` lists."""

    modality: Modality = "question"
    width = len(NAMES)
    identity = identity_of("surface", version=_VERSION)

    def prepare(self, item: str) -> NDArray[np.float32]:
        """The text's numbers, (width,) float32."""
        numbers = surface_numbers(item)
        return np.array([numbers[name] for name in NAMES], dtype=np.float32)

    def encode(self, prepared: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """The prepared numbers, (B, width) float32."""
        return np.stack(prepared)


def surface_numbers(text: str) -> dict[str, float]:
    """The numbers of a question text by name.

    Args:
        text: the question with its choices, any script.

    Returns:
        One finite number for each of `NAMES`.
    """
    text = unicodedata.normalize("NFKC", text)
    words = [word.lower() for word in _WORD.findall(text)]
    return (
        _length_numbers(text, words)
        | _option_numbers(text)
        | _sign_numbers(text)
        | _script_numbers(text)
        | _word_numbers(text, words)
    )


def _length_numbers(text: str, words: list[str]) -> dict[str, float]:
    return {
        "log_characters": _log_count(len(text)),
        "log_words": _log_count(len(words)),
        "log_lines": _log_count(sum(bool(line.strip()) for line in text.splitlines())),
        "log_sentences": _log_count(len(re.findall(r"[.!?。؟।]+(?=\s|$)|[。]", text))),
        "mean_word_length": sum(map(len, words)) / max(len(words), 1) / 10,
        "distinct_word_share": len(set(words)) / max(len(words), 1),
    }


def _option_numbers(text: str) -> dict[str, float]:
    starts = list(_OPTION.finditer(text))
    options = text[starts[0].end() :] if starts else ""
    return {
        "num_options": float(min(len(starts), 10)) / 10,
        "log_option_characters": _log_count(len(options) / len(starts)) if starts else 0.0,
        "option_digit_share": _share(options, str.isdecimal),
    }


def _sign_numbers(text: str) -> dict[str, float]:
    return {
        "log_numbers": _log_count(len(_NUMBER.findall(text))),
        "digit_share": _share(text, str.isdecimal),
        "has_decimal": float(bool(re.search(r"\d[.,]\d", text))),
        "log_latex_marks": _log_count(len(re.findall(r"\$|\\[A-Za-z]+", text))),
        "log_operators": _log_count(len(re.findall(r"[+=<>^*/×÷≤≥−]", text))),
        "log_brackets": _log_count(len(re.findall(r"[(\[{]", text))),
        "ends_with_question_mark": float(text.rstrip().endswith(("?", "؟"))),
    }


def _script_numbers(text: str) -> dict[str, float]:
    letters = [sign for sign in text if sign.isalpha()]
    joined = "".join(letters)
    return {
        "upper_case_share": _share(joined, str.isupper),
        "other_script_share": _share(joined, lambda sign: ord(sign) > 0x24F),  # beyond Latin Extended-B
        "unspaced_script_share": _share(joined, lambda sign: bool(_WORD.fullmatch(sign)) and ord(sign) >= 0x0E00),
    }


def _word_numbers(text: str, words: list[str]) -> dict[str, float]:
    spoken = [*words, *map("_".join, itertools.pairwise(words))]
    return {
        f"log_{name}_words": _log_count(sum(map(listed.__contains__, spoken)) + sum(map(text.count, _SIGNS[name])))
        for name, listed in _WORDS.items()
    }


def _share(text: str, is_counted: Callable[[str], bool]) -> float:
    return sum(map(is_counted, text)) / max(len(text), 1)


def _log_count(count: float) -> float:
    return math.log1p(count)
