"""The gates on the real recorded outputs: the presets that read them pass with no warning that nobody declared."""

from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

from arms_model.settings import parse
from tasks.collect import recorded_answers
from tasks.common.gates import hold
from tasks.common.invariants import collect, label, profiles
from tasks.common.labelling import labels
from tasks.common.recorded import read_queries
from tasks.common.vlms import POOLS, parse_vlms
from tasks.profiles import profiles as make_profiles

pytestmark = pytest.mark.real
PRESETS = Path(__file__).resolve().parents[2] / "presets"


@pytest.mark.parametrize("preset", ["real.yaml", "paper.yaml"])
def test_preset_passes_its_gates_with_what_it_declares(
    real_data: Path, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = YAML(typ="safe").load((PRESETS / preset).read_text())
    vlms, queries = parse_vlms(params["vlms"]), read_queries(real_data)
    answers = recorded_answers(real_data, queries=queries, vlms=vlms)
    tables = {
        pool: answers.filter(pl.col("vlm").is_in([vlm.name for vlm in vlms if vlm.pool == pool])) for pool in POOLS
    }
    labelled = {pool: labels(table, queries=queries, where=pool) for pool, table in tables.items()}
    pairs = parse(collect.CollectGate, params["gates"]["collect"], "gates.collect")
    shares = parse(label.LabelGate, params["gates"]["label"], "gates.label")
    found = {
        "profiles": profiles.checks(make_profiles(vlms, sentence=params["profiles"]["sentence"])),
        "collect": collect.checks(tables, queries=queries, vlms=vlms, gate=pairs),
        "label": label.checks(labelled, tables, gate=shares),
    }
    records = {stage: hold(stage, checks).described() for stage, checks in found.items()}
    assert {stage: record["num_warnings"] for stage, record in records.items()} == dict.fromkeys(found, 0)
    # 6 of BlindTest's queries have three of its four VLMs
    assert {stage: record["num_declared"] for stage, record in records.items()} == dict.fromkeys(found, 0) | {
        "collect": 6
    }
