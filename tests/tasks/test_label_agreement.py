"""The study of label agreement, on pairs that are made up here."""

from pathlib import Path

import polars as pl
import pytest

from arms_model.errors import DataError
from tasks.studies.label_agreement import agreement, disagreements

PAIRS = pl.DataFrame(
    [
        ("q1", "one", "maths", True, True),
        ("q1", "two", "maths", True, False),
        ("q2", "one", "maths", False, True),
        ("q2", "two", "maths", True, True),
        ("q3", "one", "maths", False, False),
        ("q4", "one", "charts", True, True),
    ],
    schema=["query_id", "vlm", "benchmark", "ours", "reference"],
    orient="row",
)


def test_agreement_counts_each_benchmark_alone() -> None:
    # maths: 3 of 5 alike; ours calls 3 right, 2 of them rightly; the reference calls 3 right, 2 of them found by ours
    assert agreement(PAIRS).rows() == [
        ("charts", 1, 1, 1.0, 1.0, 1.0),
        ("maths", 5, 3, 0.6, pytest.approx(2 / 3), pytest.approx(2 / 3)),
    ]


def test_disagreements_keep_judgements_and_mark_new_pairs(tmp_path: Path) -> None:
    known = tmp_path / "known.csv"
    known.write_text("query_id,vlm,benchmark,fault,cause\nq1,two,maths,reference,two forms\nq9,one,maths,ours,gone\n")
    assert disagreements(PAIRS, known=known).rows() == [
        ("q1", "two", "maths", "reference", "two forms"),
        ("q2", "one", "maths", "unjudged", ""),
    ]
    assert disagreements(PAIRS, known=tmp_path / "missing.csv")["fault"].to_list() == ["unjudged", "unjudged"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("query_id,vlm,fault\nq1,two,ours\n", "expected"),
        ("query_id,vlm,benchmark,fault,cause\nq1,two,maths,theirs,x\n", "theirs"),
    ],
)
def test_disagreements_refuse_a_spoilt_list(tmp_path: Path, text: str, told: str) -> None:
    known = tmp_path / "known.csv"
    known.write_text(text)
    with pytest.raises(DataError, match=told):
        disagreements(PAIRS, known=known)
