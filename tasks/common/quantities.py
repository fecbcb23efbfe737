r"""Numbers, units and LaTeX as answers hold them: `$\frac{3}{4}$`, `1,000`, `3,5`, `8 kg`, `55°`, `20 %`, `2\sqrt{3}`.

`unwrap_latex` writes LaTeX as a person would type it, `read_quantity` reads a text that is one number with its unit,
`same_quantity` compares two. Units are compared, never converted (1 m is not 100 cm here); a number written as a word
is a word; an expression is worked out, so that `1/2`, `0.5` and `\frac{1}{2}` are one answer.
"""

import ast
import itertools
import math
import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

_LATEX: list[tuple[str, str]] = [  # applied in this order, each until nothing changes
    (r"\\(?:left|right|displaystyle|,|;|!|:|quad|big|Big)(?![a-z])|\\?\$|\\textdollar|\\[()\[\]]|[€£¥]", ""),
    (r"~|\\ |\\\\", " "),
    (r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname|rm|bf)\s*\{([^{}]*)\}", r" \1 "),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree", " degrees"),
    (r"\\%", "%"),
    (r"\\(?:times|cdot)(?![a-z])", "*"),
    (r"(?:\\pi(?![a-z])|π)", " pi "),
    (r"√\s*(\d+|\([^()]*\))", r"\\sqrt{\1}"),
    (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*\[(\d+)\]\s*\{([^{}]*)\}", r"((\2)^(1/\1))"),
    (r"\\sqrt\s*\{([^{}]*)\}", r" sqrt(\1)"),
    (r"\^\s*\{([^{}]*)\}", r"^(\1)"),
    (r"\\[dt]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"(?<![\w)])(\d+)\s*\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r"(\1+\2/\3)"),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"(?<![\w.)/])(\d+) +(\d+)/(\d+)(?!\d)", r"(\1+\2/\3)"),
]
_RULES = [(re.compile(pattern), replacement) for pattern, replacement in _LATEX]
_COMMA_IS_DECIMAL = re.compile("bg|cs|da|de|el|es|fi|fr|hr|hu|id|it|nl|no|pl|pt|ro|ru|sk|sl|sv|tr|uk|vi")
NUMBER = r"\d(?:[\d.,]|[ '](?=\d{3}(?!\d)))*(?<![.,])|\.\d+"
_TOKEN = re.compile(rf"{NUMBER}|sqrt(?=\s*\()|pi(?![a-z])|[-+*/^():]")
_QUANTITY = re.compile(rf"((?:{_TOKEN.pattern}|\s)+)(.*)", re.DOTALL)
_UNITS = {  # the name that units are compared by, and its other names without the plural's s
    "degree": "deg|degree|grad|grado|grau|度|도", "%": "%|percent|prozent|percento|porcentaje",
    "mm": "mm|millimet(?:er|re)", "cm": "cm|centimet(?:er|re)|zentimeter", "m": "m|met(?:er|re|ro)",
    "km": "km|kilomet(?:er|re)", "in": "in|inch|inche", "ft": "ft|foot|feet", "g": "g|gramm?|gramo",
    "kg": "kg|kilo|kilogramm?", "l": "l|lit(?:er|re|ro)", "ml": "ml|millilit(?:er|re)", "s": "s|sec|second",
    "min": "min|minute", "h": "h|hr|hour",
}  # fmt: skip
_UNIT = re.compile("|".join(f"(?P<u{place}>(?:{names})s?)" for place, names in enumerate(_UNITS.values())))
MULTIPLE = "dozen|hundred|thousand|million|billion|mil|mille|tausend"
_NO_UNIT = re.compile(f"{MULTIPLE}|and|or|to|of|by|times|more|less|y|o|und|oder|et|ou")


class Quantity(NamedTuple):
    """A number and its unit ('' where none is known)."""

    value: float
    unit: str


@lru_cache(maxsize=65536)
def unwrap_latex(text: str) -> str:
    r"""Write LaTeX as a person would type it: `\frac{3}{4}` as `((3)/(4))`, `$5 \mathrm{~cm}$` as `5 cm`."""
    if not re.search(r"[\\$~^{}√π/€£¥]", text):
        return text
    for pattern, replacement in _RULES:
        before = None
        while before != text:
            before, text = text, pattern.sub(replacement, text)
    return re.sub(r"\s+", " ", re.sub(r"[{}]", " ", text)).strip()


@lru_cache(maxsize=65536)
def read_quantity(text: str, language: str = "en") -> Quantity | None:
    r"""The number, with its unit, that `text` consists of.

    Args:
        text: e.g. `1,000`, `$\frac{3}{4}$`, `x = 55°`, `8 kg`; what stands left of the last `=` is left out.
        language: where the comma is its decimal mark, `1,234` is a bit more than one.

    Returns:
        The quantity, or None where `text` is anything else than one number.
    """
    text = re.split(r"=|≈|\\approx", unwrap_latex(text))[-1].strip(" \"'.,;")
    match = _QUANTITY.fullmatch(text)
    if match is None or re.fullmatch(r"\(.*,.*\)", text) or not re.search(r"\d|pi", match[1]):
        return None
    unit, value = _read_unit(match[2]), _evaluate(match[1], language)
    return None if unit is None or value is None else Quantity(value, unit)


def _read_unit(text: str) -> str | None:
    """One name per unit; '' for a word that is no unit (a counted thing); None for what cannot follow a number."""
    text = text.casefold().strip(" ().")
    words = re.findall(r"[^\W\d_]+|%", text)
    if not words:
        return None if text else ""
    square, cubic = {"square", "sq"} & set(words), {"cubic", "cu"} & set(words)
    power = "2" if square else "3" if cubic else found[1] if (found := re.search(r"\(?([23])\)?$", text)) else ""
    known = [
        list(_UNITS)[found.lastindex - 1] for word in words if (found := _UNIT.fullmatch(word)) and found.lastindex
    ]
    if known:
        return "/".join(known) + power
    counted = len(words) <= 3 and len(words[0]) > 1 and not re.search(r"\d|[-+*/=<>]", text)
    return "" if counted and not any(map(_NO_UNIT.fullmatch, words)) else None


def _number(written: str, language: str) -> float:
    """One written number: of two different marks the later is the decimal one; else the language decides.

    Raises:
        ValueError: the marks stand where neither a decimal mark nor thousands marks can stand.
    """
    written = re.sub("[ ']", "", written)
    marks = re.sub(r"\d", "", written)
    if len(set(marks)) == 2:
        decimal = marks[-1]
    elif not _COMMA_IS_DECIMAL.fullmatch(language):
        decimal = "."
    else:  # a single dot there groups thousands in 1.234 and is decimal in 3.5
        decimal = "," if marks != "." or re.fullmatch(r"[1-9]\d{0,2}\.\d{3}", written) else "."
    whole, _, fraction = (written, "", "") if len(marks) > 1 and len(set(marks)) == 1 else written.partition(decimal)
    if not re.fullmatch(r"\d*|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?:\.\d{3})+", whole):
        raise ValueError(f"{written!r} is no number")
    return float(re.sub("[.,]", "", whole) + "." + fraction)


def _evaluate(expression: str, language: str) -> float | None:
    """The value of sums, products, powers, roots and ratios; None where it is not well formed."""
    try:
        parts = [repr(_number(t, language)) if t[0] in ".0123456789" else t for t in _TOKEN.findall(expression)]
        source = "".join(("*" if _is_product(*pair) else " ") + pair[1] for pair in itertools.pairwise(["", *parts]))
        return _walk(ast.parse(source.strip().replace("^", "**").replace(":", "/"), mode="eval").body)
    except (ValueError, SyntaxError, ArithmeticError, TypeError, RecursionError, MemoryError):
        return None


def _is_product(left: str, right: str) -> bool:
    """Two parts side by side that mean a product, as in `2 pi` and `3(4)`; two numbers side by side mean none."""
    return (left[-1:].isdigit() or left in (")", "pi")) and (
        right in ("(", "pi", "sqrt") or (left == ")" and right[0].isdigit())
    )


_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: math.pow,
}  # fmt: skip


def _walk(node: ast.expr) -> float:
    """Evaluate a syntax tree that holds arithmetic only."""
    match node:
        case ast.Constant(value=float(value)):
            return value
        case ast.Name(id="pi"):
            return math.pi
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return -_walk(operand) if isinstance(sign, ast.USub) else _walk(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_walk(left), _walk(right))
        case ast.Call(func=ast.Name(id="sqrt"), args=[operand]):
            return math.sqrt(_walk(operand))
        case _:
            raise ValueError("no arithmetic")


def same_quantity(said: Quantity, gold: Quantity) -> bool:
    """Equal values, and no two different units; a percent sign on one side only may stand for hundredths."""
    if said.unit and gold.unit and said.unit != gold.unit:
        return False
    scales = [1.0]
    if said.unit != gold.unit and "%" in (said.unit, gold.unit):
        scales.append(0.01 if said.unit == "%" else 100.0)
    return any(math.isclose(said.value * scale, gold.value, rel_tol=1e-6, abs_tol=1e-9) for scale in scales)
