"""Rows of unknown origin as typed values: an importer says as a dataclass which fields it needs and of what type.

Fields that it does not name are left alone: publishers add some, and they are none of our business.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
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
    if isinstance(row, dict):
        row = {field.name: row[field.name] for field in fields(key) if field.name in row}
    try:
        checked: T = _adapter(key).validate_json(json.dumps(row), strict=True)
    except (TypeError, RecursionError) as error:  # a parquet table can hold dates and bytes
        raise DataError(f"{where}: {error}; expected texts, numbers, lists and objects.") from None
    except pydantic.ValidationError as error:
        issues = "; ".join(_in_words(issue) for issue in error.errors())
        raise DataError(f"{where}: {issues}.") from None
    return checked


def typed_rows(
    row_class: type[T], rows: Iterable[tuple[object, object]], where: str, *, fault: Callable[[str], None]
) -> Iterator[tuple[Any, T]]:
    """Build `row_class` from each row; one that does not fit goes to `fault` and is passed over.

    Args:
        row_class: a dataclass.
        rows: the rows with their number or name.
        where: file and what its rows are called, for the message, as in `test.jsonl, line`.
        fault: takes the message.

    Yields:
        The number or name of the row, and an instance of `row_class`.
    """
    for number, row in rows:
        try:
            built = typed(row_class, row, f"{where} {number}")
        except DataError as error:
            fault(str(error))
        else:
            yield number, built


@cache
def _adapter(row_class: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(row_class)


def _in_words(issue: Any) -> str:
    field = ".".join(str(part) for part in issue["loc"]) or "the row"
    if issue["type"].startswith("missing"):
        return f"field '{field}' is missing"
    return f"field '{field}': {issue['msg'].lower()}, got {str(issue['input'])[:80]!r}"
