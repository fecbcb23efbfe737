from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from arms_model.errors import ConfigError
from arms_model.folds import assign_split
from arms_model.settings import parse
from tasks.common.recorded import read_queries
from tasks.split import SplitSettings, split_queries

if TYPE_CHECKING:
    from tests.conftest import MakeTree, Recorded


def _split(queries: pl.DataFrame, **settings: Any) -> dict[str, str]:
    frame = split_queries(queries, parse(SplitSettings, settings, "split"))
    return dict(frame.select("query_id", "split").iter_rows())


@pytest.fixture
def queries(recorded: Recorded) -> pl.DataFrame:
    return read_queries(recorded.folder)


@pytest.mark.parametrize("group_by", ["image_group", "template"])
def test_no_group_stands_in_two_splits(queries: pl.DataFrame, group_by: str) -> None:
    sides = _split(queries, group_by=group_by)
    frame = queries.with_columns(split=pl.col("query_id").replace_strict(sides))
    assert frame.group_by(group_by).agg(pl.col("split").n_unique())["split"].max() == 1
    assert frame["split"].n_unique() > 2


def test_every_query_gets_a_split(queries: pl.DataFrame) -> None:
    assert _split(queries).keys() == set(queries["query_id"])


def test_query_keeps_its_side_when_queries_are_added_or_moved(queries: pl.DataFrame) -> None:
    few = _split(queries.sample(40, seed=3))
    all_sides = _split(queries)
    assert {query_id: all_sides[query_id] for query_id in few} == few


def test_side_is_that_of_the_hash_of_the_group(queries: pl.DataFrame) -> None:
    shares = {"train": 0.55, "validation": 0.15, "gate": 0.10, "test_id": 0.20}
    groups = dict(queries.select("query_id", "image_group").iter_rows())
    assert all(side == assign_split(groups[query_id], shares) for query_id, side in _split(queries).items())


def test_shares_hold_over_many_groups() -> None:
    number = 20_000
    frame = pl.DataFrame({"query_id": [f"q{n}" for n in range(number)]}).with_columns(
        pl.col("query_id").alias(column) for column in ("benchmark", "task", "image_group", "template", "image_sha256")
    )
    counts = Counter(_split(frame).values())
    # four standard deviations of a share of 0.55 of 20,000 are 0.014
    expected = {"train": 0.55, "validation": 0.15, "gate": 0.10, "test_id": 0.20}
    assert {name: counts[name] / number for name in expected} == pytest.approx(expected, abs=0.014)
    assert counts.keys() == expected.keys()


def test_empty_group_counts_as_the_picture_itself(queries: pl.DataFrame) -> None:
    without = queries.with_columns(image_group=pl.lit(""))
    by_hash = queries.with_columns(image_group=pl.col("image_sha256"))
    assert _split(without) == _split(by_hash)


def test_held_out_benchmark_is_test_ood_and_changes_no_other_query(queries: pl.DataFrame) -> None:
    plain, held_out = _split(queries), _split(queries, ood={"benchmarks": ["counts"]})
    for query_id, side in held_out.items():
        assert side == ("test_ood" if query_id.startswith("counts/") else plain[query_id])


def test_held_out_task_is_test_ood(queries: pl.DataFrame) -> None:
    held_out = _split(queries, ood={"tasks": ["colour"]})
    assert {query_id for query_id, side in held_out.items() if side == "test_ood"} == {
        query_id for query_id in held_out if query_id.startswith("colours/")
    }


def test_group_inside_and_outside_a_held_out_benchmark_goes_to_test_ood_whole(queries: pl.DataFrame) -> None:
    shared = pl.col("query_id").is_in(["colours/000", "counts/000"])
    mixed = queries.with_columns(image_group=pl.when(shared).then(pl.lit("both")).otherwise("image_group"))
    held_out = _split(mixed, ood={"benchmarks": ["counts"]})
    assert held_out["colours/000"] == held_out["counts/000"] == "test_ood"
    assert held_out["colours/002"] == _split(mixed)["colours/002"]


@pytest.mark.parametrize(
    ("ood", "message"),
    [
        ({"benchmarks": ["count"]}, r"split\.ood\.benchmarks: no query has 'count'; did you mean 'counts'\?"),
        ({"tasks": ["color"]}, r"split\.ood\.tasks: no query has 'color'; did you mean 'colour'\?"),
    ],
)
def test_unknown_held_out_name_is_refused_with_the_nearest(
    queries: pl.DataFrame, ood: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _split(queries, ood=ood)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": {"train": 0.9}}, r"split\.shares: .*sum to 1.*sum 1\.35"),
        ({"shares": {"train": 1.5, "validation": -0.5, "gate": 0, "test_id": 0}}, "0 or more"),
        ({"group_by": "picture"}, r"split\.group_by: Input should be 'image_group' or 'template', got 'picture'"),
        ({"shares": {"trian": 0.5}}, r"split\.shares\.trian: unknown key; did you mean 'train'\?"),
    ],
)
def test_wrong_settings_are_refused_by_their_path(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(SplitSettings, settings, "split")


def test_stage_writes_its_table(make_tree: MakeTree) -> None:
    tree = make_tree()
    tree.stage("queries")
    assert tree.stage("split").returncode == 0
    table = tree.table("split/split")
    assert table.height == 90
    assert set(table["split"]) <= {"train", "validation", "gate", "test_id"}
    assert not tree.leftovers()


def test_stage_without_queries_says_which_stage_to_run(make_tree: MakeTree) -> None:
    result = make_tree().stage("split")
    assert result.returncode == 1
    assert "queries/queries.parquet is missing; run the stage that writes it" in result.stderr
    assert "Traceback" not in result.stderr
