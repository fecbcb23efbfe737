"""Result tables for people: which columns and lines they have, on a frame that is small enough to read."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from arms_model.evaluation import MACRO
from tasks.common.results import (
    caption,
    difference_lines,
    em_lines,
    markdown,
    pair_lines,
    print_tables,
    rows_frame,
    without_candidate,
    write_csv,
)

NAN = float("nan")


def row(method: str, kind: str, em: float, **more: float | str) -> dict[str, float | str]:
    figures = {"em_low": em - 0.1, "em_high": em + 0.1, "em_filtered": em * 1.25, "gap_recovered": em / 2}
    differences = {
        f"minus_{name}{part}": value
        for name, shift in (("best_single", 0.0), ("kNN", 0.2))
        for part, value in (("", em - 0.5 - shift), ("_low", em - 0.6 - shift), ("_high", em - 0.4 - shift))
    }
    counts = {"num_queries": 1200.0, "num_queries_filtered": 960.0, "em_seed_sd": NAN}
    return {"benchmark": MACRO, "method": method, "kind": kind, "em": em, **figures, **differences, **counts, **more}


def frame(**more: float | str) -> pl.DataFrame:
    figures = ("accuracy", "precision", "recall", "f1", "auroc", "log_loss", "brier", "ece", "ece_chosen")
    router = row("ARMS", "router", 0.625, **dict.fromkeys(figures, 0.75), **more)
    rows = [row("oracle", "limit", 0.875), row("best single", "baseline", 0.5), router]
    one = [{**line, "benchmark": "one", "em": 0.25} for line in rows]
    single = {**row("vlm", "single", 0.75), "benchmark": "one"}
    return rows_frame([*rows, *one, single], split="test_id", pool="base", without_candidate="BlindTest 12")


def test_em_lines_are_routers_then_baselines_then_the_limit() -> None:
    columns, lines = em_lines(frame())
    assert columns == ["method", "EM", "95 %", "one", "filtered", "gap"]
    assert lines == [
        ["ARMS", "0.6250", "[0.5250, 0.7250]", "0.2500", "0.7812", "0.312"],
        ["best single", "0.5000", "[0.4000, 0.6000]", "0.2500", "0.6250", "0.250"],
        ["oracle", "0.8750", "[0.7750, 0.9750]", "0.2500", "1.0938", "0.438"],
    ]


def test_deviation_over_seeds_has_a_column_where_there_are_seeds() -> None:
    columns, lines = em_lines(frame(em_seed_sd=0.0123))
    assert columns == ["method", "EM", "95 %", "seeds sd", "one", "filtered", "gap"]
    assert [line[3] for line in lines] == ["0.0123", "", ""]


def test_differences_to_every_reference_are_shown_with_their_intervals() -> None:
    columns, lines = difference_lines(frame())
    assert columns == ["method", "minus best single", "minus kNN"]
    assert lines[0] == ["ARMS", "+0.1250 [+0.0250, +0.2250]", "-0.0750 [-0.1750, +0.0250]"]


def test_pair_lines_leave_out_methods_without_confidences() -> None:
    columns, lines = pair_lines(frame())
    assert columns[:2] == ["method", "accuracy"]
    assert lines == [["ARMS", *["0.7500"] * 9]]


def test_caption_says_unfiltered_and_how_many_queries_on_both_views() -> None:
    assert caption(frame()) == (
        "unfiltered EM of 1,200 queries, macro average over benchmarks; filtered: the 960 that some VLM of the "
        "extended pool answers; without a candidate here: BlindTest 12"
    )
    everybody = frame().with_columns(without_candidate=pl.lit(""))
    assert "without a candidate" not in caption(everybody)


def test_queries_without_candidate_are_counted_per_benchmark() -> None:
    candidates = np.array([[True, False], [False, False], [False, False], [False, False], [False, True]])
    benchmark = np.array(["one", "two", "three", "two", "two"])
    assert without_candidate(benchmark, candidates) == "three 1, two 2"
    assert without_candidate(benchmark[:1], candidates[:1]) == ""


def test_printed_tables_name_the_best_single_vlms(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(frame(), "test_id, base pool")
    printed = capsys.readouterr().out
    assert "test_id, base pool: unfiltered EM of 1,200 queries" in printed
    assert "+0.1250 [+0.0250, +0.2250]" in printed
    assert "best single VLMs on one: vlm 0.7500" in printed


def test_markdown_is_a_table() -> None:
    assert markdown(["method", "EM"], [["ARMS", "0.5"]]) == "| method | EM |\n| --- | ---: |\n| ARMS | 0.5 |"


def test_csv_comes_back_to_six_decimals(tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", pl.DataFrame({"em": [1 / 3]}))
    assert (tmp_path / "table.csv").read_text() == "em\n0.333333\n"
