"""What `tasks.common.vlm_changes` says of two lists of VLMs, against dvc.yaml as it stands."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from arms_model.errors import ConfigError
from tasks.common.vlm_changes import EFFECTS, Change, Changes, compare
from tasks.common.vlms import Endpoint, Vlm

ROOT = Path(__file__).resolve().parents[2]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
READERS = {"profiles", "collect", "cascade_eval", "report", "register"}  # of the list of VLMs, and what follows any
NEW_POOL = READERS | {"train_incremental", "train_independent"}
ENDPOINT = {"name": "svc", "base_url": "http://127.0.0.1:1/v1", "model": "m", "generation": {"temperature": 0}}


def block(name: str = "a", **fields: Any) -> dict[str, Any]:
    common = {"name": name, "display_name": name.title(), "provider": "Toy Lab", "pool": "base", "endpoint": ENDPOINT}
    return common | fields


def params(*vlms: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {"vlms": list(vlms), "collect": {"source": "endpoint"}} | sections


def changes(before: dict[str, Any], after: dict[str, Any]) -> Changes:
    return compare(before, after, stages=STAGES)


def only_change(old: dict[str, Any], new: dict[str, Any]) -> Change:
    """What a change of one block beside an untouched base VLM is said to be."""
    (change,) = changes(params(block("other"), old), params(block("other"), new)).changes
    return change


@pytest.mark.parametrize("pool", ["base", "new"])
@pytest.mark.parametrize(
    "fields",
    [
        {"display_name": "Renamed"},
        {"usd_per_mtok_in": 3.0, "usd_per_call": 0.1},
        {"endpoint": ENDPOINT | {"base_url": "http://127.0.0.1:2/v1", "concurrency": 3, "timeout_s": 9.0}},
        {"endpoint": ENDPOINT | {"api_key_variable": "KEY", "requests_per_minute": 5.0, "retries": 1}},
    ],
)
def test_price_display_name_and_pace_train_nothing(pool: str, fields: dict[str, Any]) -> None:
    change = only_change(block(pool=pool), block(pool=pool, **fields))
    assert change.effect == "nothing"
    assert set(change.stages) == READERS
    assert "nothing that was trained changes" in change.does


@pytest.mark.parametrize(
    "fields",
    [
        {"params_b": 7.0},
        {"language_model": "ToyLM"},
        {"provider": "Other Lab"},
        {"profile_name": "Toy A"},
        {"released": "2024-01"},
    ],
)
def test_profile_trains_what_learned_the_vlm_and_asks_nobody(fields: dict[str, Any]) -> None:
    of_new = only_change(block(pool="new"), block(pool="new", **fields))
    of_base = only_change(block(), block(**fields))
    assert of_new.effect == of_base.effect == "profile"
    assert set(of_new.stages) == NEW_POOL
    assert set(of_base.stages) == READERS | {"train_base", "train_incremental"}


def test_profile_name_that_says_the_name_is_no_change() -> None:
    assert changes(params(block()), params(block(profile_name="a"))).changes == ()


@pytest.mark.parametrize(
    "setting",
    [
        {"name": "other-svc"},
        {"model": "m2"},
        {"prompt": "Q: {question}"},
        {"system": "Be brief."},
        {"generation": {"temperature": 1}},
        {"image_detail": "low"},
        {"max_side": None},
    ],
)
def test_what_stands_in_an_answers_key_asks_again(setting: dict[str, Any]) -> None:
    of_new = only_change(block(pool="new"), block(pool="new", endpoint=ENDPOINT | setting))
    of_base = only_change(block(), block(endpoint=ENDPOINT | setting))
    assert of_new.effect == of_base.effect == "answers"
    assert set(of_new.stages) == NEW_POOL | {"label"}
    assert set(of_base.stages) == READERS | {"label", "train_base", "train_incremental"}


def test_endpoint_of_recorded_answers_changes_nothing() -> None:
    recorded = {"source": "recorded"}
    other = block(endpoint=ENDPOINT | {"model": "m2"})
    (change,) = changes(params(block(), collect=recorded), params(other, collect=recorded)).changes
    assert change.effect == "nothing"


def test_sample_asks_other_queries() -> None:
    change = only_change(block(pool="new", sample=10), block(pool="new", sample=20))
    assert (change.effect, set(change.stages)) == ("questions", NEW_POOL | {"label"})


def test_added_and_removed_vlms_follow_their_pool() -> None:
    found = changes(params(block(), block("gone", pool="new")), params(block(), block("late", pool="new")))
    assert [(each.vlm, each.kind) for each in found.changes] == [("gone", "removed"), ("late", "added")]
    assert all(set(each.stages) == NEW_POOL | {"label"} for each in found.changes)
    (of_base,) = changes(params(block()), params(block(), block("late"))).changes
    assert set(of_base.stages) == READERS | {"label", "train_base", "train_incremental"}
    assert "the base router is trained again" in of_base.does


def test_move_between_pools_trains_all_routers_again() -> None:
    change = only_change(block(pool="new"), block(pool="base"))
    assert change.effect == "pool"
    assert set(change.stages) == NEW_POOL | {"label", "train_base"}


def test_base_answers_that_decide_a_sample_reach_the_new_pool() -> None:
    sampled = block("late", pool="new", sample=5, sample_from="answered_by_base")
    other = block(endpoint=ENDPOINT | {"model": "m2"})
    (change,) = changes(params(block(), sampled), params(other, sampled)).changes
    assert "train_independent" in change.stages


def test_furthest_effect_counts() -> None:
    change = only_change(block(), block(params_b=2.0, usd_per_call=0.0, endpoint=ENDPOINT | {"model": "m2"}))
    assert [setting.effect for setting in change.settings] == ["answers", "profile", "nothing"]
    assert change.effect == "answers"


def test_every_setting_has_an_effect_that_was_decided() -> None:
    # a setting that somebody adds must be sorted into one of the kinds, not fall into 'nothing' by itself
    nothing = {"display_name", "usd_per_mtok_in", "usd_per_mtok_out", "usd_per_image", "usd_per_call"}
    of_endpoint = {
        "base_url", "served_as", "api_key_variable", "image_tokens", "concurrency", "requests_per_minute", "timeout_s",
        "retries", "max_answer_bytes", "budget_usd",
    }  # fmt: skip
    found = {field.name: _effect_of(field.name) for field in dataclasses.fields(Vlm) if field.name != "endpoint"}
    inner = {field.name: _effect_of(f"endpoint.{field.name}") for field in dataclasses.fields(Endpoint)}
    assert {name for name, effect in found.items() if effect == "nothing"} == nothing | {"name"}
    assert {name for name, effect in inner.items() if effect == "nothing"} == of_endpoint


def _effect_of(setting: str) -> str:
    from tasks.common.vlm_changes import _effect

    return _effect(setting, asks=True)


def test_old_list_may_be_of_another_version() -> None:
    old = block(colour="blue", endpoint=ENDPOINT | {"speed": 3}) | {"display_name": None}
    (change,) = changes(params(old), params(block(display_name="A"))).changes
    assert {setting.setting for setting in change.settings} == {"colour", "display_name", "endpoint.speed"}
    assert change.effect == "nothing"
    assert EFFECTS[0] == "nothing"


def test_other_sections_are_named() -> None:
    found = changes(params(block(), train_base={"a": 1}), params(block(), train_base={"a": 2}, report={}))
    assert (found.changes, found.sections) == ((), ("report", "train_base"))


@pytest.mark.parametrize("vlms", [None, "a", [{"pool": "base"}], ["a"]])
def test_old_list_that_is_none_is_refused(vlms: Any) -> None:
    with pytest.raises(ConfigError, match="no list of blocks with names"):
        changes({"vlms": vlms}, params(block()))


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tasks.common.vlm_changes", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_command_prints_one_document_or_words(tmp_path: Path) -> None:
    before, after = tmp_path / "before.yaml", tmp_path / "after.yaml"
    YAML().dump(params(block()), before)
    YAML().dump(params(block(), block("late", pool="new")), after)
    document = json.loads(command("--before", before, "--after", after, "--json").stdout)
    assert document["vlms"] == {"a": "base", "late": "new"}
    assert [(change["vlm"], change["kind"]) for change in document["changes"]] == [("late", "added")]
    assert document["asks"] is True
    assert command("--before", before, "--after", after).stdout.startswith("late (new): added; it alone is asked")
    assert command("--before", after, "--after", after).stdout == "nothing changed\n"


@pytest.mark.parametrize(
    ("content", "words"), [(None, "there is no"), ("a: [", "no valid YAML"), ("- a", "expected sections, got list")]
)
def test_file_that_cannot_be_read_ends_with_2(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "before.yaml"
    if content is not None:
        path.write_text(content)
    result = command("--before", path)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
