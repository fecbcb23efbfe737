from dataclasses import dataclass
from pathlib import Path

import pytest

from arms_model.errors import ConfigError
from tasks.common.params import load_section, load_seed, raw_section


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int
    inner: Inner = Inner()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_section_is_read_as_its_dataclass() -> None:
    Path("params.yaml").write_text("base: {seed: 7}\nlabel: {steps: 3, inner: {rate: 0.25}}\n")
    assert load_section("label", Settings) == Settings(steps=3, inner=Inner(rate=0.25))
    assert load_seed() == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label: {stepz: 3}", r"label\.stepz: unknown key; did you mean 'steps'\?"),
        ("label: {steps: 3, inner: {raet: 1}}", r"label\.inner\.raet: unknown key; did you mean 'rate'\?"),
        ("label: {steps: many}", r"label\.steps: .*got 'many'"),
        ("label: {}", r"label\.steps: missing"),
        ("label: [1]", r"label: expected a mapping of settings, got list"),
        ("lable: {steps: 3}", r"params\.yaml: lable: unknown section; did you mean 'label'\?"),
        ("split: {}", r"section 'label' is missing"),
        ("label: {steps: 3", r"no valid YAML"),
        ("- label", r"expected sections .*got list"),
        ("", r"expected sections .*got NoneType"),
    ],
)
def test_params_are_refused_by_the_path_of_what_is_wrong(text: str, message: str) -> None:
    Path("params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_section("label", Settings)


def test_missing_params_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no params\.yaml in .*run from the checkout's top folder"):
        raw_section("label")
