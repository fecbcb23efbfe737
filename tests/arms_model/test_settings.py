from dataclasses import dataclass, field
from typing import Any

import pytest

from arms_model.errors import ConfigError
from arms_model.settings import nearest, parse


@dataclass(frozen=True, kw_only=True)
class Part:
    width: int = 4

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be 1 or more, not {self.width}")


@dataclass(frozen=True, kw_only=True)
class Whole:
    rate: float
    part: Part = Part()
    parts: list[Part] = field(default_factory=list)
    named: dict[str, Part] = field(default_factory=dict)
    maybe: Part | None = None


def test_nested_settings_are_built() -> None:
    values = {"rate": 1, "part": {"width": 2}, "parts": [{"width": 3}], "named": {"a": {"width": 5}}, "maybe": {}}
    whole = parse(Whole, values, "top")
    assert whole == Whole(rate=1.0, part=Part(width=2), parts=[Part(width=3)], named={"a": Part(width=5)}, maybe=Part())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 1, "raet": 2}, r"^top\.raet: unknown key; did you mean 'rate'\?$"),
        ({"rate": 1, "zzz": 2}, r"^top\.zzz: unknown key; known are: maybe, named, part, parts, rate\.$"),
        ({"rate": 1, "part": {"widht": 2}}, r"^top\.part\.widht: unknown key; did you mean 'width'\?$"),
        ({"rate": 1, "parts": [{}, {"widht": 2}]}, r"^top\.parts\[1\]\.widht: unknown key"),
        ({"rate": 1, "named": {"a": {"widht": 2}}}, r"^top\.named\.a\.widht: unknown key"),
        ({"rate": 1, "maybe": {"widht": 2}}, r"^top\.maybe\.widht: unknown key"),
        ({}, r"^top\.rate: missing; it has no default, so it must be set\.$"),
        ({"rate": "fast"}, r"^top\.rate: .*got 'fast'\.$"),
        ({"rate": 1, "part": {"width": 0}}, r"^top\.part: .*width must be 1 or more, not 0"),
        ([], r"^top: expected a mapping of settings, got list"),
        (None, r"^top: expected a mapping of settings, got NoneType"),
    ],
)
def test_wrong_settings_are_refused_by_their_path(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Whole, values, "top")


def test_nearest_name_or_all_of_them() -> None:
    assert nearest("lable", ["label", "split"]) == "did you mean 'label'?"
    assert nearest("xyz", ["split", "label"]) == "known are: label, split."
