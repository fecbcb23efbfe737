"""What README and CONTRIBUTING tell people to type exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_that_a_text_runs_exist(path: Path) -> None:
    modules = set(re.findall(r"python -m ((?:tasks|arms_model|benchmarks)[\w.]*\w)(?![\w<])", path.read_text()))
    missing = [name for name in modules if not (ROOT / (name.replace(".", "/") + ".py")).exists()]
    assert not missing


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_verbs_that_a_text_names_exist(path: Path) -> None:
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`make ([\w-]+)`|^ {4}make ([\w-]+)", path.read_text(), flags=re.MULTILINE))
    assert {first or second for first, second in named} <= targets
