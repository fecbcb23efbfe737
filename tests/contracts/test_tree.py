"""Rules about the whole tree: nothing that runs code on loading, no path of one machine, library and pipeline apart."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("arms_model/*.py", "tasks/*.py", "benchmarks/*.py")  # tests may write what must be refused
FORBIDDEN = {
    "pickle": r"^\s*(import|from)\s+(pickle|cPickle|dill|joblib|shelve|marshal)\b",
    "unsafe torch.load": r"weights_only\s*=\s*False",
    "torch.load without weights_only": r"torch\.load\((?![^)]*weights_only=True)",
    "torch.save": r"\btorch\.save\(",
    "numpy objects": r"allow_pickle\s*=\s*True",
    "unsafe YAML": r"typ\s*=\s*[\"']unsafe[\"']|\byaml\.load\(",
}


def _tracked(*patterns: str) -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [ROOT / name for name in result.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_code_never_loads_what_can_run_code(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _tracked(*CODE)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(FORBIDDEN[what], line)
    ]
    assert not found


def test_patterns_find_what_they_forbid() -> None:
    samples = {
        "pickle": "import pickle",
        "unsafe torch.load": "torch.load(path, weights_only=False)",
        "torch.load without weights_only": "torch.load(path)",
        "torch.save": "torch.save(model, path)",
        "numpy objects": "np.load(path, allow_pickle=True)",
        "unsafe YAML": 'YAML(typ="unsafe")',
    }
    assert all(re.search(FORBIDDEN[what], line) for what, line in samples.items())
    assert samples.keys() == FORBIDDEN.keys()


def test_tracked_files_name_no_folder_of_one_machine() -> None:
    home = re.compile(r"(?<![\w.])/(home|root|Users|work)/\w")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _tracked("*.py", "*.yaml", "*.yml", "*.toml", "*.md", "Makefile", ".ci/*", ".dvc/*")
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if home.search(line)
    ]
    assert not found


def test_no_data_file_is_tracked_but_committed_results() -> None:
    data = _tracked("*.parquet", "*.safetensors", "*.webp", "*.png", "*.jpg", "*.pt", "*.pth", "*.npz")
    assert not [path for path in data if not path.is_relative_to(ROOT / "docs")]


def test_dvc_sends_nothing_home() -> None:
    text = (ROOT / ".dvc/config").read_text()
    assert "analytics = false" in text
    assert "check_update = false" in text


def test_room_of_tests_has_no_init_file() -> None:
    # with import mode `importlib` an __init__.py under tests/tasks would hide the package `tasks`
    assert not list((ROOT / "tests").rglob("__init__.py"))
