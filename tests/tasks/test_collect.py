from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from arms_model.errors import ConfigError, DataError
from tasks.collect import recorded_answers
from tasks.common.asked import asked, refuse_unknown_benchmarks
from tasks.common.recorded import read_outputs, read_queries
from tasks.common.vlms import Vlm

if TYPE_CHECKING:
    from tests.conftest import MakeTree, Recorded


def _vlm(name: str = "toy-big", **fields: Any) -> Vlm:
    return Vlm(**({"name": name, "display_name": name, "provider": "Toy Lab", "pool": "base"} | fields))


def _collect(recorded: Recorded, *vlms: Vlm) -> pl.DataFrame:
    return recorded_answers(recorded.folder, queries=read_queries(recorded.folder), vlms=vlms)


def _add_rows(recorded: Recorded, *rows: tuple[str, str, str | None, bool | None]) -> None:
    outputs = recorded.outputs
    recorded.write_outputs(pl.concat([outputs, pl.DataFrame(list(rows), schema=outputs.schema, orient="row")]))


def test_answers_of_named_vlms_come_with_their_labels(recorded: Recorded) -> None:
    answers = _collect(recorded, _vlm("toy-weak-1b"))
    assert answers["vlm"].unique().to_list() == ["toy-weak-1b"]
    assert answers.height == 90
    # the toy recorded set: toy-weak-1b is right on every seventh drawing, 0, 7, 14, 21, 28, in three benchmarks
    assert answers["imported_correct"].sum() == 15
    assert answers.filter(pl.col("output").is_null()).height == 30  # the benchmark that keeps right and wrong only


def test_pairs_that_were_not_asked_are_not_there(recorded: Recorded) -> None:
    answers = _collect(recorded, _vlm("toy-shape"))
    assert not answers["query_id"].str.starts_with("counts/").any()


def test_benchmarks_restrict_what_a_vlm_is_asked(recorded: Recorded) -> None:
    answers = _collect(recorded, _vlm(benchmarks=["counts", "verdicts"]), _vlm("toy-weak-1b"))
    asked_of = answers.filter(pl.col("vlm") == "toy-big")["query_id"].str.split("/").list.first().unique()
    assert sorted(asked_of) == ["counts", "verdicts"]
    assert answers.filter(pl.col("vlm") == "toy-weak-1b").height == 90


def test_larger_sample_keeps_the_smaller_one(recorded: Recorded) -> None:
    drawn = {n: set(_collect(recorded, _vlm(sample=n))["query_id"]) for n in (5, 20, 60, 500)}
    assert [len(ids) for ids in drawn.values()] == [5, 20, 60, 90]
    assert drawn[5] < drawn[20] < drawn[60] < drawn[500]


def test_sample_does_not_depend_on_the_order_of_queries(recorded: Recorded) -> None:
    frame = read_queries(recorded.folder)
    vlm = _vlm(sample=10)
    assert set(asked(frame, vlm)["query_id"]) == set(asked(frame.reverse(), vlm)["query_id"])


def test_vlms_with_the_same_sample_are_asked_the_same(recorded: Recorded) -> None:
    answers = _collect(recorded, _vlm("toy-big", sample=12), _vlm("toy-weak-1b", sample=12))
    ids = answers.group_by("vlm").agg(pl.col("query_id").sort())["query_id"].to_list()
    assert ids[0] == ids[1]


def test_measured_columns_are_taken_over_where_they_are(recorded: Recorded) -> None:
    outputs = recorded.outputs.with_columns(latency_s=pl.lit(0.5), error=pl.lit(None, pl.Null))
    recorded.write_outputs(outputs)
    answers = read_outputs(recorded.folder)
    assert answers["latency_s"].unique().to_list() == [0.5]
    assert answers["error"].null_count() == answers["cost_usd"].null_count() == answers.height
    assert answers.schema["error"] == pl.String


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: pl.concat([o, o.head(1)]), r"1 keys \(query_id, vlm\) stand twice, first: .*colours/000"),
        (lambda o: o.drop("output"), "column 'output' is missing"),
        (lambda o: o.drop("reference_correct"), "column 'reference_correct' is missing"),
        (
            lambda o: o.with_columns(pl.lit("yes").alias("reference_correct")),
            "'imported_correct' is String, expected Bool",
        ),
        (lambda o: o.with_columns(pl.lit("1").alias("latency_s")), "column 'latency_s' is String, expected Float64"),
        (lambda o: o.with_columns(error=pl.lit("time-out")), "an error is labelled correct.*colours/000"),
        (lambda o: o.with_columns(vlm=pl.lit(None, pl.String)), "column 'vlm' is null"),
    ],
    ids=["twice", "missing", "no label", "mistyped label", "mistyped latency", "error correct", "null vlm"],
)
def test_recorded_answers_that_break_the_contract_are_refused(recorded: Recorded, change: Any, message: str) -> None:
    recorded.write_outputs(change(recorded.outputs))
    with pytest.raises(DataError, match=message):
        read_outputs(recorded.folder)


def test_null_label_without_an_output_is_refused_with_its_rows(recorded: Recorded) -> None:
    _add_rows(recorded, ("colours/001", "toy-other", None, None))
    with pytest.raises(DataError, match=r"neither output nor reference_correct nor error.*'colours/001', 'toy-other'"):
        read_outputs(recorded.folder)


def test_null_label_beside_an_output_is_fine(recorded: Recorded) -> None:
    _add_rows(recorded, ("colours/001", "toy-other", "(A)", None))
    assert _collect(recorded, _vlm("toy-other"))["imported_correct"].to_list() == [None]


def test_answer_to_an_unknown_query_is_refused_with_its_rows(recorded: Recorded) -> None:
    _add_rows(recorded, ("colours/999", "toy-big", "(A)", True), ("colours/998", "toy-big", "(A)", True))
    with pytest.raises(DataError, match=r"2 in all, first: \('colours/998', 'toy-big'\); \('colours/999'"):
        _collect(recorded, _vlm())


def test_vlm_without_any_answer_is_refused_with_the_nearest_name(recorded: Recorded) -> None:
    with pytest.raises(DataError, match=r"no answer of 1 in all, first: toy-bigg.*did you mean 'toy-big'"):
        _collect(recorded, _vlm("toy-bigg"))


def test_block_that_leaves_a_vlm_no_answer_is_refused_with_what_it_has(recorded: Recorded) -> None:
    message = "toy-shape: benchmarks: none of its answers is of counts; it has answers on colours, verdicts. Name one"
    with pytest.raises(ConfigError, match=message):
        _collect(recorded, _vlm("toy-big"), _vlm("toy-shape", benchmarks=["counts"]))


def test_unknown_benchmark_in_a_block_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="toy-big: benchmarks: unknown benchmark 'color'; did you mean 'colours'"):
        refuse_unknown_benchmarks([_vlm(benchmarks=["color"])], {"colours", "counts"})


def test_stage_writes_both_pools_and_counts_what_it_left_out(make_tree: MakeTree) -> None:
    tree = make_tree()
    tree.stage("queries")
    result = tree.stage("collect")
    assert result.returncode == 0
    # toy-even-7b was not asked one benchmark, nor toy-shape: 3 x 90 + 60, and 90 + 60
    assert tree.table("collect/base").height == 330
    assert tree.table("collect/new").height == 150
    assert "left out: 90 answers of 1 VLMs that params do not name" in result.stderr


def test_new_vlm_leaves_the_base_table_byte_for_byte(make_tree: MakeTree, recorded: Recorded) -> None:
    tree = make_tree()
    tree.stage("queries")
    tree.stage("collect")
    before = tree.sha256("collect/base.parquet")
    params = tree.params()
    params["vlms"].append({"name": "toy-late", "display_name": "Toy Late", "provider": "Closed Lab", "pool": "new"})
    params["vlms"] = list(reversed(params["vlms"]))
    tree.write_params(params)
    recorded.write_outputs(recorded.outputs.reverse())
    assert tree.stage("collect").returncode == 0
    assert tree.sha256("collect/base.parquet") == before
    assert tree.table("collect/new")["vlm"].n_unique() == 3


def test_empty_new_pool_writes_an_empty_table(make_tree: MakeTree) -> None:
    tree = make_tree()
    params = tree.params()
    params["vlms"] = [vlm for vlm in params["vlms"] if vlm["pool"] == "base"]
    tree.write_params(params)
    tree.stage("queries")
    assert tree.stage("collect").returncode == 0
    assert tree.table("collect/new").height == 0
    assert tree.table("collect/new").schema == tree.table("collect/base").schema


def test_failed_stage_ends_with_1_and_leaves_what_stood_there(make_tree: MakeTree, recorded: Recorded) -> None:
    tree = make_tree()
    tree.stage("queries")
    tree.stage("collect")
    before = tree.sha256("collect")
    recorded.write_outputs(pl.concat([recorded.outputs, recorded.outputs.head(1)]))
    result = tree.stage("collect")
    assert result.returncode == 1
    assert "stand twice" in result.stderr
    assert "Traceback" not in result.stderr
    assert tree.sha256("collect") == before
    assert not tree.leftovers()


def test_output_file_that_is_no_parquet_is_named(recorded: Recorded) -> None:
    Path(recorded.folder / "outputs.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match=r"outputs\.parquet is no readable parquet file"):
        read_outputs(recorded.folder)


def test_answers_may_stand_in_a_table_of_somebodys_own(make_tree: MakeTree, recorded: Recorded, tmp_path: Path) -> None:
    columns = {"query_id": "id", "vlm": "model", "output": "response", "reference_correct": "right"}
    renamed = {"query_id": "id", "vlm": "model", "output": "response", "reference_correct": "right"}
    recorded.outputs.rename(renamed).write_csv(tmp_path / "answers.csv")
    tree = make_tree()
    assert tree.stage("queries").returncode == 0
    assert tree.stage("collect").returncode == 0
    before = tree.sha256("collect")
    params = tree.params()
    params["collect"] = {"source": "table", "table": {"file": str(tmp_path / "answers.csv"), "columns": columns}}
    tree.write_params(params)
    result = tree.stage("collect")
    assert result.returncode == 0, result.stderr
    assert tree.sha256("collect") == before


def test_source_table_needs_its_section(make_tree: MakeTree) -> None:
    tree = make_tree(collect={"source": "table"})
    assert tree.stage("queries").returncode == 0
    result = tree.stage("collect")
    assert result.returncode == 2
    assert "source table needs `table: {file: ..., columns: {...}}`" in result.stderr


def test_whole_benchmarks_are_asked_beside_the_sample(recorded: Recorded) -> None:
    frame = read_queries(recorded.folder)
    ids = asked(frame, _vlm(sample=7, whole_benchmarks=["counts"]))["query_id"]
    of = ids.str.split("/").list.first().value_counts(sort=True).rows()
    assert of[0] == ("counts", 30)
    assert ids.len() == 37
    restricted = asked(frame, _vlm(sample=7, whole_benchmarks=["counts"], benchmarks=["counts", "colours"]))
    assert sorted(set(restricted["benchmark"])) == ["colours", "counts"]


def test_sample_is_drawn_from_what_the_base_pool_answers_rightly(recorded: Recorded) -> None:
    base = _vlm("toy-weak-1b")
    new = _vlm(sample=5, sample_from="answered_by_base", pool="new")
    answers = _collect(recorded, base, new)
    right = recorded.outputs.filter((pl.col("vlm") == "toy-weak-1b") & pl.col("reference_correct"))["query_id"]
    drawn = set(answers.filter(pl.col("vlm") == "toy-big")["query_id"])
    assert len(drawn) == 5
    assert drawn <= set(right)
    assert answers.filter(pl.col("vlm") == "toy-weak-1b").height == 90


def test_unknown_whole_benchmark_is_refused_by_name(recorded: Recorded) -> None:
    with pytest.raises(ConfigError, match="whole_benchmarks: unknown benchmark 'count'; did you mean 'counts'"):
        refuse_unknown_benchmarks([_vlm(whole_benchmarks=["count"])], {"counts", "colours"})
