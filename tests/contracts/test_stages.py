"""The graph, the modules and the params say the same: dvc.yaml stages = task modules = params sections, deps whole."""

import ast
from pathlib import Path
from typing import Any

import grimp
import pytest
from ruamel.yaml import YAML

from arms_model.settings import parse
from tasks.cascade_eval import CascadeEvalSettings
from tasks.collect import CollectSettings
from tasks.common.invariants.collect import CollectGate
from tasks.common.invariants.label import LabelGate
from tasks.common.invariants.split import SplitGate
from tasks.common.params import SECTIONS, STAGES, BaseSettings, NoBounds
from tasks.common.registering import RegisterSettings
from tasks.common.routers import RouterSettings
from tasks.common.vlms import parse_vlms
from tasks.embed import EmbedSettings
from tasks.label import LabelSettings
from tasks.profiles import ProfilesSettings
from tasks.queries import QueriesSettings
from tasks.report import ReportSettings
from tasks.split import SplitSettings
from tasks.train_incremental import IncrementalSettings

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
PARAMS = [ROOT / "params.yaml", *PRESETS]
SETTINGS = {
    "base": BaseSettings,
    "queries": QueriesSettings,
    "profiles": ProfilesSettings,
    "collect": CollectSettings,
    "label": LabelSettings,
    "split": SplitSettings,
    "embed": EmbedSettings,
    "train_base": RouterSettings,
    "train_incremental": IncrementalSettings,
    "train_independent": RouterSettings,
    "cascade_eval": CascadeEvalSettings,
    "report": ReportSettings,
    "register": RegisterSettings,
}
GATES = {
    "queries": NoBounds,
    "profiles": NoBounds,
    "collect": CollectGate,
    "label": LabelGate,
    "split": SplitGate,
    "embed": NoBounds,
}
NEW_POOL = {"collect/new.parquet", "label/new.parquet", "profiles/new.parquet", "collect", "label", "profiles"}


def _yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


STAGES_OF_DVC = _yaml(ROOT / "dvc.yaml")["stages"]


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("arms_model", "tasks")


def _file(module: str) -> Path | None:
    """The file of a module; None for a package, whose __init__ holds a docstring only (tested below)."""
    path = ROOT / (module.replace(".", "/") + ".py")
    return path.relative_to(ROOT) if path.exists() else None


def _covered(path: Path, deps: list[str]) -> bool:
    return any(Path(dep) in (path, *path.parents) for dep in deps)


def test_stages_of_dvc_are_those_of_params() -> None:
    assert tuple(STAGES_OF_DVC) == STAGES


def test_stages_are_the_task_modules() -> None:
    assert {path.stem for path in (ROOT / "tasks").glob("*.py")} - {"__init__"} == set(STAGES)


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
def test_params_file_has_every_section(path: Path) -> None:
    assert tuple(_yaml(path)) == SECTIONS


@pytest.mark.parametrize("section", SETTINGS)
@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
def test_section_of_params_file_is_what_its_stage_takes(path: Path, section: str) -> None:
    parse(SETTINGS[section], _yaml(path)[section], section)


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
def test_gates_of_params_file_are_those_of_the_data_stages(path: Path) -> None:
    gates = _yaml(path)["gates"]
    assert list(gates) == list(GATES)
    for stage, settings in GATES.items():
        parse(settings, gates[stage], f"gates.{stage}")


@pytest.mark.parametrize("stage", GATES)
def test_data_stage_reads_its_own_gate_and_leaves_what_it_found(stage: str) -> None:
    assert f"gates.{stage}" in STAGES_OF_DVC[stage]["params"]
    assert f"gates/{stage}.json" in STAGES_OF_DVC[stage]["outs"]


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
def test_params_file_names_vlms_of_both_pools(path: Path) -> None:
    assert {vlm.pool for vlm in parse_vlms(_yaml(path)["vlms"])} == {"base", "new"}


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
def test_routers_read_encoders_that_stage_embed_has(path: Path) -> None:
    params = _yaml(path)
    for stage in ("train_base", "train_independent"):
        router = parse(RouterSettings, params[stage], stage)
        assert {*router.question_encoders, router.profile_encoder} <= set(params["embed"]["questions"])
        assert set(router.picture_encoders) <= set(params["embed"]["pictures"])


@pytest.mark.parametrize("stage", STAGES)
def test_command_runs_the_stage_by_its_name(stage: str) -> None:
    assert STAGES_OF_DVC[stage]["cmd"] == f"python -m tasks.{stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_its_own_section_and_on_no_other_stage_of_params(stage: str) -> None:
    params = set(STAGES_OF_DVC[stage]["params"])
    assert stage in params
    near_copies = "split.group_by"  # must not be parted anywhere
    assert params <= {stage, "base", "vlms", near_copies, f"gates.{stage}"}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_every_file_the_stage_imports(stage: str, imports: grimp.ImportGraph) -> None:
    module = f"tasks.{stage}"
    files = {_file(name) for name in imports.find_upstream_modules(module) | {module}} - {None}
    missing = sorted(str(path) for path in files if path and not _covered(path, STAGES_OF_DVC[stage]["deps"]))
    assert not missing, f"add to the deps of {stage} in dvc.yaml: {missing}"


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_no_source_file_the_stage_does_not_import(stage: str, imports: grimp.ImportGraph) -> None:
    module = f"tasks.{stage}"
    files = [path for name in imports.find_upstream_modules(module) | {module} if (path := _file(name))]
    ours = [dep for dep in STAGES_OF_DVC[stage]["deps"] if dep.startswith(("tasks/", "arms_model/"))]
    idle = [dep for dep in ours if not any(_covered(path, [dep]) for path in files)]
    assert not idle, f"{stage} does not import {idle}; a change there would rerun it for nothing"


def test_queries_depend_on_what_makes_the_sandbox_questions_and_on_no_program() -> None:
    # the stage runs `python -m sandbox.questions`, which its own imports do not show
    graph = grimp.build_graph("sandbox")
    module = "sandbox.questions"
    files = {str(path) for name in graph.find_upstream_modules(module) | {module} if (path := _file(name))}
    assert {dep for dep in STAGES_OF_DVC["queries"]["deps"] if dep.startswith("sandbox/")} == {
        *files,
        "sandbox/words.json",
    }
    others = [dep for stage in set(STAGES) - {"queries"} for dep in STAGES_OF_DVC[stage]["deps"]]
    assert not [dep for dep in others if dep.startswith("sandbox/")]  # VLMs are asked, never depended on


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("arms_model/**/__init__.py")) + sorted(ROOT.glob("tasks/**/__init__.py"))
)
def test_package_file_holds_its_docstring_only(path: Path) -> None:
    # so it decides nothing and may be left out of the deps
    statements = ast.parse(path.read_text()).body
    assert len(statements) == 1
    assert isinstance(statements[0], ast.Expr)
    assert isinstance(statements[0].value, ast.Constant)


def test_base_router_depends_on_nothing_of_the_new_pool() -> None:
    assert not NEW_POOL & set(STAGES_OF_DVC["train_base"]["deps"])
    assert "vlms" not in STAGES_OF_DVC["train_base"]["params"]


def test_independent_router_depends_on_nothing_of_the_base_router() -> None:
    deps = STAGES_OF_DVC["train_independent"]["deps"]
    assert not [dep for dep in deps if "base" in dep or dep == "models"]


@pytest.mark.parametrize("stage", STAGES)
def test_outputs_are_never_persisted(stage: str) -> None:
    # `persist: true` makes DVC give up its run cache, so what must survive lies in .arms, outside the outputs
    kinds = (STAGES_OF_DVC[stage].get(kind, []) for kind in ("outs", "metrics", "plots"))
    assert all(isinstance(out, str) or not next(iter(out.values())).get("persist") for outs in kinds for out in outs)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.startswith("train_")])
def test_training_stage_keeps_metrics_and_curves(stage: str) -> None:
    assert STAGES_OF_DVC[stage]["metrics"] == [f"metrics/{stage}.json"]
    assert [next(iter(plot)) if isinstance(plot, dict) else plot for plot in STAGES_OF_DVC[stage]["plots"]] == [
        f"curves/{stage}.csv"
    ]
