"""A failing gate as a person meets it: the stage ends with 1, publishes nothing, and says what to look at."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save

from tests.browsers import CHROMIUM, needs_chromium
from tests.conftest import Tree, write_recorded, write_tree

if TYPE_CHECKING:
    from collections.abc import Callable

STAGES = ("queries", "profiles", "collect", "label", "split", "embed")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree in which the data stages ran; never write into it."""
    folder = tmp_path_factory.mktemp("sound")
    tree = write_tree(folder / "tree", recorded=write_recorded(folder / "recorded").folder)
    for stage in STAGES:
        result = tree.stage(stage)
        assert result.returncode == 0, result.stderr
        assert "warning" not in result.stderr
    return tree


@pytest.fixture
def tree(sound: Tree, tmp_path: Path) -> Tree:
    """A copy with a recorded set of its own, to spoil."""
    shutil.copytree(sound.folder.parent, tmp_path / "mine")
    tree = Tree(tmp_path / "mine/tree")
    params = tree.params()
    params["queries"]["folder"] = params["collect"]["folder"] = str(tmp_path / "mine/recorded")
    tree.write_params(params)
    return tree


def spoil_queries(tree: Tree) -> None:
    path = tree.folder.parent / "recorded/queries.parquet"
    question = pl.when(pl.col("query_id") == "counts/003").then(pl.lit(" ")).otherwise(pl.col("question"))
    pl.read_parquet(path).with_columns(question.alias("question")).write_parquet(path)


def spoil_profiles(tree: Tree) -> None:
    params = tree.params()
    one, other = (block for block in params["vlms"] if block["name"] in ("toy-colour-2b", "toy-count-2b"))
    one["profile_name"] = "Toy Colour 2B"
    other |= {key: value for key, value in one.items() if key != "name"}
    tree.write_params(params)


def spoil_collect(tree: Tree) -> None:
    path = tree.folder.parent / "recorded/outputs.parquet"
    is_lost = (pl.col("vlm") == "toy-big") & pl.col("query_id").is_in([f"counts/{number:03d}" for number in range(25)])
    pl.read_parquet(path).filter(~is_lost).write_parquet(path)


def spoil_label(tree: Tree) -> None:
    path = tree.folder / "collect/base.parquet"
    is_spoilt = (pl.col("vlm") == "toy-weak-1b") & (pl.col("query_id") == "colours/001")
    sound = pl.when(~is_spoilt)
    columns = [sound.then(pl.col(name)) for name in ("output", "imported_correct")]
    pl.read_parquet(path).with_columns(columns).write_parquet(path)


def spoil_split(tree: Tree) -> None:
    params = tree.params()
    params["gates"]["split"]["min_queries"]["gate"] = 80
    tree.write_params(params)


def spoil_embed(tree: Tree) -> None:
    """Put a vector that is no number into the store, in a shard that is what its name says."""
    (shard,) = (path for path in (tree.folder / ".arms/vectors").rglob("*.safetensors") if _width(path) == 33)
    content = load_file(shard)
    shard.unlink()
    content["vectors"][5, 2] = np.nan
    data = save(content)
    shard.with_name(f"{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)


def _width(shard: Path) -> int:
    return int(load_file(shard)["vectors"].shape[1])


CASES: dict[str, tuple[Callable[[Tree], None], str, str, int]] = {
    # stage: what spoils it, the invariant, what the message names, number of failing rows
    "queries": (spoil_queries, "queries_question_not_empty", r"query_id counts/003, question ' '", 1),
    "profiles": (spoil_profiles, "profiles_sentence_unique", r"vlm toy-colour-2b; profile .*, vlm toy-count-2b", 2),
    "collect": (spoil_collect, "collect_pair_present", r"query_id counts/019, vlm toy-big, benchmark counts\. All", 25),
    "label": (spoil_label, "label_every_answer", r"query_id colours/001, vlm toy-weak-1b", 1),
    "split": (spoil_split, "split_enough_queries", r"split gate, num_queries \d+, least 80", 1),
    "embed": (
        spoil_embed,
        "embed_vector_finite",
        r"encoder surface, row \d+, num_not_finite 1",
        5,
    ),  # five queries ask the same
}


@pytest.mark.parametrize("stage", STAGES)
def test_failing_gate_stops_the_stage_which_publishes_nothing(tree: Tree, tmp_path: Path, stage: str) -> None:
    spoil, name, named, num_rows = CASES[stage]
    spoil(tree)
    before = everything(tree)
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    result = tree.stage(stage, HOME=str(home), TMPDIR=str(temporary))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith(f"{stage}: 1 of ") or f"\n{stage}: 1 of " in result.stderr
    assert f"{name}: " in result.stderr
    assert re.search(named, result.stderr)
    kept = tree.folder / f".arms/gates/{stage}"
    assert f"All failing rows: .arms/gates/{stage}/{name}.parquet" in result.stderr
    assert pl.read_parquet(kept / f"{name}.parquet").height == num_rows
    assert f".arms/gates/{stage}/data_docs/index.html" in result.stderr
    assert (kept / "data_docs/index.html").is_file()
    assert everything(tree) == before  # what an earlier run published is still there, and nothing else is
    assert not list(home.iterdir())
    assert not list(temporary.iterdir())
    assert not tree.leftovers()


def everything(tree: Tree) -> dict[str, str]:
    """The hash of every file of a tree, but of those that a failing gate leaves and of who held a lock last."""
    own = (".arms/gates/", ".arms/locks/")
    files = {name: value for name, value in tree.sha256(".").items() if not name.startswith(own)}
    return {name: value for name, value in files.items() if "__pycache__" not in name}


def test_mended_stage_publishes_the_same_record_and_removes_the_failing_rows(tree: Tree) -> None:
    record = (tree.folder / "gates/collect.json").read_bytes()
    sealed = tree.sha256("collect")
    source = tree.folder.parent / "recorded/outputs.parquet"
    content = source.read_bytes()
    spoil_collect(tree)
    assert tree.stage("collect").returncode == 1
    source.write_bytes(content)
    assert tree.stage("collect").returncode == 0
    assert not (tree.folder / ".arms/gates/collect").exists()
    assert (tree.folder / "gates/collect.json").read_bytes() == record
    assert str(tree.folder).encode() not in record
    assert tree.sha256("collect") == sealed


def test_warning_is_said_once_and_recorded_and_the_stage_publishes(tree: Tree) -> None:
    params = tree.params()
    params["gates"]["label"] = {"positive_share": {"min": 0.2, "max": 0.98}}
    tree.write_params(params)
    labels = tree.sha256("label")
    result = tree.stage("label")
    assert result.returncode == 0
    assert result.stderr.count("label_positive_share") == 2  # its name, and the file of its rows
    assert "first: vlm toy-weak-1b, share 0.1" in result.stderr
    assert "gates.label.declared" in result.stderr
    assert tree.sha256("label") == labels
    assert (tree.folder / ".arms/gates/label/label_positive_share.parquet").is_file()
    assert '"num_warnings": 1' in (tree.folder / "gates/label.json").read_text()


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ({"label": {"declare": []}}, "gates.label.declare: unknown key; did you mean 'declared'?"),
        ({"label": {"positive_share": {"min": 0.9, "max": 0.1}}}, "min and max must be 0 <= min <= max <= 1"),
        ({}, "gates.label: missing"),
    ],
    ids=["unknown key", "bounds", "missing"],
)
def test_wrong_gate_in_params_ends_the_stage_with_2(tree: Tree, gates: dict[str, Any], words: str) -> None:
    params = tree.params()
    params["gates"] = gates
    tree.write_params(params)
    result = tree.stage("label")
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_pairs_of_an_endpoint_are_refused_before_anybody_is_asked(tree: Tree) -> None:
    params = tree.params()
    params["collect"] = {"source": "endpoint"}
    params["gates"]["collect"]["missing_pairs"] = {"toy-big": ["counts/001"]}
    tree.write_params(params)
    result = tree.stage("collect")
    assert result.returncode == 2
    assert "gates.collect.missing_pairs is for gaps in recorded answers" in result.stderr


@needs_chromium
def test_pages_of_a_failing_gate_open_in_a_browser_and_name_the_row(tree: Tree) -> None:
    from playwright.sync_api import sync_playwright

    spoil_label(tree)
    assert tree.stage("label").returncode == 1
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.route(re.compile("^https?://"), lambda route: route.abort())  # offline
        page.goto((tree.folder / ".arms/gates/label/data_docs/index.html").as_uri())
        index = page.inner_text("body")
        page.goto(page.locator("a[href*='validations/']").first.evaluate("link => link.href"))
        text = page.inner_text("body")
        browser.close()
    assert "query_id colours/001, vlm toy-weak-1b" in index
    for shown in (index, text):
        assert "label_every_answer: Every collected answer without an error has a label." in shown
    assert "1 unexpected values found" in text
