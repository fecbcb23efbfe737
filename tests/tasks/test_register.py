"""The stage and the registry's commands on a finished tree, with a real SQLite store."""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from arms_model.errors import ConfigError, DataError, EndpointError, StorageError
from tasks import register
from tasks.common import championship
from tasks.common.gate_split import load_gate_split, outcomes_on
from tests.servers import free_port
from tests.tasks.registering import MODEL, STRATEGIES, client, fake_labels, promote, registry, versions

if TYPE_CHECKING:
    from tests.conftest import Tree

LIMITED = textwrap.dedent("""
    import os, resource, sys
    sys.path.insert(0, os.getcwd())
    from tasks.register import main
    limit = int(sys.argv.pop())
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # the kernel refuses what would make a file larger
    sys.exit(main())
""")


@pytest.fixture
def tree(registered_copy: Tree) -> Tree:
    """A tree of the test's own in which the stage ran; it is the current folder."""
    return registered_copy


def test_every_strategy_is_a_version_with_its_tags_and_card(tree: Tree) -> None:
    found = versions()
    assert [version.strategy for version in found] == STRATEGIES
    assert found[0].aliases == ("champion",)
    challenger = json.loads(Path("cascade_eval/selection.json").read_text())["challenger"]
    assert [version.strategy for version in found if "challenger" in version.aliases] == [challenger]
    for version in found:
        assert {
            "arms.digest", "arms.files", "arms.strategy", "arms.vlms", "arms.data", "arms.git_commit",
            "arms.em.held_out", "arms.em.test_id",
        } <= set(version.tags)  # fmt: skip
        stored = client().get_model_version(MODEL, str(version.number))
        assert stored.description.startswith(f"# ARMS router: {version.strategy}")
        assert stored.run_id
    assert found[0].tags["arms.vlms"].split(", ") == ["toy-colour-2b", "toy-count-2b", "toy-even-7b", "toy-weak-1b"]


def test_written_file_holds_the_digests_and_nothing_that_differs_from_run_to_run(tree: Tree) -> None:
    written = json.loads(Path("register/registered.json").read_text())
    assert written["digests"] == {version.strategy: version.digest for version in versions()}
    assert set(written) == {"model", "challenger", "digests"}


def test_served_routers_answer_with_the_confidences_that_the_evaluation_kept(tree: Tree) -> None:
    kept = tree.table("cascade_eval/confidences")
    queries = tree.table("queries/queries").filter(pl.col("query_id").is_in(kept["query_id"].unique().to_list()))
    scored = {
        "base": {"base": "base"},
        "incremental": {"base": "incremental", "new": "incremental"},
        "base + independent": {"base": "base", "new": "independent"},
        "base + incremental": {"base": "base", "new": "incremental"},
    }
    pools = {vlm: pool for pool in ("base", "new") for vlm in tree.table(f"profiles/{pool}")["vlm"]}
    expected = {(router, query, vlm): f for router, query, vlm, f in
                kept.select("router", "query_id", "vlm", "confidence").iter_rows()}  # fmt: skip
    for version in versions():
        served = registry().verify(version)
        answers = served.answer(
            queries["question"].to_list(),
            [Path("queries/images") / image for image in queries["image"]],
            choices=[None if choices is None else list(choices) for choices in queries["choices"]],
        )
        for query, answer in zip(queries["query_id"], answers, strict=True):
            for vlm, confidence in answer.confidences.items():
                router = scored[version.strategy][pools[vlm]]
                assert confidence == pytest.approx(expected[router, query, vlm], abs=2e-5)


def test_unchanged_rerun_registers_nothing(tree: Tree) -> None:
    before, files = versions(), tree.sha256("register")
    register.body()
    assert versions() == before
    assert tree.sha256("register") == files
    experiments = [experiment.experiment_id for experiment in client().search_experiments()]
    assert len(client().search_logged_models(experiments)) == len(STRATEGIES)


def promote_elsewhere(tree: Tree) -> None:
    """Make version 3 the champion in another process: MLflow keeps a database open, even one that is removed."""
    result = tree.run("python", "-m", "tasks.register", "promote", "--version", "3", "--force", "--why", "try it")
    assert result.returncode == 0, result.stderr


def test_wiped_store_is_rebuilt_by_one_run(tree: Tree) -> None:
    files = tree.sha256("register")
    shutil.rmtree(".arms/mlflow")
    register.body()
    assert [version.strategy for version in versions()] == STRATEGIES
    assert registry().find("champion").number == 1
    assert tree.sha256("register") == files
    assert [entry.action for entry in registry().history().entries] == ["restore"]
    register.history()  # nothing is missing: the store was rebuilt


def test_rebuilt_store_has_its_former_champion_again(tree: Tree) -> None:
    promote_elsewhere(tree)
    shutil.rmtree(".arms/mlflow")
    register.body()
    assert registry().find("champion").number == 3
    (entry,) = registry().history().entries
    assert (entry.action, entry.from_version, entry.why) == ("restore", None, "store was rebuilt")


def test_rebuilt_store_says_that_its_former_champion_is_gone(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    promote_elsewhere(tree)
    digest = json.loads(Path("register/registered.json").read_text())["digests"][STRATEGIES[2]]
    path = Path("cascade_eval/selection.json")
    selection = json.loads(path.read_text())
    next(entry for entry in selection["strategies"] if entry["strategy"] == STRATEGIES[2])["tau"] = 0.65
    path.write_text(json.dumps(selection))
    shutil.rmtree(".arms/mlflow")
    register.body()
    assert registry().find("champion").strategy == "base"
    words = f"the former champion (digest {digest[:12]}, since "
    assert words in caplog.text
    assert words in registry().history().entries[0].why


def test_lost_artifacts_are_put_back_by_one_run(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(".arms/mlflow")
    register.body()  # this store's artifacts lie in the test's own folder
    before = [(version.number, version.digest) for version in versions()]
    shutil.rmtree(".arms/mlflow/artifacts")
    register.body()
    assert caplog.text.count("mended, its files are put back") == 4
    assert [(version.number, version.digest) for version in versions()] == before
    register.verify("all")


def test_lost_champion_is_not_replaced_silently_and_is_set_again_by_force(tree: Tree) -> None:
    promote(number=3, force=True, why="try it")
    client().delete_registered_model_alias(MODEL, "champion")
    words = r"made version 3 the champion \(.*: try it\).* --version 3 --force"
    with pytest.raises(StorageError, match=words):
        register.body()
    with pytest.raises(StorageError, match=words):
        promote(number=2)
    assert registry().alias("champion") is None
    promote(number=3, force=True, why="set again")
    assert registry().find("champion").number == 3
    register.body()
    register.history()
    championship.rollback(why="back")
    assert registry().find("champion").number == 1


def test_entry_that_was_cut_off_at_the_end_is_seen(tree: Tree) -> None:
    promote(number=3, force=True, why="try it")
    client().delete_registered_model_tag(MODEL, "arms.history.000002")
    client().set_registered_model_alias(MODEL, "champion", "1")
    with pytest.raises(
        StorageError, match=r"entry 2 \(.*, to version 3\) stands in .*history\.jsonl and not in MLflow"
    ):
        register.history()


def test_verify_refuses_a_version_without_digest(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    client().delete_model_version_tag(MODEL, "2", "arms.digest")
    with pytest.raises(StorageError, match=r"version 2 of arms-router is refused: it has no tag arms\.digest"):
        register.verify("all")
    assert "version 2 (no digest): REFUSED" in capsys.readouterr().out


def test_verify_says_that_there_are_no_versions(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(".arms/mlflow")
    register.verify("all")
    assert "arms-router has no versions yet" in capsys.readouterr().out


def test_router_that_changed_becomes_a_further_version(tree: Tree) -> None:
    selection = json.loads(Path("cascade_eval/selection.json").read_text())
    entry = next(entry for entry in selection["strategies"] if entry["strategy"] == "base + independent")
    entry["tau"] = 0.65
    Path("cascade_eval/selection.json").write_text(json.dumps(selection))
    register.body()
    assert [version.number for version in versions()] == [1, 2, 3, 4, 5]
    assert versions()[-1].tags["arms.tau"] == "0.65"
    assert registry().find("challenger").number == (5 if selection["challenger"] == entry["strategy"] else 4)
    assert registry().find("champion").number == 1


def test_better_challenger_is_promoted(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    fake_labels(tree, lambda number: "challenger")
    number = registry().find("challenger").number
    promote()
    assert registry().find("champion").number == number
    printed = capsys.readouterr().out
    assert "95 % interval [+" in printed
    assert "decision: promote" in printed
    entry = registry().history().entries[-1]
    assert (entry.action, entry.from_version, entry.to_version, entry.forced) == ("promote", 1, number, False)
    assert entry.why.startswith("macro EM on split gate +")
    register.body()  # the champion is not put forward as its own challenger
    assert registry().alias("challenger") is None


def test_worse_challenger_is_refused(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    fake_labels(tree, lambda number: "champion")
    with pytest.raises(DataError, match="refuse: version 1 stays the champion"):
        promote()
    assert "decision: refuse" in capsys.readouterr().out
    assert registry().find("champion").number == 1
    assert len(registry().history().entries) == 1


def test_router_that_knows_fewer_vlms_does_not_replace_a_better_cascade(tree: Tree) -> None:
    promote(number=STRATEGIES.index("base + independent") + 1, force=True, why="try it")
    client().set_registered_model_alias(MODEL, "challenger", "1")
    fake_labels(tree, lambda number: "champion")
    with pytest.raises(DataError, match="refuse: version 3 stays the champion"):
        promote()
    assert registry().find("champion").number == 3


def test_inconclusive_comparison_says_what_would_decide_it(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    fake_labels(tree, lambda number: ("champion", "challenger")[number // 3 % 2])
    with pytest.raises(DataError, match="inconclusive: version 1 stays the champion"):
        promote()
    printed = capsys.readouterr().out
    assert "decision: inconclusive" in printed
    assert "further labelled queries (" in printed
    assert "labels for 6 VLMs) would " in printed


def test_gate_of_few_queries_is_inconclusive(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="inconclusive"):
        promote()
    printed = capsys.readouterr().out
    assert "groups of queries are too few for an interval" in printed
    assert "labels for 6 VLMs) before an interval can be given" in printed


def test_force_overrules_and_is_written_down_as_such(tree: Tree) -> None:
    promote(number=2, force=True, why="the gate is too small")
    entry = registry().history().entries[-1]
    assert (entry.to_version, entry.forced, entry.why) == (2, True, "the gate is too small")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"force": True}, "say why with --why"),
        ({"force": True, "number": 2, "why": "x" * 1001}, "at most 1,000 are kept"),
    ],
)
def test_force_without_a_reason_that_can_be_kept_is_refused(given: dict[str, Any], words: str, tree: Tree) -> None:
    with pytest.raises(ConfigError, match=words):
        promote(**given)
    assert registry().find("champion").number == 1


def test_nobody_to_ask_needs_yes(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_labels(tree, lambda number: "challenger")
    with Path("params.yaml").open() as no_terminal:
        monkeypatch.setattr("sys.stdin", no_terminal)
        with pytest.raises(ConfigError, match="add --yes"):
            promote(yes=False)
    assert registry().find("champion").number == 1


def test_champion_is_no_challenger_of_itself(tree: Tree) -> None:
    with pytest.raises(DataError, match="version 1 is the champion already"):
        promote(number=1)


def test_tampered_challenger_is_not_compared(registered_tree: Tree, tree: Tree) -> None:
    version = registry().find("challenger")
    client().set_model_version_tag(MODEL, str(version.number), "arms.digest", "f" * 64)
    with pytest.raises(StorageError, match="is refused"):
        promote()


def test_rollback_is_written_down(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    promote(number=3, force=True, why="try it")
    championship.rollback(why="it was worse")
    assert registry().find("champion").number == 1
    register.history()
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split("  ")[3] for line in lines] == ["first", "promote (forced)", "rollback"]
    assert lines[-1].endswith("3 -> 1  it was worse")


def test_edited_history_is_seen(tree: Tree) -> None:
    promote(number=3, force=True, why="try it")
    text = client().get_registered_model(MODEL).tags["arms.history.000001"]
    client().set_registered_model_tag(MODEL, "arms.history.000001", text.replace("first registration", "a good reason"))
    with pytest.raises(StorageError, match=r"history is not whole: arms\.history\.000002 does not follow"):
        register.history()


def test_champion_that_was_set_past_the_history_is_seen(tree: Tree) -> None:
    client().set_registered_model_alias(MODEL, "champion", "4")
    with pytest.raises(StorageError, match="the champion is version 4, the last entry says 1"):
        register.history()


def test_verify_goes_through_all_versions_and_names_what_is_refused(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    register.verify("all")
    assert capsys.readouterr().out.count("all files are what was registered") == 4
    client().delete_model_version_tag(MODEL, "2", "arms.files")
    with pytest.raises(StorageError, match=r"version 2 of arms-router is refused: tag arms\.files is missing"):
        register.verify("all")
    assert capsys.readouterr().out.count("all files are what was registered") == 3
    register.verify("champion")


def test_load_shows_what_a_version_would_choose(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    image = next(Path("queries/images").rglob("*.png"))
    register.load(
        which="4", question="How many squares?", image=image, candidates=["toy-big", "toy-count-2b", "toy-weak-1b"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("chosen: toy-")
    with pytest.raises(ConfigError, match="belong together"):
        register.load(which="4", question="How many?", image=None, candidates=None)


def test_store_that_is_away_ends_the_stage_and_leaves_its_file(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tree.sha256("register")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:secret@127.0.0.1:{free_port()}")
    with pytest.raises(EndpointError, match="nothing listens there") as caught:
        register.body()
    assert "secret" not in str(caught.value)
    assert tree.sha256("register") == files


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["promote", "--force"], 2, "say why with --why"),
        (["promote", "--yes"], 1, "inconclusive: version 1 stays the champion"),
        (["load", "7"], 1, "has no version '7'"),
        (["history"], 0, ""),
        (["verify", "1"], 0, ""),
        (["rollback"], 1, "no champion before this one"),
    ],
)
def test_commands_end_with_their_exit_codes_and_no_traceback(
    command: list[str], code: int, words: str, tree: Tree
) -> None:
    result = tree.run("python", "-m", "tasks.register", *command)
    assert result.returncode == code, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_outcomes_on_the_gate_say_whether_the_chosen_vlm_is_right(tree: Tree) -> None:
    fake_labels(tree, lambda number: "champion")
    gate = load_gate_split("image_group")
    champion, challenger = registry().load("champion"), registry().load("challenger")
    assert outcomes_on(gate, champion).tolist() == [1.0] * 90
    assert 0 < outcomes_on(gate, challenger).mean() < 1
    column = gate.vlms.index("toy-big")
    unknown = dataclasses.replace(gate, vlms=("toy-big",), correct=gate.correct[:, [column]])
    assert np.isnan(outcomes_on(unknown, champion)).all()  # it knows none of what is labelled


@pytest.mark.parametrize("stands", [True, False], ids=["store stands", "no store yet"])
def test_full_disk_ends_the_stage_without_a_traceback_and_it_goes_on_afterwards(stands: bool, tree: Tree) -> None:
    selection = Path("cascade_eval/selection.json").read_text().replace('"tau": 0.5', '"tau": 0.55')
    Path("cascade_eval/selection.json").write_text(selection)
    Path("register/registered.json").unlink()
    if not stands:
        shutil.rmtree(".arms/mlflow")
    limit = Path(".arms/mlflow/mlflow.db").stat().st_size if stands else 150
    result = tree.run("python", "-c", LIMITED, str(limit))
    assert result.returncode == 1, result.stderr
    assert f"MLflow at sqlite:///{tree.folder}" in result.stderr
    assert "Traceback" not in result.stderr
    assert not tree.leftovers()
    assert not Path("register/registered.json").exists()
    assert tree.stage("register").returncode == 0
    digests = [version.digest for version in versions()]
    assert len(digests) == len(set(digests))
    assert set(json.loads(Path("register/registered.json").read_text())["digests"].values()) <= set(digests)
