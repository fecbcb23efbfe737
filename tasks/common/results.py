"""A result table as a frame, on the terminal and in Markdown; one form for `cascade_eval` and the studies."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl
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


def headline(frame: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The lines people read first: routers, baselines and the limit, macro EM with its interval, EM per benchmark.

    Args:
        frame: rows of one table (one split or grouping, one pool).

    Returns:
        Column names, and lines of cells.
    """
    benchmarks = sorted(set(frame["benchmark"].to_list()) - {MACRO})
    macro = frame.filter(pl.col("benchmark") == MACRO)
    reference = next(name for name in frame.columns if name.startswith("minus_")).removesuffix("_low")
    columns = ["method", "macro EM [95 %]", f"minus {reference.removeprefix('minus_').replace('_', ' ')}", "seeds sd"]
    columns += [*benchmarks, "filtered EM", "gap", "AUROC", "log loss", "Brier", "ECE", "ECE chosen"]
    em = {(row["benchmark"], row["method"]): row["em"] for row in frame.iter_rows(named=True)}
    lines = []
    for row in sorted(macro.iter_rows(named=True), key=lambda row: (ORDER[row["kind"]], -row["em"])):
        cells = [row["method"], f"{_number(row['em'])} [{_number(row['em_low'])}, {_number(row['em_high'])}]"]
        low, high = row[f"{reference}_low"], row[f"{reference}_high"]
        cells.append(f"{row[reference]:+.4f} [{low:+.4f}, {high:+.4f}]")
        cells.append(_number(row["em_seed_sd"]))
        cells += [_number(em.get((benchmark, row["method"]))) for benchmark in benchmarks]
        cells += [_number(row.get("em_filtered")), _number(row["gap_recovered"], 3)]
        cells += [_number(row.get(name)) for name in ("auroc", "log_loss", "brier", "ece", "ece_chosen")]
        lines.append(cells)
    return columns, lines


def print_headline(frame: pl.DataFrame, title: str) -> None:
    """Print one table on the terminal, with the single VLMs below it as the best three of each benchmark."""
    columns, lines = headline(frame)
    console = Console(width=max(180, Console().width), highlight=False)
    table = Table(title=title, title_justify="left")
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


def markdown_headline(frame: pl.DataFrame) -> str:
    """The same table in Markdown."""
    columns, lines = headline(frame)
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rule, *lines))


def _number(value: float | None, decimals: int = 4) -> str:
    return "" if value is None or value != value else f"{value:.{decimals}f}"
