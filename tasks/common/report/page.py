"""The page: what stands in the template, and how figures are written.

The template escapes everything that it is given; only the figures' own SVG goes in as it is. The page holds no
script, and its policy forbids it to load or run anything, so that a question's text stays text even if an escape were
missing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from arms_model.evaluation import MACRO
from tasks.common import results
from tasks.common.report import figures, frames
from tasks.common.report.cards import Cards
from tasks.common.report.drawing import Panel
from tasks.common.report.inputs import Inputs
from tasks.common.tables import SPLITS, TEST_SPLITS

HERE = Path(__file__).parent
_VLM_COLUMNS = (  # each is shown where some VLM has it
    ("Parameters, billions", "params_b"), ("Released", "released"), ("Per million tokens in", "usd_per_mtok_in"),
    ("… out", "usd_per_mtok_out"), ("Per picture", "usd_per_image"), ("Per call", "usd_per_call"),
)  # fmt: skip
_LONGEST_NAME = 36  # in a figure
_MANY_VLMS = 8  # more are numbers in the accuracy-cost plane


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All figures, and the frames they were drawn from.

    Attributes:
        panels: by figure.
        frames: by figure; what `dvc plots` draws.
        numbers: what single VLMs are called in the accuracy-cost plane; empty: by their names.
    """

    panels: dict[str, list[Panel]]
    frames: dict[str, pl.DataFrame]
    numbers: dict[str, int]


def draw(inputs: Inputs) -> Figures:
    """Reckon all frames and draw all figures."""
    drawn = {
        "main_results": frames.main_results(inputs),
        "complementarity": frames.complementarity(inputs),
        "tau_sweep": frames.tau_sweep(inputs),
        "training_curves": frames.training_curves(inputs),
        "reliability": frames.reliability(inputs),
        "accuracy_cost": frames.accuracy_cost(inputs),
    }
    numbers = {name: number for number, name in enumerate(inputs.names, start=1)}
    numbers = numbers if len(inputs.vlms) > _MANY_VLMS else {}
    names = {vlm: _short(name) for vlm, name in inputs.display_names.items()}
    tau = inputs.picked.strategy.tau
    picked = None if tau is None else (inputs.picked.row.split(", tau ")[0], tau)
    is_base = {vlm.name: vlm.pool == "base" for vlm in inputs.vlms}
    panels = {
        "main_results": figures.main_results(drawn["main_results"]),
        "complementarity": figures.complementarity(drawn["complementarity"], names, is_base),
        "tau_sweep": figures.tau_sweep(drawn["tau_sweep"], picked),
        "training_curves": figures.training_curves(drawn["training_curves"]),
        "reliability": figures.reliability(drawn["reliability"]),
        "accuracy_cost": figures.accuracy_cost(drawn["accuracy_cost"], numbers, names),
    }
    return Figures(panels=panels, frames=drawn, numbers=numbers)


def render(inputs: Inputs, drawn: Figures, cards: Cards, *, title: str, note: str | None) -> str:
    """The page as HTML.

    Args:
        inputs: what the stages left.
        drawn: see `draw`.
        cards: the sample cards.
        title: of the page.
        note: what is said right below it; None for nothing.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(_FILTERS)
    page = environment.get_template("page.html.j2").render(
        title=title,
        note=note,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704  # our own file
        inputs=inputs,
        panels=drawn.panels,
        cards=cards,
        comparisons=frames.comparisons(inputs),
        tables=_tables(inputs),
        tasks=[(split, frames.per_task(inputs, split).to_dicts()) for split in _splits(inputs)],
        vlms=_vlm_rows(inputs),
        vlm_columns=[
            column for column in _VLM_COLUMNS if any(getattr(vlm, column[1]) is not None for vlm in inputs.vlms)
        ],
        dataset=frames.dataset_table(inputs),
        benchmarks=frames.benchmark_table(inputs).to_dicts(),
        unlabelled=frames.unlabelled(inputs),
        pair_tables=_pair_tables(inputs),
        planes=_planes(drawn, inputs),
        nothing={router: metrics.get("nothing_to_learn") for router, metrics in inputs.metrics.items()},
        splits=SPLITS,
        split_names=frames.SPLIT_NAMES,
        pool_names=frames.POOL_NAMES,
        router_names=figures.ROUTER_NAMES,
        missing_splits=[split for split in TEST_SPLITS if split not in _splits(inputs)],
    )
    return page + "\n"


def _splits(inputs: Inputs) -> list[str]:
    """The test splits that have a labelled query."""
    return [split for split in TEST_SPLITS if len(inputs.rows_of(split))]


def _parts(inputs: Inputs, methods: set[str]) -> list[tuple[str, str, pl.DataFrame]]:
    """Split, pool and rows of each table, in reading order."""
    shown = inputs.table.filter(pl.col("method").is_in(list(methods)))
    parts = shown.sort("split", "pool", maintain_order=True).group_by("split", "pool", maintain_order=True)
    return [(str(split), str(pool), part) for (split, pool), part in parts]


def _tables(inputs: Inputs) -> list[dict[str, Any]]:
    """EM per benchmark and as macro average, and differences, in the form in which the terminal shows them."""
    tables = []
    for split, pool, part in _parts(inputs, set(frames.main_results(inputs)["method"].to_list())):
        columns, lines = results.em_lines(part)
        more, differences = results.difference_lines(part)
        tables.append(
            {
                "split": split,
                "pool": pool,
                "caption": results.caption(part),
                "columns": columns,
                "lines": lines,
                "difference_columns": more,
                "differences": differences,
                "single_columns": sorted(set(part["benchmark"].to_list()) - {MACRO}),
                "singles": _single_lines(inputs, split, pool),
            }
        )
    return tables


def _single_lines(inputs: Inputs, split: str, pool: str) -> list[tuple[str, dict[str, float]]]:
    """Display name and EM by benchmark of the pool's single VLMs."""
    part = inputs.table.filter((pl.col("split") == split) & (pl.col("pool") == pool) & (pl.col("kind") == "single"))
    lines: dict[str, dict[str, float]] = {}
    for row in part.sort("method", maintain_order=True).iter_rows(named=True):
        lines.setdefault(row["method"], {})[row["benchmark"]] = row["em"]
    return [(inputs.display_names[vlm], figures_) for vlm, figures_ in lines.items()]


def _pair_tables(inputs: Inputs) -> list[dict[str, Any]]:
    """Calibration and separation figures of the methods that have confidences."""
    tables = []
    for split, pool, part in _parts(inputs, set(frames.main_results(inputs)["method"].to_list())):
        columns, lines = results.pair_lines(part)
        if lines:
            tables.append({"split": split, "pool": pool, "columns": columns, "lines": lines})
    return tables


def _vlm_rows(inputs: Inputs) -> list[dict[str, Any]]:
    """What is known of each VLM: its block, and how many labels it has; base first."""
    asked = (~np.isnan(inputs.scored)).sum(axis=0)
    right = (inputs.scored == 1).sum(axis=0)
    rows = [
        {
            "vlm": vlm,
            "num_labels": int(asked[column]),
            "share_right": float(right[column] / asked[column]) if asked[column] else None,
        }
        for column, vlm in enumerate(inputs.vlms)
    ]
    return sorted(rows, key=lambda row: (row["vlm"].pool, row["vlm"].display_name))


def _planes(drawn: Figures, inputs: Inputs) -> list[dict[str, Any]]:
    """The points of each plane that is drawn, for the tables below it; curves stand in the file alone."""
    frame = drawn.frames["accuracy_cost"]
    planes = []
    for split, benchmark in figures.planes(frame):
        part = frame.filter(
            (pl.col("split") == split) & (pl.col("benchmark") == benchmark) & (pl.col("kind") != "curve")
        )
        rows = [
            {
                **row,
                "name": inputs.display_names.get(row["name"], row["name"]),
                "number": drawn.numbers.get(row["name"]),
            }
            for row in part.sort("em", descending=True, maintain_order=True).to_dicts()
        ]
        planes.append({"split": split, "benchmark": None if benchmark == MACRO else benchmark, "rows": rows})
    return planes


def _short(name: str) -> str:
    """A name that leaves room for the figure."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _points(value: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _exact(value: float | None, decimals: int = 4) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _price(value: float | None) -> str:
    return "" if value is None else f"{value:,.6g}"


def _bounds(bounds: dict[str, Any]) -> str:
    """Bounds of an expectation, in words."""
    if set(bounds) == {"min", "max"}:
        low, high = bounds["min"], bounds["max"]
        return f"exactly {low}" if low == high else f"{low} to {high}"
    words = {"min": "at least", "max": "at most", "values": ""}
    parts = []
    for name, value in bounds.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(f"{words.get(name, name)} {shown}".strip())
    return ", ".join(parts)


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values)


_FILTERS: dict[str, Callable[..., Any]] = {
    "percent": _percent,
    "points": _points,
    "exact": _exact,
    "price": _price,
    "listed": _listed,
    "bounds": _bounds,
    "inline": lambda panel: Markup(panel.inline()),  # noqa: S704  # drawn by us; matplotlib escapes its texts
}
