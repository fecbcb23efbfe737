"""docs/gates.md says what the code holds."""

from pathlib import Path

from ruamel.yaml import YAML

from tasks.common.invariants import collect, embed, label, profiles, queries, split, training

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/gates.md").read_text()


def test_guide_lists_every_invariant_as_the_code_has_it() -> None:
    modules = (queries, profiles, collect, label, split, embed, training)
    expected = [
        f"| `{each.name}` | {each.sentence} | {each.severity} | {each.bounds} |"
        for module in modules
        for each in module.INVARIANTS
    ]
    assert [line for line in GUIDE.splitlines() if line.startswith("| `")] == expected


def test_guide_shows_the_gates_of_params() -> None:
    shown = GUIDE.split("```yaml\n")[1].split("```")[0]
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    assert YAML(typ="safe").load(shown)["gates"] == params["gates"]
