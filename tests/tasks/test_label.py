"""The stage `label`, run as its users run it, on tables that are made up here."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from arms_model.errors import DataError
from tasks import label
from tasks.common import labelling
from tasks.common.tables import SCHEMAS, write_table

QUERIES = [
    {"query_id": "shape/1", "choices": ["circle", "square"], "answer": "B", "answer_type": "choice"},
    {"query_id": "count/1", "choices": [], "answer": "1234", "answer_type": "free"},
    {"query_id": "comma/1", "choices": None, "answer": "3.5", "answer_type": "free", "language": "de"},
]
ANSWERS = [
    {"query_id": "shape/1", "vlm": "one", "output": "The answer is (b)."},
    {"query_id": "shape/1", "vlm": "two", "output": "", "imported_correct": True},
    {"query_id": "count/1", "vlm": "one", "output": "1,234 dots", "imported_correct": False},
    {"query_id": "count/1", "vlm": "two", "output": None, "imported_correct": True},
    {"query_id": "comma/1", "vlm": "one", "output": "3,5", "cost_usd": 0.1},
    {"query_id": "comma/1", "vlm": "two", "error": "timed out"},
    {"query_id": "shape/1", "vlm": "three", "error": "refused", "output": "B", "imported_correct": True},
]
EXPECTED = [
    ("comma/1", "one", True, "3.5"),
    ("count/1", "one", True, "1234"),  # our reading stands, not the imported label beside it
    ("count/1", "two", True, None),
    ("shape/1", "one", True, "B"),
    ("shape/1", "two", False, None),
]


def table(name: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """A table of the contract; what a row leaves out is filled in or null."""
    text = {"question": "How?", "language": "en", "image": "a.png", "image_sha256": "0"} if name == "queries" else {}
    filler = dict.fromkeys(("benchmark", "task", "image_group", "template"), "x") if name == "queries" else {}
    return pl.DataFrame([{**filler, **text, **row} for row in rows], schema=SCHEMAS[name])


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params, a query set, answers in pool base and an empty pool new."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("label: {}\ngates: {label: {}}\n")
    write_table(Path("queries/queries.parquet"), table("queries", QUERIES), "queries")
    write_collect("base", ANSWERS)
    write_collect("new", [])
    return tmp_path


def write_collect(pool: str, rows: list[dict[str, Any]]) -> None:
    write_table(Path(f"collect/{pool}.parquet"), table("collect", rows), "collect")


def test_label_judges_outputs_and_keeps_imported_labels(workspace: Path) -> None:
    assert label.main() == 0
    written = pl.read_parquet("label/base.parquet")
    assert dict(written.schema) == SCHEMAS["label"]
    assert written.rows() == EXPECTED


def test_label_of_an_empty_pool_is_an_empty_table(workspace: Path) -> None:
    assert label.main() == 0
    written = pl.read_parquet("label/new.parquet")
    assert written.height == 0
    assert dict(written.schema) == SCHEMAS["label"]


def test_label_leaves_base_byte_identical_when_new_answers_arrive(workspace: Path) -> None:
    assert label.main() == 0
    before = Path("label/base.parquet").read_bytes()
    write_collect("new", [{"query_id": "count/1", "vlm": "late", "output": "7"}])
    write_collect("base", ANSWERS[::-1])
    assert label.main() == 0
    assert Path("label/base.parquet").read_bytes() == before
    assert pl.read_parquet("label/new.parquet").rows() == [("count/1", "late", False, "7")]


def test_label_gives_an_error_row_no_label() -> None:
    rows = [{"query_id": "shape/1", "vlm": "one", "error": "timed out", "imported_correct": True}]
    assert labelling.labels(table("collect", rows), queries=table("queries", QUERIES), where="here").height == 0


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"query_id": "lost/1", "vlm": "one", "output": "B"}, "not in queries/queries.parquet"),
        ({"query_id": "lost/1", "vlm": "one", "error": "timed out"}, "not in queries/queries.parquet"),
    ],
)
def test_label_refuses_bad_rows_by_name_and_writes_nothing(
    workspace: Path, row: dict[str, Any], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write_collect("new", [row])
    assert label.main() == 1
    message = capfd.readouterr().err
    assert told in message
    assert f"first [('{row['query_id']}', 'one')]" in message
    assert "collect/new.parquet" in message
    assert not Path("label").exists()


def test_label_names_at_most_twenty_rows() -> None:
    rows = [{"query_id": f"lost/{number:02d}", "vlm": "one", "output": "B"} for number in range(30)]
    with pytest.raises(DataError, match=r"30, first .*lost/19'") as refused:
        labelling.labels(table("collect", rows), queries=table("queries", QUERIES), where="here")
    assert "lost/20" not in str(refused.value)


def test_label_refuses_an_unknown_setting(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (workspace / "params.yaml").write_text("label: {normalizer: exact}\n")
    assert label.main() == 2
    assert "label.normalizer: unknown key" in capfd.readouterr().err


def test_label_without_collected_answers_says_what_to_run(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("collect/new.parquet").unlink()
    assert label.main() == 1
    assert "collect/new.parquet is missing" in capfd.readouterr().err
    assert not Path("label").exists()
