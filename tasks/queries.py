"""Stage `queries`: the query set and its pictures, copied in, so that all later stages read only what stands here.

Source `recorded`: files that somebody else wrote (`tasks/common/recorded.py` says in which layout). Source `table`: a
csv, tsv, parquet or jsonl file whose columns `queries.table` names (`tasks/common/mapped.py`). Source `sandbox`:
questions of the embedded world, made from a seed by `python -m sandbox.questions`, then checked as if recorded. All
faults of the pictures are gathered before the stage stops, so that one run names them.

Run: `python -m tasks.queries`; reads the source, writes `queries/queries.parquet`, `queries/images/` and
`gates/queries.json`.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from arms_model.errors import DataError
from tasks.common import mapped, recorded
from tasks.common.files import folder_written_whole
from tasks.common.gates import hold
from tasks.common.invariants.queries import checks
from tasks.common.params import NoBounds, load_gate, load_section
from tasks.common.stage import run_stage
from tasks.common.tables import write_table

log = logging.getLogger(__name__)
FOLDER = Path("queries")


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """Section `queries.sandbox`.

    Attributes:
        seed: another one gives other pictures and questions.
        num_queries: how many questions; a larger number keeps the smaller one's.
    """

    seed: int
    num_queries: int

    def __post_init__(self) -> None:
        if self.num_queries < 1:
            raise ValueError(f"num_queries must be 1 or more, not {self.num_queries}")


@dataclass(frozen=True, kw_only=True)
class QueriesSettings:
    """Section `queries`.

    Attributes:
        source: where queries come from.
        folder: a recorded folder; None for the one that ARMS_REAL_DATA names.
        table: the file and what its columns are; needed for its source only.
        sandbox: what the sandbox makes; needed for its source only.
        max_pixels: a picture with more is refused from its header, before it is decoded.
    """

    source: Literal["recorded", "table", "sandbox"]
    folder: str | None = None
    table: mapped.TableMapping | None = None
    sandbox: SandboxSettings | None = None
    max_pixels: int = 100_000_000

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels must be 1 or more, not {self.max_pixels}")
        if self.source == "sandbox" and self.sandbox is None:
            raise ValueError("source sandbox needs `sandbox: {seed: 0, num_queries: 1000}`")
        if self.source == "table" and self.table is None:
            raise ValueError("source table needs `table: {file: ..., columns: {...}}`")


def copy_query_set(source: Path, target: Path, *, max_pixels: int) -> pl.DataFrame:
    """Copy a recorded query set's pictures into `target`.

    Args:
        source: the recorded folder.
        target: an empty folder.
        max_pixels: see `QueriesSettings`.

    Returns:
        Table `queries`; `image` is relative to `target/images`.

    Raises:
        DataError: the table breaks its contract, or pictures are missing, broken or changed; rows are named.
    """
    queries = recorded.read_queries(source)
    _copy_pictures(queries, source, target, max_pixels=max_pixels)
    return queries.with_columns(pl.col("image").str.strip_prefix(f"{recorded.IMAGES}/"))


def _copy_pictures(queries: pl.DataFrame, source: Path, target: Path, *, max_pixels: int) -> None:
    faults = []
    (target / recorded.IMAGES).mkdir()
    pictures = queries.sort("query_id").unique(["image", "image_sha256"], keep="first", maintain_order=True)
    for query_id, image, sha256 in pictures.select("query_id", "image", "image_sha256").iter_rows():
        try:
            content = recorded.read_picture(source, image, sha256=sha256, max_pixels=max_pixels)
        except DataError as error:
            faults.append(f"query {query_id}: {error}")
            continue
        place = target / image
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    if faults:
        raise DataError(f"{source}: pictures that cannot be used, {recorded.named(faults, len(faults))}")


@contextmanager
def source_folder(settings: QueriesSettings) -> Iterator[Path]:
    """The recorded folder that `settings` mean; the sandbox's is made here and gone afterwards.

    Raises:
        ConfigError: there is no such folder.
        DataError: the sandbox could not make its questions.
    """
    if settings.sandbox is None or settings.source != "sandbox":
        yield recorded.source_folder(settings.folder, where="queries.folder")
        return
    with tempfile.TemporaryDirectory(prefix="arms-sandbox-") as folder:
        command = [sys.executable, "-m", "sandbox.questions", "--out", folder]
        command += ["--seed", str(settings.sandbox.seed), "--num-queries", str(settings.sandbox.num_queries)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if result.returncode:
            last = result.stderr.strip().splitlines()[-1:] or ["nothing said"]
            raise DataError(f"the sandbox made no questions: {last[0]}; run `{' '.join(command)}` to see all of it.")
        yield Path(folder)


def body() -> None:
    """Read params, copy the query set, hold its gate, write it whole or not at all."""
    settings = load_section("queries", QueriesSettings)
    load_gate("queries", NoBounds)
    with folder_written_whole(FOLDER) as target:
        if settings.source == "table" and settings.table is not None:
            queries = mapped.copy_query_set(settings.table, target, max_pixels=settings.max_pixels)
        else:
            with source_folder(settings) as source:
                queries = copy_query_set(source, target, max_pixels=settings.max_pixels)
        findings = hold("queries", checks(queries, images=target / recorded.IMAGES))
        write_table(target / recorded.QUERIES, queries, "queries")
    findings.write()
    for benchmark, count in queries.group_by("benchmark").len().sort("benchmark").iter_rows():
        log.info("%s: %d queries", benchmark, count)
    log.info("%d queries, %d pictures", queries.height, queries["image"].n_unique())


def main() -> int:
    """Run the stage; returns the exit code."""
    argparse.ArgumentParser(
        prog="python -m tasks.queries", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    return run_stage("queries", body)


if __name__ == "__main__":
    sys.exit(main())
