"""The preset of the paper's data set says what the paper says (section 3.1), and its guide's mappings can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from arms_model.settings import parse
from tasks.collect import CollectSettings
from tasks.common.endpoint.collection import refuse_unpriced_budgets
from tasks.common.mapped import QUERIES
from tasks.common.vlms import Vlm, parse_vlms
from tasks.importers.table import Mappings

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/m2.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def params() -> Any:
    return YAML(typ="safe").load((ROOT / "presets/m2.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def vlms(params: Any) -> list[Vlm]:
    return parse_vlms(params["vlms"])


def test_four_open_and_three_paid_vlms(vlms: list[Vlm]) -> None:
    names = {pool: [vlm.name for vlm in vlms if vlm.pool == pool] for pool in ("base", "new")}
    assert names["base"] == [
        "idefics2-8b", "llama3.2-11b-vision-instruct", "qwen2.5-vl-7b-instruct", "smolvlm2-2b-instruct",
    ]  # fmt: skip
    assert names["new"] == ["claude-3-5-sonnet", "gemini-1.5-flash", "gpt-4o"]
    assert all(vlm.params_b is not None and vlm.params_b <= 14 for vlm in vlms if vlm.pool == "base")  # paper


def test_paid_vlms_are_asked_7000_answered_queries_and_all_of_the_benchmark_held_out(
    vlms: list[Vlm], params: Any
) -> None:
    held_out = params["split"]["ood"]["benchmarks"]
    for vlm in vlms:
        if vlm.pool == "base":
            assert (vlm.sample, vlm.benchmarks, vlm.usd_per_call, vlm.usd_per_mtok_in) == (None, None, 0.0, None)
        else:
            assert (vlm.sample, vlm.sample_from, vlm.whole_benchmarks) == (7000, "answered_by_base", held_out)
            assert vlm.is_priced


def test_every_vlm_has_an_endpoint_of_its_own_name_and_asks_the_same(vlms: list[Vlm]) -> None:
    endpoints = [vlm.endpoint for vlm in vlms if vlm.endpoint]
    assert len({endpoint.name for endpoint in endpoints}) == len(vlms) == 7
    assert len({(e.prompt, str(e.generation), e.max_side, e.system) for e in endpoints}) == 1
    assert {e.api_key_variable for e in endpoints} == {None, "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"}


def test_budgets_can_be_held(vlms: list[Vlm], params: Any) -> None:
    settings = parse(CollectSettings, params["collect"], "collect")
    assert settings.budget_usd is not None
    refuse_unpriced_budgets(vlms, settings.limits)


def test_budgets_add_up(vlms: list[Vlm], params: Any) -> None:
    budgets = [vlm.endpoint.budget_usd for vlm in vlms if vlm.endpoint and vlm.endpoint.budget_usd is not None]
    assert len(budgets) == 3
    assert parse(CollectSettings, params["collect"], "collect").budget_usd == sum(budgets)


def test_routers_learn_from_answered_queries_only(params: Any) -> None:
    for stage in ("train_base", "train_incremental", "train_independent"):
        assert params[stage]["drop_unanswered"] is True


def test_guide_serves_the_models_that_the_preset_names(vlms: list[Vlm]) -> None:
    for vlm in vlms:
        assert vlm.endpoint is not None
        assert vlm.endpoint.model in GUIDE


def test_mappings_of_the_guide_can_be_read() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        mapping = parse(Mappings, YAML(typ="safe").load(block), "guide").queries
        assert mapping is not None
        assert {*mapping.columns, *mapping.constants} <= set(QUERIES)
