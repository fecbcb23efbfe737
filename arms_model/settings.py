"""From a plain mapping (a params.yaml section, a config.json) to the frozen dataclass that a class is built from.

Each settings dataclass stands beside the class it builds and checks its own values in `__post_init__` by raising
ValueError. Here the mapping is held against the dataclass: unknown keys are refused by their path, with the nearest
right one; values of a wrong type are refused by their path. pydantic does the type checks.
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from arms_model.errors import ConfigError

T = TypeVar("T")


def parse(settings_class: type[T], values: Any, path: str) -> T:
    """Build `settings_class` from `values`.

    Args:
        settings_class: a dataclass; fields may be dataclasses, or lists and dicts of them.
        values: the mapping read from YAML or JSON.
        path: where `values` stands, e.g. `train_base.network`; used in error texts only.

    Returns:
        An instance of `settings_class`.

    Raises:
        ConfigError: an unknown or missing key, a value of a wrong type, or one that the dataclass refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(values).__name__} ({values!r}).")
    _refuse_unknown_keys(settings_class, values, path)
    try:
        # Strict, so that "7" is no number and true no 1; by way of JSON, where a list is what a tuple is written as.
        return pydantic.TypeAdapter(settings_class).validate_json(json.dumps(values, default=str), strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError("\n".join(_one_line(issue, path) for issue in error.errors())) from None


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one, or all of them where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known are: {', '.join(known)}."


def _refuse_unknown_keys(annotation: Any, value: Any, path: str) -> None:
    """Walk `value` beside the type it should have and refuse the first key no dataclass on the way knows."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type) and isinstance(value, Mapping):
        hints = typing.get_type_hints(annotation)
        for key, inner in value.items():
            if key not in hints:
                raise ConfigError(f"{path}.{key}: unknown key; {nearest(str(key), hints)}")
            _refuse_unknown_keys(hints[key], inner, f"{path}.{key}")
        return
    arguments = [a for a in typing.get_args(annotation) if a is not type(None)]
    if isinstance(value, Mapping) and typing.get_origin(annotation) in (dict, Mapping):
        for key, inner in value.items():
            _refuse_unknown_keys(arguments[1], inner, f"{path}.{key}")
    elif isinstance(value, (list, tuple)) and arguments and typing.get_origin(annotation) in (list, tuple):
        for position, inner in enumerate(value):
            _refuse_unknown_keys(arguments[0], inner, f"{path}[{position}]")
    elif len(arguments) == 1:  # X | None
        _refuse_unknown_keys(arguments[0], value, path)


def _one_line(issue: Any, path: str) -> str:
    where = path + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in issue["loc"])
    if issue["type"] in ("missing", "missing_argument"):
        return f"{where}: missing; it has no default, so it must be set."
    if issue["type"] == "value_error":  # from __post_init__: it names the value, and the input is the whole mapping
        return f"{where}: {issue['msg'].removeprefix('Value error, ')}."
    return f"{where}: {issue['msg']}, got {issue['input']!r}."
