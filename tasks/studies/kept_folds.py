"""Cross-fitted confidences on disk: one small parquet file per fit, and `study.json` that says what all are made of.

A file holds query id, VLM, seed, fold and confidence in half precision; no label, question or answer. Folds of two
studies are never mixed: `study.json` holds a fingerprint, another one is refused, and refitting removes every kept fold
before the new fingerprint is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from arms_model.errors import ConfigError, DataError
from tasks.common.files import read_json, write_json
from tasks.common.tables import SCHEMAS, read_table, write_table


@dataclass(frozen=True, kw_only=True)
class Job:
    """One fit: a method on one fold, with one seed where the method has seeds.

    Attributes:
        grouping: what the folds are made from.
        method: the router or a baseline.
        seed: 0 for methods without seeds.
        fold: 0 to 4, the one held out.
    """

    grouping: str
    method: str
    seed: int
    fold: int

    def path(self, folder: Path) -> Path:
        """Where its confidences are kept."""
        method = self.method.replace(" ", "-")
        return folder / self.grouping / method / f"seed{self.seed}-fold{self.fold}.parquet"


def kept_files(folder: Path) -> list[Path]:
    """Every kept fold of a study."""
    return sorted(folder.glob("*/*/seed*-fold*.parquet"))


def keep(
    job: Job,
    folder: Path,
    *,
    queries: Sequence[str],
    vlms: Sequence[str],
    asked: NDArray[np.bool_],
    confidences: NDArray[np.floating],
) -> None:
    """Write a fold's confidences of the pairs that were asked.

    Args:
        job: the fit.
        folder: of the study.
        queries: the T query ids of the fold.
        vlms: K names.
        asked: (T, K) bool.
        confidences: (T, K) in [0, 1].
    """
    row, column = np.nonzero(asked)
    frame = pl.DataFrame(
        {
            "query_id": np.asarray(queries)[row].tolist(),
            "vlm": np.asarray(vlms)[column].tolist(),
            "seed": [job.seed] * len(row),
            "fold": [job.fold] * len(row),
            "confidence": confidences[row, column].astype(np.float16),
        },
        schema=SCHEMAS["fold"],
    )
    write_table(job.path(folder), frame, "fold")


def read_confidences(
    jobs: Sequence[Job], folder: Path, *, queries: Sequence[str], vlms: Sequence[str]
) -> NDArray[np.float32]:
    """The kept folds of one method and seed as one matrix.

    Args:
        jobs: all folds.
        folder: of the study.
        queries: N query ids.
        vlms: K names.

    Returns:
        (N, K) float32; NaN for pairs that were not asked.

    Raises:
        DataError: a fold is missing or broken, or holds a query or VLM that is not known.
    """
    row_of = {query: row for row, query in enumerate(queries)}
    column_of = {vlm: column for column, vlm in enumerate(vlms)}
    scores = np.full((len(queries), len(vlms)), np.nan, dtype=np.float32)
    for job in jobs:
        frame = read_table(job.path(folder), "fold")
        strangers = {*frame["query_id"]} - {*row_of} | {*frame["vlm"]} - {*column_of}
        if strangers:
            raise DataError(
                f"{job.path(folder)} holds queries or VLMs that the workspace lacks (first: {sorted(strangers)[:20]}); "
                "remove the file and run the study again."
            )
        rows, columns = [row_of[query] for query in frame["query_id"]], [column_of[vlm] for vlm in frame["vlm"]]
        scores[rows, columns] = frame["confidence"].cast(pl.Float32).to_numpy()
    return scores


def open_study(folder: Path, ours: Mapping[str, str], *, is_refit: bool) -> None:
    """Make sure that all folds of `folder` are of one study, ours, before any is added.

    Args:
        folder: of the study.
        ours: what our folds are made of, by name.
        is_refit: remove what is kept instead of going on from it.

    Raises:
        ConfigError: the folder's folds were made of something else.
    """
    path = folder / "study.json"
    if is_refit:
        for kept in (*kept_files(folder), folder / "table.csv", folder / "tables.md"):
            kept.unlink(missing_ok=True)  # all of them before the new study.json: a stopped refit mixes nothing
    elif kept_files(folder):
        theirs = read_json(path) if path.exists() else {}
        differing = [name for name in ours if theirs.get(name) != ours[name]]
        if differing:
            raise ConfigError(
                f"{folder} holds folds of another study ({', '.join(differing)} differ). Give another --output, or "
                "--refit to remove them and fit all again in their place."
            )
    write_json(path, dict(ours))
