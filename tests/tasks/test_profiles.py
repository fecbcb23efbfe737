from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tasks.common.vlms import parse_vlms
from tasks.profiles import profiles

if TYPE_CHECKING:
    from tests.conftest import MakeTree

A = {"name": "a", "display_name": "Toy A", "provider": "Toy Lab", "pool": "base", "params_b": 2.0}
B = {"name": "b", "display_name": "Toy B", "provider": "Toy Lab", "pool": "new", "usd_per_mtok_in": 3.0}


def test_each_pool_has_its_own_vlms_and_no_price_stands_in_the_table() -> None:
    tables = profiles(parse_vlms([B, A]), sentence="full")
    assert tables["base"]["vlm"].to_list() == ["a"]
    assert tables["new"]["vlm"].to_list() == ["b"]
    assert tables["base"]["profile"].to_list() == ["a is a vision-language model by Toy Lab with 2 billion parameters."]
    assert not [column for column in tables["new"].columns if "usd" in column]


def test_empty_new_pool_gives_an_empty_table() -> None:
    tables = profiles(parse_vlms([A]), sentence="full")
    assert tables["new"].height == 0
    assert tables["new"].schema == tables["base"].schema


def test_name_variant_is_the_profile_name_alone_or_else_the_name() -> None:
    blocks = parse_vlms([A, B | {"profile_name": "Toy-B 2B", "pool": "base"}])
    assert profiles(blocks, sentence="name")["base"]["profile"].to_list() == ["a", "Toy-B 2B"]


def test_stage_leaves_the_base_table_as_it_is_when_a_new_vlm_a_price_or_a_display_name_comes(
    make_tree: MakeTree,
) -> None:
    tree = make_tree(vlms=[A])
    assert tree.stage("profiles").returncode == 0
    before = tree.sha256("profiles/base.parquet")
    params = tree.params()
    params["vlms"] = [B, A | {"usd_per_mtok_in": 9.0, "display_name": "Renamed"}]
    tree.write_params(params)
    assert tree.stage("profiles").returncode == 0
    assert tree.sha256("profiles/base.parquet") == before
    assert tree.table("profiles/new")["vlm"].to_list() == ["b"]


def test_misspelt_key_ends_the_stage_with_2_and_writes_nothing(make_tree: MakeTree) -> None:
    tree = make_tree(profiles={"sentense": "full"})
    result = tree.stage("profiles")
    assert result.returncode == 2
    assert result.stderr == "profiles: profiles.sentense: unknown key; did you mean 'sentence'?\n"
    assert not (tree.folder / "profiles").exists()


@pytest.mark.parametrize(
    ("vlms", "words"),
    [([A, A], "named twice: a"), ([B], "none of the 1 VLMs is in pool 'base'")],
    ids=["twice", "no base"],
)
def test_wrong_vlm_blocks_end_the_stage_with_2(make_tree: MakeTree, vlms: list[object], words: str) -> None:
    tree = make_tree(vlms=vlms)
    result = tree.stage("profiles")
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tree.folder / "profiles").exists()


def test_tables_do_not_depend_on_the_order_of_blocks(make_tree: MakeTree) -> None:
    tree = make_tree()
    tree.stage("profiles")
    before = tree.sha256("profiles")
    params = tree.params()
    params["vlms"] = list(reversed(params["vlms"]))
    tree.write_params(params)
    tree.stage("profiles")
    assert tree.sha256("profiles") == before
