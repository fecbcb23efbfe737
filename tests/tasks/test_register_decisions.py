"""What `promote`, `retire` and `champion` tell programs: one JSON document each, and the verdict in a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arms_model.errors import ConfigError, DataError, StorageError
from tasks import register
from tasks.common import championship
from tests.tasks.registering import MODEL, STRATEGIES, client, fake_labels, promote, registry, versions

if TYPE_CHECKING:
    from tests.conftest import Tree

VERDICT = Path(".arms/registry/verdict.json")
CASCADE = STRATEGIES.index("base + independent") + 1


@pytest.fixture
def tree(registered_copy: Tree) -> Tree:
    return registered_copy


def _document(capsys: pytest.CaptureFixture[str]) -> Any:
    """The one document that was printed."""
    return json.loads(capsys.readouterr().out)


def _command(tree: Tree, *words: str, code: int = 0) -> Any:
    result = tree.run("python", "-m", "tasks.register", *words)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout) if code == 0 else result.stderr


def test_promotion_is_one_document_and_a_verdict(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    fake_labels(tree, lambda number: "challenger")
    challenger = registry().find("challenger")
    promote(as_json=True)
    document = _document(capsys)
    assert (document["decision"], document["champion"], document["challenger"]) == (
        "promoted", challenger.number, challenger.number,
    )  # fmt: skip
    assert document["difference"]["low"] <= document["difference"]["mean"] <= document["difference"]["high"]
    assert document["num_queries"] == 90
    assert document["text"].splitlines()[0].startswith(f"challenger: version {challenger.number}, ")
    verdict = json.loads(VERDICT.read_text())
    digests = {"champion_digest": challenger.digest, "challenger_digest": challenger.digest}
    assert verdict == document | digests


def test_proposal_changes_nothing(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    fake_labels(tree, lambda number: "challenger")
    challenger = registry().find("challenger")
    promote(propose=True, yes=False, as_json=True)
    document = _document(capsys)
    assert (document["decision"], document["champion"], document["challenger"]) == ("proposed", 1, challenger.number)
    assert "nothing was changed" in document["text"]
    assert registry().find("champion").number == 1
    assert registry().find("challenger").number == challenger.number
    assert len(registry().history().entries) == 1
    assert json.loads(VERDICT.read_text())["champion_digest"] == registry().find("champion").digest
    promote(propose=True, yes=False)  # as lines, the same
    assert capsys.readouterr().out.splitlines() == document["text"].splitlines()


@pytest.mark.parametrize("propose", [True, False])
def test_refusal_is_a_document_and_no_failure(propose: bool, tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    fake_labels(tree, lambda number: "champion")
    promote(as_json=True, propose=propose, yes=not propose)
    document = _document(capsys)
    assert (document["decision"], document["champion"]) == ("refused", 1)
    assert document["text"].endswith("refuse: version 1 stays the champion.")
    assert registry().find("champion").number == 1
    assert json.loads(VERDICT.read_text())["decision"] == "refused"


def test_inconclusive_command_ends_with_0_and_logs_beside_the_document(tree: Tree) -> None:
    document = _command(tree, "promote", "--propose", "--json")
    assert document["decision"] == "inconclusive"
    assert document["num_queries"] > 0
    assert "inconclusive: version 1 stays the champion" in _command(tree, "promote", "--propose", code=1)


def test_without_a_challenger_there_is_nothing_to_compare(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    number = registry().find("challenger").number
    promote(number=number, force=True, why="try it")
    register.body()
    assert registry().alias("challenger") is None
    capsys.readouterr()
    promote(as_json=True)
    document = _document(capsys)
    assert (document["decision"], document["challenger"], document["champion"]) == ("nothing to compare", None, number)
    assert (document["difference"], document["num_queries"]) == (None, None)
    verdict = json.loads(VERDICT.read_text())
    registered = json.loads(Path("register/registered.json").read_text())
    assert verdict["challenger_digest"] == registered["digests"][registered["challenger"]]
    with pytest.raises(DataError, match="arms-router has no challenger"):
        promote()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["promote", "--json"], "with --json nobody is asked: add --yes, or --propose"),
        (["promote", "--propose", "--yes"], "--propose changes nothing"),
        (["retire", "toy-big"], "--why"),
        (["retire", "toy-bigg", "--why", "gone"], "'toy-bigg' is no VLM that is chosen here; known are: toy-colour-2b"),
    ],
)
def test_mistakes_end_with_2(words: list[str], said: str, tree: Tree) -> None:
    assert said in _command(tree, *words, code=2)


def test_champion_is_told_with_its_selection_space(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    promote(number=CASCADE, force=True, why="try it")
    capsys.readouterr()
    championship.champion(as_json=True)
    version, entry = registry().find("champion"), registry().history().entries[-1]
    assert _document(capsys) == {
        "model": MODEL,
        "version": CASCADE,
        "digest": version.digest,
        "strategy": "base + independent",
        "tau": float(version.tags["arms.tau"]),
        "vlms": ["toy-big", "toy-colour-2b", "toy-count-2b", "toy-even-7b", "toy-shape", "toy-weak-1b"],
        "retired": [],
        "since": entry.when,
        "who": entry.who,
        "why": "try it",
    }
    championship.champion()
    printed = capsys.readouterr().out
    assert f"version {CASCADE} of arms-router: base + independent" in printed
    assert f"since {entry.when}" in printed


def test_looking_for_a_champion_makes_no_store(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(".arms/mlflow")
    championship.champion(as_json=True)
    assert _document(capsys) is None
    championship.champion()
    assert "arms-router has no champion yet" in capsys.readouterr().out
    assert not Path(".arms/mlflow").exists()


def test_champion_that_was_set_past_the_history_is_not_told_as_one(tree: Tree) -> None:
    client().set_registered_model_alias(MODEL, "champion", "4")
    with pytest.raises(StorageError, match="points to version 4, but the last entry"):
        championship.champion(as_json=True)


def test_retired_vlm_is_chosen_no_more(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    promote(number=CASCADE, force=True, why="try it")
    capsys.readouterr()
    championship.retire(["toy-big"], why="its provider shut it down", as_json=True)
    document = _document(capsys)
    champion = registry().find("champion")
    assert (document["version"], document["digest"], document["retired"]) == (5, champion.digest, ["toy-big"])
    assert "toy-big" not in document["vlms"]
    assert champion.number == 5
    assert champion.strategy == "base + independent"
    assert "toy-big" not in champion.tags["arms.vlms"]
    assert champion.tags["arms.num_vlms"] == "5"
    assert not [name for name in champion.tags if name.startswith("arms.em.")]  # they were with toy-big
    entry = registry().history().entries[-1]
    assert (entry.action, entry.from_version, entry.to_version) == ("retire", CASCADE, 5)
    assert entry.why == "retired toy-big: its provider shut it down"
    card = client().get_model_version(MODEL, "5").description
    assert card.startswith("**Retired: toy-big** (its provider shut it down). The routers are those of version 3")
    image = next(Path("queries/images").rglob("*.png"))
    register.load(which="champion", question="How many squares?", image=image, candidates=None)
    assert "toy-big" not in capsys.readouterr().out
    with pytest.raises(DataError, match=r"candidate 'toy-big' of query 0 was retired"):
        register.load(which="champion", question="How many?", image=image, candidates=["toy-big", "toy-shape"])
    register.verify("all")
    register.history()


def test_retiring_twice_changes_nothing_more_and_a_further_one_keeps_the_first(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    championship.retire(["toy-weak-1b"], why="gone")
    capsys.readouterr()
    championship.retire(["toy-weak-1b"], why="gone", as_json=True)
    assert _document(capsys)["decision"] == "nothing to retire"
    assert len(versions()) == 5
    championship.retire(["toy-even-7b", "toy-weak-1b"], why="gone, too", as_json=True)
    document = _document(capsys)
    assert document["retired"] == ["toy-even-7b", "toy-weak-1b"]
    assert document["vlms"] == ["toy-colour-2b", "toy-count-2b"]
    assert registry().history().entries[-1].why == "retired toy-even-7b: gone, too"


def test_not_all_vlms_can_be_retired(tree: Tree) -> None:
    with pytest.raises(ConfigError, match="4 of 4 VLMs would be retired"):
        championship.retire(["toy-colour-2b", "toy-count-2b", "toy-even-7b", "toy-weak-1b"], why="gone")
    assert registry().find("champion").number == 1
    assert len(versions()) == 4


def test_registering_again_does_not_bring_a_retired_vlm_back(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    picked = registry().find("challenger")
    promote(number=picked.number, force=True, why="try it")
    championship.retire(["toy-big"], why="gone")
    register.body()
    assert registry().find("champion").number == 5
    assert registry().alias("challenger") is None  # it would be the champion with toy-big
    capsys.readouterr()
    promote(as_json=True)
    assert _document(capsys)["decision"] == "nothing to compare"
    assert json.loads(VERDICT.read_text())["challenger_digest"] == picked.digest


def test_challenger_that_knows_a_retired_vlm_is_refused_but_by_force(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_labels(tree, lambda number: "challenger")
    number = registry().find("challenger").number
    championship.retire(["toy-weak-1b"], why="gone")
    capsys.readouterr()
    promote(number=number, as_json=True)
    document = _document(capsys)
    assert document["decision"] == "refused"
    assert "it would bring back what was retired from the champion: toy-weak-1b" in document["text"]
    assert "decision: promote" in document["text"]  # by the rule alone it would be promoted
    promote(number=number, force=True, why="it is back")
    assert registry().find("champion").number == number


def test_rollback_over_a_retirement_says_what_it_brings_back(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    championship.retire(["toy-weak-1b"], why="gone")
    capsys.readouterr()
    championship.rollback(why="it answers again")
    assert registry().find("champion").number == 1
    assert "it chooses again what was retired since: toy-weak-1b" in capsys.readouterr().out
    register.history()
