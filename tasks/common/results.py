"""A result table as a frame, on the terminal and in Markdown; one form for `cascade_eval` and the studies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from arms_model.evaluation import MACRO, Row
from tasks.common.files import written_whole

ORDER = {"router": 0, "baseline": 1, "limit": 2, "single": 3}


def rows_frame(rows: Sequence[Row], **labels: str) -> pl.DataFrame:
    """Rows of `evaluate` as a frame, with `labels` (split, pool, ...) as first columns."""
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return frame.select(*(pl.lit(value).alias(name) for name, value in labels.items()), pl.all())


def write_csv(path: Path, frame: pl.DataFrame) -> None:
    """Write a table for people and for `dvc plots`: whole or not at all, six decimals."""
    with written_whole(path) as temporary:
        frame.write_csv(temporary, float_precision=6)


def without_candidate(benchmark: NDArray[np.str_], candidates: NDArray[np.bool_]) -> str:
    """How many queries have no candidate and so stand in no figure of the pool's table, per benchmark.

    Args:
        benchmark: (N,) str.
        candidates: (N, K) bool.

    Returns:
        Like "BlindTest 12, DynaMath 1"; "" where every query has a candidate.
    """
    names, counts = np.unique(benchmark[~candidates.any(axis=1)], return_counts=True)
    return ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))


def caption(frame: pl.DataFrame) -> str:
    """What the figures of one table are of: unfiltered EM, of how many queries, and which queries have no candidate."""
    row = _macro_rows(frame)[0]
    text = f"unfiltered EM of {row['num_queries']:,.0f} queries, macro average over benchmarks"
    if row.get("num_queries_filtered") is not None:
        text += f"; filtered: the {row['num_queries_filtered']:,.0f} that some VLM of the extended pool answers"
    return text + (f"; without a candidate here: {row['without_candidate']}" if row.get("without_candidate") else "")


def em_lines(frame: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The lines people read first: macro EM with its interval, EM per benchmark, filtered EM, gap recovered.

    Args:
        frame: rows of one table (one split or grouping, one pool).

    Returns:
        Column names, and lines of cells: routers, baselines, then the limit, the best first. The deviation over seeds
        has a column where some method has seeds.
    """
    benchmarks = sorted(set(frame["benchmark"].to_list()) - {MACRO})
    em = {(row["benchmark"], row["method"]): row["em"] for row in frame.iter_rows(named=True)}
    rows = _macro_rows(frame)
    seeds = ["seeds sd"] if any(_number(row["em_seed_sd"]) for row in rows) else []
    columns = ["method", "EM", "95 %", *seeds, *benchmarks, "filtered", "gap"]
    lines = []
    for row in rows:
        cells = [row["method"], _number(row["em"]), _span(row["em_low"], row["em_high"])]
        cells += [_number(row["em_seed_sd"]) for _ in seeds]
        cells += [_number(em.get((benchmark, row["method"]))) for benchmark in benchmarks]
        lines.append([*cells, _number(row.get("em_filtered")), _number(row["gap_recovered"], 3)])
    return columns, lines


def difference_lines(frame: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Paired differences of macro EM to every reference, with their intervals; as `em_lines`."""
    references = [name for name in frame.columns if name.startswith("minus_") and not name.endswith(("_low", "_high"))]
    lines = [
        [row["method"], *(_difference(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in references)]
        for row in _macro_rows(frame)
    ]
    return ["method", *(name.replace("_", " ") for name in references)], lines


def pair_lines(frame: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """How well confidences tell right from wrong, macro over benchmarks, where there are any; as `em_lines`."""
    figures = ["accuracy", "precision", "recall", "f1", "auroc", "log_loss", "brier", "ece", "ece_chosen"]
    rows = [row for row in _macro_rows(frame) if row.get("auroc") is not None]
    lines = [[row["method"], *(_number(row[figure]) for figure in figures)] for row in rows]
    return ["method", *(figure.replace("_", " ") for figure in figures)], lines


def print_tables(frame: pl.DataFrame, title: str, *, with_pairs: bool = True) -> None:
    """Print one pool's tables on the terminal, and the best three single VLMs of each benchmark below.

    Args:
        frame: one pool's rows of the stored table.
        title: what stands above each table.
        with_pairs: print differences and pair figures, too.
    """
    console = Console(width=240, highlight=False)  # a table is as wide as its cells; nothing is cut short
    tables = [(f"{title}: {caption(frame)}", em_lines(frame))]
    if with_pairs:
        tables.append((f"{title}: differences of macro EM with their 95 % intervals", difference_lines(frame)))
        tables.append((f"{title}: pairs", pair_lines(frame)))
    for heading, (columns, lines) in tables:
        table = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        console.print(table)
    singles = frame.filter(pl.col("kind") == "single").sort("em", descending=True)
    for benchmark in sorted(set(singles["benchmark"].to_list())):
        best = singles.filter(pl.col("benchmark") == benchmark).head(3)
        named = ", ".join(f"{vlm} {em:.4f}" for vlm, em in best.select("method", "em").iter_rows())
        console.print(f"best single VLMs on {benchmark}: {named}")


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a Markdown table."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rule, *lines))


def _macro_rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    rows = frame.filter(pl.col("benchmark") == MACRO).iter_rows(named=True)
    return sorted(rows, key=lambda row: (ORDER[row["kind"]], -row["em"]))


def _span(low: float, high: float) -> str:
    return f"[{low:.4f}, {high:.4f}]"


def _difference(mean: float, low: float, high: float) -> str:
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def _number(value: float | None, decimals: int = 4) -> str:
    return "" if value is None or value != value else f"{value:.{decimals}f}"
