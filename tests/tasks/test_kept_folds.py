"""Kept folds: what a file holds, how folds come back, and that two studies never mix."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from arms_model.errors import ConfigError, DataError
from tasks.studies.kept_folds import Job, keep, kept_files, open_study, read_confidences

OURS = {"format": "1", "data": "abc"}
QUERIES, VLMS = ["q1", "q2", "q3"], ["a", "b"]


def job(fold: int, method: str = "mean of two", grouping: str = "template") -> Job:
    return Job(grouping=grouping, method=method, seed=0, fold=fold)


def fill(folder: Path) -> None:
    """Queries q1 and q3 in fold 0, q2 in fold 1; q3 was not asked of a."""
    first = np.array([[0.1, 0.2], [0.9, 0.3]])
    keep(job(0), folder, queries=["q1", "q3"], vlms=VLMS, asked=np.array([[1, 1], [0, 1]]) == 1, confidences=first)
    keep(job(1), folder, queries=["q2"], vlms=VLMS, asked=np.ones((1, 2), dtype=bool), confidences=np.array([[1, 0]]))


def test_file_holds_ids_and_half_precision_confidences_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "template/mean-of-two/seed0-fold0.parquet"
    assert kept_files(tmp_path)[0] == path
    frame = pl.read_parquet(path)
    assert dict(frame.schema) == {
        "query_id": pl.String, "vlm": pl.String, "seed": pl.Int16, "fold": pl.Int16, "confidence": pl.Float16,
    }  # fmt: skip
    assert frame.select("query_id", "vlm").rows() == [("q1", "a"), ("q1", "b"), ("q3", "b")]


def test_folds_come_back_as_one_matrix_to_half_precision(tmp_path: Path) -> None:
    fill(tmp_path)
    scores = read_confidences([job(0), job(1)], tmp_path, queries=QUERIES, vlms=VLMS)
    assert np.isnan(scores[2, 0])
    np.testing.assert_allclose(scores, [[0.1, 0.2], [1, 0], [np.nan, 0.3]], rtol=2**-11)


@pytest.mark.parametrize(("queries", "vlms", "stranger"), [(["q1", "q2"], VLMS, "q3"), (QUERIES, ["a"], "b")])
def test_fold_with_strangers_is_refused_by_name(
    tmp_path: Path, queries: list[str], vlms: list[str], stranger: str
) -> None:
    fill(tmp_path)
    with pytest.raises(DataError, match=rf"fold0\.parquet holds queries or VLMs .* \(first: \['{stranger}'\]\)"):
        read_confidences([job(0)], tmp_path, queries=queries, vlms=vlms)


def test_broken_and_missing_folds_are_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(DataError, match=r"seed0-fold2\.parquet is missing"):
        read_confidences([job(2)], tmp_path, queries=QUERIES, vlms=VLMS)
    path = job(0).path(tmp_path)
    pl.read_parquet(path).with_columns(pl.col("confidence").cast(pl.Float64)).write_parquet(path)
    with pytest.raises(DataError, match="column 'confidence' is Float64, expected Float16"):
        read_confidences([job(0)], tmp_path, queries=QUERIES, vlms=VLMS)


def test_same_study_goes_on_and_another_is_refused_by_what_differs(tmp_path: Path) -> None:
    open_study(tmp_path, OURS, is_refit=False)
    fill(tmp_path)
    open_study(tmp_path, OURS, is_refit=False)
    assert len(kept_files(tmp_path)) == 2
    with pytest.raises(
        ConfigError, match=r"folds of another study \(data differ\)\. Give another --output, or --refit"
    ):
        open_study(tmp_path, OURS | {"data": "xyz"}, is_refit=False)
    assert json.loads((tmp_path / "study.json").read_text()) == OURS


def test_folds_that_nothing_tells_of_are_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(ConfigError, match=r"another study \(format, data differ\)"):
        open_study(tmp_path, OURS, is_refit=False)


def test_refit_removes_every_kept_fold_before_it_begins(tmp_path: Path) -> None:
    open_study(tmp_path, OURS, is_refit=False)
    fill(tmp_path)
    keep(job(0, "kNN", "image_group"), tmp_path, queries=["q1"], vlms=VLMS, asked=np.ones((1, 2)) == 1,
         confidences=np.zeros((1, 2)))  # fmt: skip
    (tmp_path / "tables.md").write_text("of the old study")
    open_study(tmp_path, OURS | {"data": "xyz"}, is_refit=True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["study.json"]
    open_study(tmp_path, OURS | {"data": "xyz"}, is_refit=False)  # as after a refit that was stopped at once


def test_refit_stopped_while_it_removes_never_leaves_old_folds_under_the_new_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_study(tmp_path, OURS, is_refit=False)
    fill(tmp_path)
    unlink, removed = Path.unlink, []

    def stopped(self: Path, missing_ok: bool = False) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(self)
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", stopped)
        open_study(tmp_path, OURS | {"data": "xyz"}, is_refit=True)
    assert len(kept_files(tmp_path)) == 1
    with pytest.raises(ConfigError, match="data differ"):
        open_study(tmp_path, OURS | {"data": "xyz"}, is_refit=False)
