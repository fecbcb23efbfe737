"""Rows of unknown origin as typed values: an importer says as a dataclass which fields it needs and of what type.

Fields that it does not name are left alone: publishers add some, and they are none of our business.
"""

import json
from functools import cache
from typing import Any, TypeVar

import pydantic

from arms_model.errors import DataError

T = TypeVar("T")


def typed(row_class: type[T], row: object, where: str) -> T:
    """Build `row_class` from a row as JSON gives it.

    Args:
        row_class: a dataclass.
        row: the row; texts are not taken for numbers, nor numbers for texts.
        where: file and line, for the message.

    Returns:
        An instance of `row_class`.

    Raises:
        DataError: a field is missing or of another type; the text names it and what came.
    """
    key: Any = row_class
    try:
        checked: T = _adapter(key).validate_json(json.dumps(row), strict=True)
    except pydantic.ValidationError as error:
        issues = "; ".join(_in_words(issue) for issue in error.errors())
        raise DataError(f"{where}: {issues}.") from None
    return checked


@cache
def _adapter(row_class: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(row_class)


def _in_words(issue: Any) -> str:
    field = ".".join(str(part) for part in issue["loc"]) or "the row"
    if issue["type"].startswith("missing"):
        return f"field '{field}' is missing"
    return f"field '{field}': {issue['msg'].lower()}, got {str(issue['input'])[:80]!r}"
