"""What README and CONTRIBUTING tell people to type exists, and the Python in them that loads a router runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Tree

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


@pytest.mark.parametrize("name", ["README.md", "docs/registry.md"])
def test_python_that_loads_a_router_runs_after_a_finished_run(copied_tree: Tree, name: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)
    assert blocks
    result = copied_tree.run("python", "-c", "".join(blocks))
    assert result.returncode == 0, result.stderr
    assert "toy-" in result.stdout  # a VLM of the tree
