"""Our labels against the reference labels of the recorded real outputs: the bounds that the normaliser must hold."""

import os
from pathlib import Path

import pytest

from tasks.studies.label_agreement import FAULTS, agreement, disagreements, judged_pairs

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("ARMS_REAL_DATA" not in os.environ, reason="ARMS_REAL_DATA names no folder of recorded outputs"),
]
LISTED = Path(__file__).resolve().parents[2] / "docs" / "label-disagreements.csv"


def test_labels_agree_with_the_reference_on_every_benchmark() -> None:
    pairs = judged_pairs(Path(os.environ["ARMS_REAL_DATA"]))
    figures = {row["benchmark"]: row for row in agreement(pairs).iter_rows(named=True)}
    assert set(figures) == {"MATH-Vision", "VisOnlyQA"}
    for benchmark, row in figures.items():
        assert row["agreement"] >= 0.99, benchmark
        assert row["precision"] >= 0.95, benchmark
        assert row["recall"] >= 0.95, benchmark


def test_every_disagreement_left_is_listed_with_whose_fault_it_is() -> None:
    left = disagreements(judged_pairs(Path(os.environ["ARMS_REAL_DATA"])), known=LISTED)
    assert set(left["fault"]) <= set(FAULTS) - {"unjudged"}
    assert all(left["cause"].to_list())
    assert LISTED.read_text() == left.write_csv()
