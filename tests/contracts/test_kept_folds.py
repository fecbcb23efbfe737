"""Rules for the cross-fitted folds in the repository: only what others need to score them again, small, no labels."""

import subprocess
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs/crossfit"
METHODS = {"ARMS", "kNN", "mean-of-kNN-and-ridge"}
TABLES = {"study.json", "table.csv", "tables.md"}
MAX_BYTES = 10 * 1024**2
COLUMNS = {
    "query_id": pl.String, "vlm": pl.String, "seed": pl.Int16, "fold": pl.Int16, "confidence": pl.Float16,
}  # fmt: skip


def tracked() -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "--", "docs/crossfit"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [ROOT / name for name in result.stdout.splitlines()]


def is_ignored(path: str) -> bool:
    return (
        subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", "--no-index", path], check=False).returncode == 0
    )


def test_tracked_folds_are_of_the_methods_others_score_again() -> None:
    folds = [path.relative_to(FOLDER) for path in tracked() if path.suffix == ".parquet"]
    assert {path.relative_to(FOLDER).as_posix() for path in tracked()} - {fold.as_posix() for fold in folds} <= TABLES
    assert {fold.parts[0] for fold in folds} <= {"image_group", "template"}
    assert {fold.parts[1] for fold in folds} <= METHODS
    assert folds or not tracked()  # tables without the folds they were made of


def test_tracked_folds_hold_confidences_in_half_precision_and_no_labels() -> None:
    for path in tracked():
        if path.suffix == ".parquet":
            assert dict(pl.read_parquet_schema(path)) == COLUMNS, path


def test_tracked_folds_are_small() -> None:
    assert sum(path.stat().st_size for path in tracked()) <= MAX_BYTES


@pytest.mark.parametrize("grouping", ["image_group", "template"])
def test_git_ignores_all_other_folds(grouping: str) -> None:
    assert not [method for method in METHODS if is_ignored(f"docs/crossfit/{grouping}/{method}/seed0-fold0.parquet")]
    others = ("best-single", "ridge", "logistic-regression", "best-per-task")
    assert all(is_ignored(f"docs/crossfit/{grouping}/{method}/seed0-fold0.parquet") for method in others)
    assert is_ignored(f"docs/crossfit/{grouping}/ARMS/.seed0-fold0.parquet.x1.tmp/seed0-fold0.parquet")
    assert not [name for name in TABLES if is_ignored(f"docs/crossfit/{name}")]
