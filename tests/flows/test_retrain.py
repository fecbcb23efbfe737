"""The workflow `retrain` as it happens in a team: its own scripts, on real clones, with a VLM that is really added.

Three machines share a bare git repository, a DVC remote and MLflow's server. VLMs are programs made up here behind the
sandbox's endpoint, whose counters say who was asked.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from ruamel.yaml import YAML

from sandbox.endpoint import make_app
from tests.conftest import write_recorded, write_tree
from tests.flows.repositories import Machine, clone, make_origin, vlms_of
from tests.sandbox.serving import serving
from tests.tasks.asking import vlm
from tests.tasks.test_collect_new_vlm import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow
SAMPLE, USD_PER_CALL = 40, 0.01
BUDGET = {"ARMS_BUDGET_USD": "0.1"}  # the new VLM costs 40 calls at 0.01


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The sandbox's endpoint in a thread."""
    with serving(make_app(PROGRAMS, dict.fromkeys(PROGRAMS, 0.0))) as url:
        yield url


@pytest.fixture(scope="module")
def shared(mlflow_server: str) -> dict[str, str]:
    """What all machines' environments have."""
    return {"MLFLOW_TRACKING_URI": mlflow_server}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, endpoint: str, shared: dict[str, str]) -> Path:
    """The team's repository: two VLMs of pool base were learned; the base router is champion."""
    folder = tmp_path_factory.mktemp("team")
    sections = {
        "vlms": [block("colour", endpoint), block("no", endpoint)],
        "collect": {"source": "endpoint", "max_error_share": 0.0},
        "register": {"model": "retrained-router", "draws": 200},
    }
    tree = write_tree(folder / "tree", recorded=write_recorded(folder / "recorded").folder, sections=sections)
    return make_origin(tree, folder, shared)


def block(name: str, endpoint: str, **fields: Any) -> dict[str, Any]:
    return vlm(name, f"{endpoint}/v1", usd_per_call=fields.pop("usd_per_call", 0.0), **fields)


def asked(endpoint: str) -> dict[str, int]:
    """How often each VLM was asked since this was last called."""
    counters: dict[str, int] = httpx2.get(f"{endpoint}/sandbox/counters").json()
    httpx2.delete(f"{endpoint}/sandbox/counters")
    return counters


def add_late(machine: Machine, endpoint: str) -> str:
    """Add a paid VLM on a branch of its own; the commit that it is compared with."""
    since = machine.git("rev-parse", "origin/main")
    machine.git("switch", "--quiet", "--create", "add-late")
    late = block("late", endpoint, pool="new", sample=SAMPLE, usd_per_call=USD_PER_CALL)
    machine.change_params(lambda params: params["vlms"].append(late), "Add late")
    return since


def champion(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.run("python", "-m", "tasks.register", "champion", "--json").stdout)
    return found


def stages_that_ran(said: str) -> set[str]:
    return {line.split("'")[1] for line in said.splitlines() if "Running stage '" in line}


def test_paid_vlm_beyond_the_budget_is_refused_before_anybody_is_asked(
    origin: Path, endpoint: str, shared: dict[str, str], tmp_path: Path
) -> None:
    machine = clone(origin, tmp_path / "refused", shared)
    since = add_late(machine, endpoint)
    asked(endpoint)
    machine.script("prepare")
    said = machine.script("plan", expected=1, ARMS_SINCE=since, **BUDGET)
    assert f"late: {SAMPLE} questions, $0.4000 expected" in said
    assert "beyond the budget of $0.1000" in said
    assert "add the label `spend`" in machine.read(".arms/ci/plan.md")
    # the next step refuses by itself, too, should somebody leave the plan out
    assert "beyond the budget" in machine.script("train", expected=1, ARMS_SINCE=since, **BUDGET)
    assert asked(endpoint) == {"colour": 0, "no": 0, "late": 0}
    assert not machine.git("status", "--porcelain")


def test_added_vlm_is_proposed_on_the_branch_and_decided_on_main_then_changed_and_removed(
    origin: Path, endpoint: str, shared: dict[str, str], tmp_path: Path
) -> None:
    # on the pull request, with the label: asked, trained, compared, not promoted
    branch = clone(origin, tmp_path / "branch", shared)
    since = add_late(branch, endpoint)
    asked(endpoint)
    spend = BUDGET | {"ARMS_SINCE": since, "ARMS_MAY_SPEND": "true", "ARMS_PROMOTE": "false"}
    branch.script("prepare")
    branch.script("plan", **spend)
    assert asked(endpoint) == {"colour": 0, "no": 0, "late": 0}
    before = champion(branch)
    base_router = branch.tree.sha256("models/train_base")
    branch.script("train", **spend)
    assert asked(endpoint) == {"colour": 0, "no": 0, "late": SAMPLE}
    assert branch.tree.sha256("models/train_base") == base_router
    assert champion(branch) == before
    verdict = json.loads(branch.read(".arms/registry/verdict.json"))
    assert verdict["decision"] in ("proposed", "refused", "inconclusive")
    result = branch.read(".arms/ci/result.md")
    assert f"Challenger against champion: {verdict['decision']}" in result
    assert "| Path " in result
    assert "cascade_eval/metrics.json" in result
    branch.script("share", **spend)
    assert "late" not in branch.git("show", "origin/main:params.yaml")
    branch.git("push", "--quiet", "origin", "HEAD:main")  # the merge

    # on main, on a new machine, without the label: nobody is asked, nothing is trained again
    main = clone(origin, tmp_path / "main", shared)
    decide = {"ARMS_SINCE": since, "ARMS_PROMOTE": "true", "ARMS_BRANCH": "main", "ARMS_BUDGET_USD": "0"}
    main.script("prepare")
    assert "nobody is asked" in main.script("plan", **decide)
    said = main.script("train", **decide)
    assert asked(endpoint) == {"colour": 0, "no": 0, "late": 0}
    assert not stages_that_ran(said) & {"collect", "train_base", "train_incremental", "train_independent"}
    assert main.tree.sha256("models") == branch.tree.sha256("models")
    decision = json.loads(main.read(".arms/registry/verdict.json"))["decision"]
    assert decision in ("promoted", "refused", "inconclusive")
    assert (champion(main)["version"] != before["version"]) == (decision == "promoted")
    main.script("share", **decide)
    lock = YAML(typ="safe").load(main.git("show", "origin/main:dvc.lock"))
    assert "late" in [each["name"] for each in lock["stages"]["collect"]["params"]["params.yaml"]["vlms"]]

    # a price and a display name: what was trained stays, byte for byte
    def rename(params: Any) -> None:
        for each in params["vlms"]:
            each["display_name"], each["usd_per_call"] = f"Renamed {each['name']}", 0.5

    since = main.git("rev-parse", "HEAD")
    main.change_params(rename, "Prices and display names")
    models = main.tree.sha256("models")
    plan = main.script("plan", **decide | {"ARMS_SINCE": since})
    assert plan.count("nothing that was trained changes") == len(vlms_of(main))
    said = main.script("train", **decide | {"ARMS_SINCE": since})
    assert stages_that_ran(said) == {"profiles", "collect", "cascade_eval", "report", "register"}
    assert main.tree.sha256("models") == models
    assert asked(endpoint) == {"colour": 0, "no": 0, "late": 0}

    # the same again: nothing to do
    assert "nothing" in main.script("plan", **decide | {"ARMS_SINCE": "HEAD"})

    # a removed VLM: the champion stops choosing it, without training
    main.run(
        "python", "-m", "tasks.register", "promote", "--force", "--why", "so that it can be removed", expected=None
    )
    if "late" not in champion(main)["vlms"]:
        pytest.fail(f"no champion that chooses late: {champion(main)}")
    since = main.git("rev-parse", "HEAD")
    main.change_params(lambda params: params["vlms"].pop(), "Remove late")
    assert "without training" in main.script("plan", **decide | {"ARMS_SINCE": since})
    said = main.script("train", **decide | {"ARMS_SINCE": since, "ARMS_PROMOTE": "false"})
    assert "not retired" in said
    assert "late" in champion(main)["vlms"]
    said = main.script("train", **decide | {"ARMS_SINCE": since})
    assert not stages_that_ran(said)
    assert "late" not in champion(main)["vlms"]
    assert main.tree.sha256("models") == models
