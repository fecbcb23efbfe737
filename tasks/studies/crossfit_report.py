"""What the cross-fitting study says in words and in Markdown: tables, and how the router stands to each reference."""

from collections.abc import Sequence

import polars as pl

from arms_model.evaluation import MACRO
from tasks.common.comparison import BEST_PER_TASK, BEST_SINGLE, KNN, KNN_AND_RIDGE
from tasks.common.results import caption, difference_lines, em_lines, markdown, pair_lines

ROUTER = "ARMS"
REFERENCES = (BEST_SINGLE, BEST_PER_TASK, KNN, KNN_AND_RIDGE)


def compare(frame: pl.DataFrame) -> str:
    """How the router stands to each reference on macro EM, a line per comparison, and how many there are."""
    lines = []
    for (grouping, pool), part in frame.group_by("grouping", "pool", maintain_order=True):
        row = part.filter((pl.col("benchmark") == MACRO) & (pl.col("method") == ROUTER)).row(0, named=True)
        for reference in REFERENCES:
            name = f"minus_{reference.replace(' ', '_')}"
            mean, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
            verdict = "above" if low > 0 else "below" if high < 0 else "not told apart from"
            lines.append(
                f"{grouping}, {pool} pool: {ROUTER} is {verdict} {reference}: {mean:+.4f} [{low:+.4f}, {high:+.4f}]"
            )
    lines.append(
        f"{len(lines)} comparisons were made, each with its own 95 % interval; were nothing different, about one in 20 "
        "would seem so."
    )
    return "\n".join(lines)


def document(parts: Sequence[pl.DataFrame]) -> str:
    """All tables and comparisons in Markdown.

    Args:
        parts: the tables, one per grouping and pool.
    """
    comparisons = "\n".join(f"- {line}" for line in compare(pl.concat(parts, how="diagonal_relaxed")).splitlines())
    return "\n".join([*(_section(part) for part in parts), f"### Comparisons\n\n{comparisons}\n"])


def _section(part: pl.DataFrame) -> str:
    grouping, pool = part.row(0)[:2]
    tables = [markdown(*lines(part)) for lines in (em_lines, difference_lines, pair_lines)]
    return "\n\n".join([f"### Folds by `{grouping}`, {pool} pool", f"{caption(part)}.", *tables]) + "\n"
