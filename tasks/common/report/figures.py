"""The report's figures, each from its frame (`frames.py`): no figure reads a file or reckons a number of its own.

Panels are narrow, so that a phone shows them at nearly their own size; a wide screen puts them side by side.
"""

from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from arms_model.evaluation import MACRO
from tasks.common.report import drawing
from tasks.common.report.drawing import DASHES, INK, MARKERS, MUTED, PAPER, SERIES, Panel, as_panel, look, new_figure
from tasks.common.report.frames import POOL_NAMES, SPLIT_NAMES, calibration_error
from tasks.common.report.labels import place_labels

ROUTER_NAMES = {"base": "Base router", "incremental": "Incremental router", "independent": "Independent router"}
_KINDS = {  # marker, colour, whether it is filled, name in the legend
    "picked": ("D", drawing.VERMILION, True, "ARMS, put forward (challenger)"),
    "router": ("o", drawing.BLUE, True, "ARMS, other ways to serve"),
    "baseline": ("s", MUTED, False, "baseline"),
    "limit": ("*", INK, True, "oracle (the limit)"),
}
_PRICES = {"measured": ("o", True), "list": ("o", False), "assumed": ("X", False)}
_FEW = 30  # a cell of the heat map over fewer queries carries no number


def main_results(frame: pl.DataFrame) -> list[Panel]:
    """Every method's macro EM with its interval, a panel per split and pool."""
    panels = []
    with look():
        for (split, pool), part in frame.sort("split", "pool", maintain_order=True).group_by(
            "split", "pool", maintain_order=True
        ):
            rows = part.sort("em", maintain_order=True).to_dicts()
            figure = new_figure(430, 118 + 28 * len(rows))
            axes = figure.subplots()
            near = [row for row in rows if row["kind"] != "limit" and row["method"] != "random"] or rows
            low, high = min(row["em_low"] for row in near), max(row["em_high"] for row in near)
            low, high = low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3
            for height, row in enumerate(rows):
                _interval_row(axes, height, row, low, high)
            axes.set_xlim(low, high)
            axes.set_ylim(-0.7, len(rows) - 0.3)
            axes.set_yticks(range(len(rows)), [_two_lines(row["method"]) for row in rows])
            for label, row in zip(axes.get_yticklabels(), rows, strict=True):
                label.set_fontweight("bold" if row["kind"] == "picked" else "normal")
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
            axes.set_xlabel("EM, macro average over benchmarks, with 95 % interval")
            title = f"{SPLIT_NAMES[str(split)]}, {POOL_NAMES[str(pool)]}"
            figure.suptitle(title, x=0.01, ha="left", size=11.5, weight="bold")
            handles = [_handle(*_KINDS[kind]) for kind in _KINDS if kind in {row["kind"] for row in rows}]
            figure.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=9.5, columnspacing=1)
            best = ", ".join(f"{row['method']} {row['em']:.3f}" for row in reversed(rows))
            alt = f"Macro exact match, {SPLIT_NAMES[str(split)].lower()}, {POOL_NAMES[str(pool)]}, best first: {best}."
            panels.append(as_panel(figure, f"main-results-{split}-{pool}", alt))
    return panels


def _interval_row(axes: Axes, height: int, row: dict[str, object], low: float, high: float) -> None:
    """A method's dot and interval; one that lies off the scale is an arrow at its edge. Its figure stands beside."""
    em, em_low, em_high = (float(str(row[name])) for name in ("em", "em_low", "em_high"))
    marker, colour, is_filled, _ = _KINDS[str(row["kind"])]
    if em < low or em > high:
        axes.plot([low if em < low else high], [height], "<" if em < low else ">", color=colour, clip_on=False)
    else:
        axes.plot([em_low, em_high], [height, height], color=colour, linewidth=2, solid_capstyle="butt")
        face = colour if is_filled else PAPER
        axes.plot([em], [height], marker, color=colour, markerfacecolor=face, markeredgewidth=1.5, markersize=7)
    weight = "bold" if row["kind"] == "picked" else "normal"
    axes.annotate(f"{em:.3f}", (1.02, height), xycoords=("axes fraction", "data"), va="center", weight=weight)


def _handle(marker: str, colour: str, is_filled: bool, label: str, *, line: Literal["none", "-"] = "none") -> Line2D:
    """A line of a legend."""
    face = colour if is_filled else PAPER
    return Line2D([], [], color=colour, marker=marker, markerfacecolor=face, linestyle=line, label=label)


def _two_lines(method: str) -> str:
    """A long name in two lines."""
    if ", tau " in method:
        return method.replace(", tau ", "\ntau ")
    if len(method) <= 22:
        return method
    middle = min((i for i, letter in enumerate(method) if letter == " "), key=lambda i: abs(i - len(method) / 2))
    return f"{method[:middle]}\n{method[middle + 1 :]}"


def complementarity(frame: pl.DataFrame, names: dict[str, str], is_base: dict[str, bool]) -> list[Panel]:
    """The heat map of Fig. 1; rows answer wrongly, columns rightly.

    Args:
        frame: see `frames.complementarity`.
        names: display names by VLM.
        is_base: whether a VLM is of pool base.
    """
    wrong, right = set(frame["vlm_wrong"].to_list()), set(frame["vlm_right"].to_list())
    order = [vlm for vlm in dict.fromkeys([*frame["vlm_wrong"], *frame["vlm_right"]]) if vlm in wrong | right]
    order.sort(key=lambda vlm: not is_base[vlm])
    if len(order) < 2:
        return []
    place = {vlm: number for number, vlm in enumerate(order)}
    share, count = np.full((len(order),) * 2, np.nan), np.zeros((len(order),) * 2)
    for one, other, value, num in frame.select("vlm_wrong", "vlm_right", "share", "num_queries").iter_rows():
        share[place[one], place[other]], count[place[one], place[other]] = value, num
    cell = 46 if len(order) <= 10 else 23
    label = 6.3 * max(len(names[vlm]) for vlm in order)
    side = cell * len(order)
    with look():
        figure = new_figure(round(side + label + 80), round(side + label + 95))
        axes = figure.subplots()
        steps = mpl.colormaps["cividis"].resampled(20)  # few enough that the colour bar is no picture
        mesh = axes.pcolormesh(100 * share, cmap=steps, vmin=0, vmax=100, edgecolor=PAPER, linewidth=0.6)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.xaxis.tick_top()
        axes.set_xticks(np.arange(len(order)) + 0.5, [names[vlm] for vlm in order], rotation=90)
        axes.set_yticks(np.arange(len(order)) + 0.5, [names[vlm] for vlm in order])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_ylabel("this VLM answers wrongly …")
        axes.set_xlabel("… and this one rightly", labelpad=6)
        axes.xaxis.set_label_position("bottom")
        num_base = sum(is_base[vlm] for vlm in order)
        if 0 < num_base < len(order):
            axes.axhline(num_base, color=INK, linewidth=1.4)
            axes.axvline(num_base, color=INK, linewidth=1.4)
        for i, j in zip(*np.nonzero(count >= _FEW), strict=True):
            colour = "#ffffff" if share[i, j] < 0.52 else "#000000"
            size = 10.5 if cell > 30 else 8.5
            axes.text(j + 0.5, i + 0.5, f"{100 * share[i, j]:.0f}", ha="center", va="center", color=colour, size=size)
        bar = figure.colorbar(mesh, ax=axes, orientation="horizontal", aspect=40, pad=0.01, shrink=0.8)
        bar.set_label("% of the queries that the row's VLM answers wrongly")
        bar.outline.set_visible(False)
        flat = frame.filter(pl.col("num_queries") >= _FEW).sort("share", descending=True).head(1).to_dicts()
        alt = f"Heat map of {len(order)} VLMs by {len(order)} VLMs: share of one's wrong queries that another answers."
        if flat:
            top = flat[0]
            alt += (
                f" Greatest: {names[top['vlm_right']]} answers {top['share']:.0%} of what {names[top['vlm_wrong']]} "
                "gets wrong."
            )
        return [as_panel(figure, "complementarity", alt, can_scroll=len(order) > 10)]


def tau_sweep(frame: pl.DataFrame, picked: tuple[str, float] | None) -> list[Panel]:
    """EM and the share of queries that ran the new router over tau, a panel per split.

    Args:
        frame: see `frames.tau_sweep`.
        picked: strategy and tau that the held-out queries picked, to be marked.
    """
    panels = []
    with look():
        for (split,), part in frame.group_by("split", maintain_order=True):
            figure = new_figure(430, 400)
            above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
            shown = []
            for number, ((strategy,), rows) in enumerate(part.group_by("strategy", maintain_order=True)):
                rows = rows.sort("tau")
                style = {"color": SERIES[number], "marker": MARKERS[number], "linestyle": DASHES[number]}
                tau, em = rows["tau"].to_numpy() + 0.006 * (number - 0.5), rows["em"].to_numpy()
                spread = np.abs(rows.select("em_low", "em_high").to_numpy().T - em)
                above.errorbar(tau, em, yerr=spread, capsize=3, elinewidth=1, label=str(strategy), **style)
                below.plot(tau, 100 * rows["share_new_run"].to_numpy(), **style)
                if picked is not None and picked[0] == strategy:
                    mark = rows.filter((pl.col("tau") - picked[1]).abs() < 1e-9)
                    above.plot(
                        mark["tau"] + 0.006 * (number - 0.5), mark["em"], "o", markersize=15, markerfacecolor="none",
                        markeredgecolor=INK, markeredgewidth=1.5, label="picked on held-out queries",
                    )  # fmt: skip
                shown.append(f"{strategy}: " + ", ".join(f"{t:g} {e:.3f}" for t, e in rows["tau", "em"].iter_rows()))
            above.set_ylabel("macro EM")
            above.set_title(SPLIT_NAMES[str(split)])
            below.set_ylabel("ran the new\nrouter, %")
            below.set_ylim(-4, 104)
            below.set_xlabel("threshold tau")
            figure.legend(loc="outside lower center", ncols=1)
            alt = f"Macro EM by threshold tau, {SPLIT_NAMES[str(split)].lower()}. {'; '.join(shown)}."
            panels.append(as_panel(figure, f"tau-sweep-{split}", alt))
    return panels


def training_curves(frame: pl.DataFrame) -> list[Panel]:
    """Validation and training loss of every member over the epochs, a panel per router."""
    panels = []
    with look():
        for (router,), part in frame.group_by("router", maintain_order=True):
            figure = new_figure(305, 365)
            above, below = figure.subplots(2, 1, sharex=True)
            least = []
            for (member,), rows in part.group_by("member", maintain_order=True):
                number = int(str(member))
                style = {"color": SERIES[number % len(SERIES)], "linestyle": DASHES[number % len(DASHES)]}
                above.plot(rows["epoch"], rows["validation_loss"], label=f"network {number + 1}", **style)
                below.plot(rows["epoch"], rows["train_loss"], **style)
                best = rows.drop_nulls("validation_loss").sort("validation_loss", maintain_order=True).head(1)
                marker = MARKERS[number % len(MARKERS)]
                above.plot(best["epoch"], best["validation_loss"], marker, color=style["color"], markersize=7)
                least += best["validation_loss"].to_list()
            above.set_title(ROUTER_NAMES[str(router)])
            above.set_ylabel("validation loss")
            below.set_ylabel("training loss")
            below.set_xlabel("epoch")
            below.xaxis.get_major_locator().set_params(integer=True)
            figure.legend(loc="outside lower center", ncols=3, fontsize=9, columnspacing=1, handlelength=1.7)
            reached = f" Least validation loss {min(least):.3f} to {max(least):.3f}." if least else ""
            num, epochs = part["member"].n_unique(), max(part["epoch"].to_list())
            alt = f"Loss of {num} networks of the {ROUTER_NAMES[str(router)].lower()} over {epochs} epochs.{reached}"
            panels.append(as_panel(figure, f"training-curves-{router}", alt))
    return panels


def reliability(frame: pl.DataFrame) -> list[Panel]:
    """Share of right answers over confidence, a panel per split and router, with how many pairs each bin holds."""
    panels = []
    with look():
        for (split, router), bins in frame.group_by("split", "router", maintain_order=True):
            figure = new_figure(305, 385)
            axes = figure.subplots()
            axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label="perfectly calibrated")
            x, y = bins["mean_confidence"].to_numpy(), bins["share_right"].to_numpy()
            spread = np.stack([y - bins["low"].to_numpy(), bins["high"].to_numpy() - y]).clip(min=0)
            num, error = int(bins["num_pairs"].sum()), calibration_error(bins)
            few, many = min(bins["num_pairs"].to_list()), max(bins["num_pairs"].to_list())
            held = f"{few:,}" if few == many else f"{few:,} to {many:,}"
            label = f"{bins.height} bins of {held} pairs"
            axes.errorbar(x, y, yerr=spread, fmt="o", color=drawing.BLUE, elinewidth=1.2, capsize=2.5, label=label)
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
            axes.set_box_aspect(1)
            axes.set_xlabel("confidence")
            axes.set_ylabel("share of right answers")
            axes.set_title(f"{ROUTER_NAMES[str(router)]}\n{SPLIT_NAMES[str(split)].lower()}, ECE {error:.3f}")
            figure.legend(loc="outside lower center", ncols=1)
            points = ", ".join(f"{one:.2f} {other:.2f}" for one, other in zip(x, y, strict=True))
            alt = (
                f"{ROUTER_NAMES[str(router)]}, {SPLIT_NAMES[str(split)].lower()}: expected calibration error "
                f"{error:.3f} over {num:,} pairs. Confidence and share of right answers by bin: {points}."
            )
            panels.append(as_panel(figure, f"reliability-{split}-{router}", alt))
    return panels


def planes(frame: pl.DataFrame) -> list[tuple[str, str]]:
    """The (split, benchmark) planes of an accuracy-cost frame, each split's macro average first."""
    pairs = frame.select("split", "benchmark").unique().rows()
    return sorted(pairs, key=lambda pair: (pair[0], pair[1] != MACRO, pair[1]))


def accuracy_cost(frame: pl.DataFrame, numbers: dict[str, int], names: dict[str, str]) -> list[Panel]:
    """EM over cost, logarithmic: single VLMs, baselines, oracle, the router and its curve; a panel per plane.

    Args:
        frame: see `frames.accuracy_cost`.
        numbers: what single VLMs are called in the figure where there are many; empty: by their names.
        names: display names by VLM.
    """
    panels = []
    with look():
        for split, benchmark in planes(frame):
            part = frame.filter((pl.col("split") == split) & (pl.col("benchmark") == benchmark))
            rows = part.sort("kind", "name", "trade_off").to_dicts()
            costs = [row["cost_usd_per_1000"] for row in rows if row["cost_usd_per_1000"] > 0]
            free = min(costs, default=1.0) / 3  # a cost of 0 has no place on a logarithmic axis
            for row in rows:
                row["x"] = max(row["cost_usd_per_1000"], free)
            figure = new_figure(455, 415)
            axes = figure.subplots()
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            labels = _plane_points(axes, rows, numbers, names)
            if any(row["cost_usd_per_1000"] <= 0 for row in rows):
                axes.axvline(free, color=MUTED, linewidth=1, linestyle=DASHES[2])
                axes.annotate("free", (free, 0), xycoords=("data", "axes fraction"), xytext=(3, 4),
                              textcoords="offset points", color=MUTED)  # fmt: skip
            axes.margins(0.1)
            axes.set_xlabel("USD per 1,000 queries (logarithmic)")
            axes.set_ylabel("EM, macro average" if benchmark == MACRO else "EM")
            axes.set_title(SPLIT_NAMES[split] + ("" if benchmark == MACRO else f": {benchmark}"))
            figure.legend(handles=_plane_legend(rows), loc="outside lower center", ncols=2, fontsize=9.5)
            figure.draw_without_rendering()  # fixes the layout that labels are placed in
            place_labels(axes, labels)
            points = [
                f"{names.get(row['name'], row['name'])} {row['em']:.3f} at {row['cost_usd_per_1000']:.3g} USD"
                + (f" ({row['prices']} prices)" if row["prices"] != "measured" else "")
                for row in rows
                if row["kind"] != "curve"
            ]
            where = "macro average" if benchmark == MACRO else benchmark
            alt = f"EM over USD per 1,000 queries, {SPLIT_NAMES[split].lower()}, {where}: {'; '.join(points)}."
            stem = "" if benchmark == MACRO else f"-{planes(frame).index((split, benchmark))}"
            panels.append(as_panel(figure, f"accuracy-cost-{split}{stem}", alt))
    return panels


def _plane_points(
    axes: Axes, rows: Sequence[dict[str, object]], numbers: dict[str, int], names: dict[str, str]
) -> list[tuple[float, float, str, str]]:
    """Draw the points; gives the labels to be placed: x, y, text, colour."""
    labels = []
    curve = [(row["x"], row["em"]) for row in rows if row["kind"] == "curve"]
    if curve:
        axes.plot(*zip(*curve, strict=True), color=drawing.VERMILION, linewidth=1.4, marker=".", markersize=4, zorder=2)
    for row in rows:
        x, y, kind, name = float(str(row["x"])), float(str(row["em"])), str(row["kind"]), str(row["name"])
        if kind == "single":
            source = str(row["prices"]).split(", ")[-1]  # where it passes on a query, the least certain source counts
            marker, is_filled = _PRICES[source]
            axes.plot(
                [x], [y], marker, color=drawing.BLUE, markerfacecolor=drawing.BLUE if is_filled else PAPER, zorder=3
            )
            text = str(numbers[name]) if numbers else names.get(name, name)
            labels.append((x, y, text + ("" if source == "measured" else f" ({source})"), INK))
        elif kind in ("baseline", "router", "oracle"):
            style = _KINDS[{"router": "picked", "oracle": "limit"}.get(kind, kind)]
            marker, colour, is_filled, _ = style
            size = {"router": 9, "oracle": 11}.get(kind, 5)
            axes.plot(
                [x],
                [y],
                marker,
                color=colour,
                markerfacecolor=colour if is_filled else PAPER,
                markersize=size,
                zorder=4,
            )
            if kind != "baseline":
                labels.append((x, y, "ARMS" if kind == "router" else "oracle", INK))
    return labels


def _plane_legend(rows: Sequence[dict[str, object]]) -> list[Line2D]:
    """Handles for what is drawn."""
    kinds = {str(row["kind"]) for row in rows}
    sources = {str(row["prices"]).split(", ")[-1] for row in rows if row["kind"] == "single"}

    handles = []
    if "router" in kinds:
        handles.append(_handle("D", drawing.VERMILION, True, "ARMS, put forward (challenger)"))
    if "curve" in kinds:
        handles.append(_handle(".", drawing.VERMILION, True, "ARMS, giving up EM for cost", line="-"))
    for source, (marker, is_filled) in _PRICES.items():
        if source in sources:
            handles.append(_handle(marker, drawing.BLUE, is_filled, f"single VLM, {source} price"))
    if "baseline" in kinds:
        handles.append(_handle("s", MUTED, False, "baseline"))
    if "oracle" in kinds:
        handles.append(_handle("*", INK, True, "oracle: the cheapest right VLM"))
    return handles
