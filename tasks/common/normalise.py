r"""From a VLM's raw output to a right or wrong: read the answer out of it and compare it with the gold answer.

In the order of this file:

1. `plain_text`   one script for digits, one sign for minus, no Markdown, no hidden reasoning.
2. `statements`   the part that states the answer: `\boxed{...}`, what follows "the answer is", else a line.
3. `read_choice`  a choice's letter, a yes or no, or a choice's own text; `read_letters` a set such as `b,c`.
4. `judge`        all of it for one output; numbers, units and LaTeX are read by `tasks.common.quantities`.

Every rule is about a way of writing, none about a question or a VLM; tests/tasks/test_normalise.py has the cases. In
doubt nothing is read: two letters or a negated letter are no answer. The gold answer never decides what is read, only
whether it is read as a number, as letters or as words. Nothing here knows files or tables.
"""

import re
import string
import unicodedata
from collections.abc import Sequence, Set
from functools import lru_cache
from typing import NamedTuple

from tasks.common.quantities import MULTIPLE, NUMBER, read_quantity, same_quantity, unwrap_latex

# --- 1. One way of writing --------------------------------------------------------------------------------------------

_SUPERSCRIPTS = {ord(mark): f"^{digit}" for mark, digit in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)}
_SIGNS = str.maketrans({"−": "-", "–": "-", "⁄": "/", "∕": "/", "×": "*", "·": "*", "⋅": "*", "÷": "/", "’": "'"})
_REASONING = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)


def plain_text(text: str) -> str:
    """Bring `text` to ASCII digits and signs, without Markdown marks and without a reasoning model's thoughts."""
    text = re.sub(r"([½¼¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", r" \1", _REASONING.sub("", text).translate(_SUPERSCRIPTS))
    text = unicodedata.normalize("NFKC", text.replace("°", " degrees ").replace("º", " degrees ")).translate(_SIGNS)
    if not text.isascii():
        text = "".join(str(unicodedata.decimal(mark)) if mark.isdecimal() else mark for mark in text)
        text = text.replace("٫", ".").replace("٬", ",").replace("٪", "%").replace("،", ",").replace("。", ". ")
    return re.sub(r"\*\*|__|`|^#+\s|(?<!\S)\*(?=\S)|(?<=\S)\*(?=:|\s|$)", "", text, flags=re.MULTILINE).strip()


# --- 2. Where the answer stands ---------------------------------------------------------------------------------------

_ANSWER = (
    "answer|solution|respuesta|solución|resposta|réponse|antwort|lösung|risposta|antwoord|svar|ответ|odpowiedź|cevap|"
    "jawaban|đáp án|答案|答え|正解|정답|답|الإجابة|الجواب|उत्तर"
)
_QUALIFIER = "correct|final|correcta|correta|correcte|finale|corretta|richtige|الصحيحة|الصحيح|النهائية"
_LINK = r"(?:is|es|é|est|ist|lautet|è|är|это|to|là|adalah|هي|هو|है)(?!\w)|应该是|是|为|為|应选|选|は|은|는"
_PHRASE = re.compile(rf"(?:{_ANSWER})(?:\s+(?:{_QUALIFIER}))?\s*(?:(?:{_LINK})\s*[:=]?|[:=])", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SENTENCE_END = re.compile(r"(?:(?<=\w\w\w)|(?<=\d))[.!?](?=\s|$)")

_CLAUSE_END = re.compile(r"[,.;:!?](?=\s|$)")
_OPENING_LENGTH = 40  # characters; a longer one is reasoning


def statements(text: str) -> list[str]:
    r"""Parts of `text` that may state the answer, the most likely first.

    Args:
        text: from `plain_text`.

    Returns:
        What the last `\boxed{...}` or answer phrase says, whichever comes later; without either the last line, then a
        short opening of the first, for outputs that answer and then explain.
    """
    box, phrase = _last(_BOX, text), _last(_PHRASE, text)
    if box and (not phrase or box.start() > phrase.start()):
        return [_inside_braces(text[box.end() :])]
    if phrase:  # nothing after it: the output was cut off before its answer
        line = text[phrase.end() :].strip().partition("\n")[0]
        return [line, _SENTENCE_END.split(line)[0]] if line else []
    first, *others = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    opening = _CLAUSE_END.split(first)[0]
    if others and len(opening) <= _OPENING_LENGTH:
        return [others[-1], opening]
    return [others[-1] if others else first] if first else []


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return max(pattern.finditer(text), key=lambda match: match.start(), default=None)


def _inside_braces(text: str) -> str:
    """`text` up to the brace that closes the one before it; all of it where an output was cut off."""
    depth = 1
    for position, mark in enumerate(text):
        depth += (mark == "{") - (mark == "}")
        if depth == 0:
            return text[:position]
    return text


# --- 3. Choices -------------------------------------------------------------------------------------------------------

_TRUE = re.compile(
    "true|yes|correct|sí|si|verdadero|cierto|sim|verdadeiro|oui|vrai|ja|wahr|richtig|sì|vero|да|верно|правда|tak|"
    "prawda|evet|doğru|ya|benar|có|đúng|是|是的|对|對|正确|正確|はい|正しい|예|네|참|نعم|صحيح|صحيحة|हाँ|सही"
)
_FALSE = re.compile(
    "false|no|incorrect|wrong|falso|não|nao|non|faux|nein|falsch|nee|onwaar|nej|нет|неверно|ложь|nie|fałsz|hayır|"
    "yanlış|tidak|salah|không|sai|否|不|不是|不对|不對|错|错误|錯誤|いいえ|正しくない|아니요|아니오|거짓|لا|خطأ|خاطئ|नहीं|गलत"
)
_NEGATION = re.compile(r"\b(?:not|neither|cannot|nicht|nein|no es|n't|не)\b|n't\b|不是", re.IGNORECASE)
_LEADING_LETTER = re.compile(
    r"(?:[\(\[]\s*([A-Za-z])\s*[\)\]][.:]?|([A-Za-z])\s*(?:[\):、]|\.(?!\d)))\s*(.*)", re.DOTALL
)
_NAMED_LETTER = re.compile(
    "(?:option|choice|picture|figure|image|opción|opção|choix|opzione|вариант|bild|选项|選項|選択肢|الخيار|विकल्प)"
    r"\s*[\(\[]?([A-Z])(?![\w'])",
    re.IGNORECASE,
)
_A_LETTER = re.compile("[A-Za-z]")
_BRACKETED_LETTER = re.compile(r"[\(\[]([A-Za-z])[\)\]]")


def yes_or_no(text: str) -> bool | None:
    """True or False where `text` is, or begins with, such a word in one of the known languages; else None."""
    word = re.split(r"[\s.,;:!?()\-]", text.strip(" \"'(").casefold(), maxsplit=1)[0]
    return True if _TRUE.fullmatch(word) else False if _FALSE.fullmatch(word) else None


def read_choice(statement: str, choices: Sequence[str], language: str = "en") -> int | None:
    """The place of the choice that `statement` names.

    Args:
        statement: one of `statements`.
        choices: the choices' texts, in the order of their letters.
        language: the question's, for the decimal mark in the choices' texts.

    Returns:
        An index into `choices`, or None where none, or more than one, is named.
    """
    statement = unwrap_latex(statement).strip(" \"'.")
    if (verdict := yes_or_no(statement)) is not None:
        same = [place for place, choice in enumerate(choices) if yes_or_no(choice) is verdict]
        if len(same) == 1 and len(choices[same[0]].split()) == 1:
            return same[0]
    if leading := _LEADING_LETTER.fullmatch(statement):
        place = _place(leading[1] or leading[2], choices)
        others = {_place(letter, choices) for letter in _BRACKETED_LETTER.findall(leading[3])} - {place}
        if place is not None and (not others or same_text(leading[3], unwrap_latex(choices[place]))):
            return place
    letters = read_letters(statement) or frozenset()
    if len(letters) == 1 and (place := _place(min(letters), choices)) is not None:
        return place
    alike = [place for place, choice in enumerate(choices) if same_answer(statement, choice, language)]
    if alike or len(letters) > 1 or _NEGATION.search(statement):
        return alike[0] if alike else None
    named = _NAMED_LETTER.findall(statement) + _BRACKETED_LETTER.findall(statement)
    return _only({_place(letter, choices) for letter in named})


def mentioned_choice(sentence: str, choices: Sequence[str]) -> int | None:
    """The place of the only choice whose text stands in a sentence as words of its own, or None.

    A text of one letter must be a capital and no article: "A triangle" does not mention choice A.
    """
    sentence = unwrap_latex(sentence)
    if _NEGATION.search(sentence) or len(read_letters(sentence) or ()) > 1:
        return None
    found = set()
    for place, choice in enumerate(map(unwrap_latex, choices)):
        after, flags = ("(?! [a-z])", re.NOFLAG) if len(choice) == 1 else ("", re.IGNORECASE)
        if re.search(rf"(?<![\w.\-]){re.escape(choice)}(?!\w|\.\d){after}", sentence, flags):
            found.add(place)
    return _only(found)


def _only(places: Set[int | None]) -> int | None:
    return next(iter(places)) if len(places) == 1 else None


def _place(letter: str, choices: Sequence[str]) -> int | None:
    place = ord(letter.upper()) - ord("A")
    return place if place < len(choices) else None


def read_letters(statement: str) -> frozenset[str] | None:
    """The set of letters in an answer such as `b,c` or `(A) and (D)`; None where anything else stands there."""
    tokens = [token for token in re.split(r"[\s,;.&()\[\]]+", unwrap_latex(statement).casefold()) if token]
    letters = frozenset(tokens) - {"and", "und", "y", "et"} or frozenset(tokens)
    return letters if letters and all(re.fullmatch("[a-z]", letter) for letter in letters) else None


# --- 4. Comparing -----------------------------------------------------------------------------------------------------


class Judgement(NamedTuple):
    """What was read out of an output, and whether it is the gold answer.

    `predicted` is the choice's letter (its text where the gold is a text such as True), a number with its unit, letters
    such as `b,c`, or words; None where no answer could be read, and that is wrong.
    """

    predicted: str | None
    correct: bool


def judge(
    output: str | None, *, answer: str, answer_type: str, choices: Sequence[str] | None = None, language: str = "en"
) -> Judgement:
    """Read the answer out of a raw output and compare it with the gold.

    Args:
        output: what the VLM wrote; None and nothing but blanks are no answer.
        answer: the gold: a letter or a choice's text, a number, letters such as `b,c`, or words.
        answer_type: 'choice' or 'free'.
        choices: the choices' texts in the order of their letters, where they are known; for 'free' they mark a gold
            such as `b,c` as letters.
        language: the question's, as ISO 639-1.

    Returns:
        The answer read and the verdict.
    """
    said = statements(plain_text(output or ""))
    choices = [plain_text(choice) for choice in choices or ()]
    gold = plain_text(answer)
    if box := _last(_BOX, gold):
        gold = _inside_braces(gold[box.end() :])
    if answer_type == "choice" and (choices or _A_LETTER.fullmatch(gold)):
        return _judge_choice(said, gold, choices or list(string.ascii_uppercase), language)
    if choices and (letters := read_letters(gold)) and len(letters) == len(re.findall("[a-z]", gold.casefold())):
        read = next(filter(None, map(read_letters, [plain_text(output or ""), *said])), None)
        return Judgement(",".join(sorted(read)) if read else None, read == letters)
    return _judge_free(said, gold, language)


def _judge_choice(said: list[str], gold: str, choices: list[str], language: str) -> Judgement:
    is_letter = _A_LETTER.fullmatch(gold) and _place(gold, choices) is not None
    right = _place(gold, choices) if is_letter else read_choice(gold, choices, language)
    place = next((place for text in said if (place := read_choice(text, choices, language)) is not None), None)
    if place is None and said:  # not from the first of many lines, which may weigh what the last one drops
        place = mentioned_choice(said[0], choices)
    if place is None:
        return Judgement(None, False)
    return Judgement(chr(ord("A") + place) if is_letter else choices[place], place == right)


def _judge_free(said: list[str], gold: str, language: str) -> Judgement:
    """A time or number where the gold is one; else lists, yes or no, and words."""
    if not said:
        return Judgement(None, False)
    if read_time(gold) and (time := next(filter(None, map(_only_time, said)), None)):
        return Judgement(time, same_answer(time, gold, language))
    if read_quantity(gold, language):
        found = [text for text in said if read_quantity(text, language)] or [n for n in map(_only_number, said) if n]
        quantity = read_quantity(found[0], language) if found else None
        if quantity:
            return Judgement(f"{quantity.value:.12g} {quantity.unit}".strip(), same_answer(found[0], gold, language))
    words = min(said, key=len)
    return Judgement(unwrap_latex(words)[:200] or None, same_answer(words, gold, language))


def read_time(text: str) -> str | None:
    """A time such as `3:05`, without a leading zero, where `text` is nothing else; `3:5` is a ratio."""
    match = re.fullmatch(r"0?(\d|1\d|2[0-4]):([0-5]\d)(?: ?(?:uhr|h|o'clock))?", text.strip(" \"'.,;").casefold())
    return f"{match[1]}:{match[2]}" if match else None


def _only_time(sentence: str) -> str | None:
    """The time in a sentence that holds one only."""
    times = re.findall(r"(?<![\w:.])\d{1,2}:\d{2}(?![\w:])", sentence)
    return read_time(times[0]) if len(times) == 1 and not _NEGATION.search(sentence) else None


def _only_number(sentence: str) -> str | None:
    """The number in a sentence that holds one only and denies nothing."""
    numbers = re.findall(
        rf"(?<![\w.])-?(?:{NUMBER})(?:/\d+)?(?![\w!^*/+(]|\s*(?:{MULTIPLE})\b)", unwrap_latex(sentence)
    )
    return numbers[0] if len(numbers) == 1 and not _NEGATION.search(sentence) else None


@lru_cache(maxsize=65536)
def same_answer(said: str, gold: str, language: str = "en") -> bool:
    """Whether two texts are one answer: the same words, verdict, quantity or list.

    A list in round brackets has an order; `b, c`, `{b; c}` and `b and c` have none.
    """
    if same_text(said, gold):
        return True
    if (time := read_time(gold)) and (other_time := read_time(said)):  # as ratios 1:15 and 2:30 would be one
        return time == other_time
    if (quantity := read_quantity(gold, language)) is not None:
        other = read_quantity(said, language)
        return other is not None and same_quantity(other, quantity)
    if yes_or_no(gold) is not None and len(gold.split()) == 1:
        return yes_or_no(said) is yes_or_no(gold)
    parts, others = _parts(gold), _parts(said)
    if len(parts) < 2 or len(parts) != len(others):
        return False
    if unwrap_latex(gold).startswith("("):
        return all(same_answer(a, b, language) for a, b in zip(others, parts, strict=True))
    for part in parts:  # each part of the gold takes away one that is the same
        same = next((other for other in others if same_answer(other, part, language)), None)
        if same is None:
            return False
        others.remove(same)
    return True


def same_text(said: str, gold: str) -> bool:
    """Whether two texts are the same but for case, blanks, LaTeX wrappers and outer punctuation."""
    return _bare(said) == _bare(gold) != ""


@lru_cache(maxsize=65536)
def _bare(text: str) -> str:
    return re.sub(r"\s", "", unwrap_latex(text).casefold()).strip("\"'.,;:")


def _parts(text: str) -> list[str]:
    return [part for part in re.split(r"\s*[,;]\s*|\s+(?:and|und|y|et)\s+", unwrap_latex(text).strip("()[]")) if part]
