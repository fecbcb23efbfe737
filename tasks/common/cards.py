"""The model card of a registered version, in Markdown: what it is, what it was made of, how good it is and where not.

MLflow shows it as the version's description and keeps 5,000 characters, so lists give way: the card says how many it
left out. It holds no question, no answer and no picture.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from arms_model.answering import ServedRouter
from arms_model.evaluation import MACRO
from arms_model.logged_model import MAX_DESCRIPTION
from tasks.common.comparison import BEST_PER_TASK, BEST_SINGLE, KNN
from tasks.common.results import markdown
from tasks.common.tables import SPLITS, TEST_SPLITS, strategy_row

ORACLE = "oracle"
_CASCADE = "A cascade (Algorithm 1): the base router; where it is not sure (confidence at most tau), also "
_WHAT = {
    "base": "One router over the base pool.",
    "incremental": "One router: the base router, trained on with the labels of the new VLMs.",
    "base + independent": _CASCADE + "a router trained on the new VLMs alone. The more confident of the two chooses.",
    "base + incremental": _CASCADE + "the incremental router for the new VLMs. The more confident of the two chooses.",
}


@dataclass(frozen=True, kw_only=True)
class CardInputs:
    """What a card is written from.

    Attributes:
        model: its name in the registry.
        entry: the strategy's entry of `cascade_eval/selection.json`.
        served: what is served.
        table: `cascade_eval/table.csv`.
        counts: queries by benchmark and split: columns benchmark, split, len.
        num_labels: of base and new VLMs.
        data: the hash of the data.
        commit: of the code.
        is_recorded_later: whether the commit is that of the recording, which came after the run.
        is_sandbox: whether the VLMs are the sandbox's.
    """

    model: str
    entry: dict[str, Any]
    served: ServedRouter
    table: pl.DataFrame
    counts: pl.DataFrame
    num_labels: tuple[int, int]
    data: str
    commit: str
    is_recorded_later: bool
    is_sandbox: bool


def method_of(entry: dict[str, Any]) -> tuple[str, str]:
    """The row of `cascade_eval/table.csv` that a strategy is: pool and method."""
    pool = "base" if entry["strategy"] == "base" else "extended"
    return pool, strategy_row(entry["strategy"], entry["tau"])


def rows_of(table: pl.DataFrame, *, split: str, pool: str, benchmark: str = MACRO) -> dict[str, dict[str, Any]]:
    """The rows of one table by method."""
    part = table.filter((pl.col("split") == split) & (pl.col("pool") == pool) & (pl.col("benchmark") == benchmark))
    return {row["method"]: row for row in part.iter_rows(named=True)}


def em_text(row: dict[str, Any]) -> str:
    """EM with its interval."""
    return f"{row['em']:.4f} [{row['em_low']:.4f}, {row['em_high']:.4f}]"


def model_card(inputs: CardInputs) -> str:
    """The card, at most `MAX_DESCRIPTION` characters."""
    for limit in (40, 20, 12, 8, 5, 3, 2, 1, 0):
        card = _card(inputs, limit)
        if len(card) <= MAX_DESCRIPTION:
            return card
    return card[: MAX_DESCRIPTION - 1] + "…"


def _card(inputs: CardInputs, limit: int) -> str:
    entry = inputs.entry
    tau = "" if entry["tau"] is None else f", tau {entry['tau']:g}"
    commit = inputs.commit[:12] if re.fullmatch("[0-9a-f]{40,64}", inputs.commit) else "unknown"
    code = "recorded at commit" if inputs.is_recorded_later else "code"
    sections = [
        f"# ARMS router: {entry['strategy']}{tau}",
        f"Chooses, for a question about a picture, which of {len(inputs.served.vlms)} vision-language models (VLMs) to "
        f"ask. {_WHAT.get(entry['strategy'], '')} Digest `{inputs.served.digest[:12]}`, {code} `{commit}`, data "
        f"`{inputs.data}`.",
    ]
    if inputs.is_sandbox:
        sections.append("**The VLMs are the sandbox's small programs: the figures claim nothing about real VLMs.**")
    sections += ["## Results", _results(inputs), "## Calibration", _calibration(inputs), "## Weak groups"]
    sections += [_weak_groups(inputs, limit), "## Selection space", _space(inputs, limit), "## Data"]
    sections += [_data(inputs, limit), "## How to load", _loading(inputs), "## Limits", _limits(inputs)]
    return "\n\n".join(sections) + "\n"


def _results(inputs: CardInputs) -> str:
    """Macro EM beside what is simpler, and said in words which is better."""
    pool, method = method_of(inputs.entry)
    lines, words = [], []
    for split in TEST_SPLITS:
        rows = rows_of(inputs.table, split=split, pool=pool)
        if method not in rows:
            words.append(f"No labelled query in {split}.")
            continue
        shown = [em_text(rows[name]) if name in rows else "" for name in (method, BEST_SINGLE, BEST_PER_TASK, KNN)]
        lines.append([split, *shown, f"{rows[ORACLE]['em']:.4f}" if ORACLE in rows else ""])
        words += [_compared(rows[method], split, other) for other in (BEST_SINGLE, KNN)]
    table = markdown(["EM", "this", BEST_SINGLE, BEST_PER_TASK, KNN, ORACLE], lines)
    held_out = inputs.entry
    picked = "" if held_out["em"] is None else (
        f" On held-out training queries, by which strategy and tau were picked (so a little too good): "
        f"{em_text(held_out)}."
    )  # fmt: skip
    text = f"Share of right choices, macro average over benchmarks, with 95 % intervals, {pool} pool.{picked}"
    return "\n\n".join([text, *([table] if lines else []), " ".join(word for word in words if word)])


def _compared(row: dict[str, Any], split: str, other: str) -> str:
    label = f"minus_{other.replace(' ', '_')}"
    mean = row.get(label)
    if mean is None:
        return ""
    low, high = row[f"{label}_low"], row[f"{label}_high"]
    figures = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    if low > 0:
        return f"{split}: better than {other} by {figures}."
    if high < 0:
        return f"{split}: **worse than {other}** by {figures}."
    return f"{split}: no difference to {other} is shown, {figures}."


def _calibration(inputs: CardInputs) -> str:
    pool, method = method_of(inputs.entry)
    lines = []
    for split in TEST_SPLITS:
        row = rows_of(inputs.table, split=split, pool=pool).get(method)
        if row is not None:
            lines.append([split, *(_figure(row.get(name)) for name in ("ece", "ece_chosen", "log_loss", "brier"))])
    if not lines:
        return "No labelled test query."
    return markdown(["split", "ECE", "ECE of the chosen", "log loss", "Brier"], lines)


def _weak_groups(inputs: CardInputs, limit: int) -> str:
    """Benchmarks on which it is below the best single VLM."""
    pool, method = method_of(inputs.entry)
    label = f"minus_{BEST_SINGLE.replace(' ', '_')}"
    if label not in inputs.table.columns:
        return "Not measured."
    mine = (pl.col("pool") == pool) & (pl.col("method") == method) & (pl.col("benchmark") != MACRO)
    weak = inputs.table.filter(mine & (pl.col(label) < 0)).sort(label)
    if not weak.height:
        return "On no benchmark below the best single VLM."
    lines = [
        f"- {row['split']}, {row['benchmark']}: {row[label]:+.4f} [{row[f'{label}_low']:+.4f}, "
        f"{row[f'{label}_high']:+.4f}] ({row['num_queries']:,.0f} queries)"
        for row in weak.head(limit).iter_rows(named=True)
    ]
    lines += [f"- and {weak.height - limit} more"] if weak.height > limit else []
    return "EM below the best single VLM of the benchmark, with 95 % intervals:\n\n" + "\n".join(lines)


def _space(inputs: CardInputs, limit: int) -> str:
    served = inputs.served
    base = [vlm for vlm, is_base in zip(served.vlms, served.is_base, strict=True) if is_base]
    others = [vlm for vlm in served.vlms if vlm not in base]
    if not others:
        return _named(base, limit)
    return f"Base router: {_named(base, limit)}\n\nNew router: {_named(others, limit)}"


def _named(names: Sequence[str], limit: int) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f", and {rest} more (tag `arms.vlms`)" if rest > 0 else "")


def _data(inputs: CardInputs, limit: int) -> str:
    wide = inputs.counts.pivot("split", index="benchmark", values="len").sort("benchmark")
    lines = [
        [row["benchmark"], *(f"{row.get(split) or 0:,}" for split in SPLITS)]
        for row in wide.head(limit).iter_rows(named=True)
    ]
    total = dict(inputs.counts.group_by("split").agg(pl.col("len").sum()).iter_rows())
    name = f"{wide.height} benchmarks" if wide.height > limit else "all"
    lines.append([name, *(f"{total.get(split, 0):,}" for split in SPLITS)])
    base, new = inputs.num_labels
    text = f"Queries, with {base:,} labels of base VLMs and {new:,} of new ones."
    return text + "\n\n" + markdown(["benchmark", *SPLITS], lines)


def _loading(inputs: CardInputs) -> str:
    return "\n".join(
        [
            "Ours, hashes checked and no code of the version run, from the checkout (`uv sync --all-extras`):",
            "",
            "```",
            'python -m tasks.register load champion --question "How many?" --image picture.png',
            "```",
            "",
            "MLflow's, with the checkout installed (`pip install '.[minilm,efficientnet,registry]'`):",
            "",
            "```python",
            f'model = mlflow.pyfunc.load_model("models:/{inputs.model}@champion")',
            'model.predict(pandas.DataFrame({"question": ["How many?"], "image_path": ["picture.png"]}))',
            "```",
        ]
    )


def _limits(inputs: CardInputs) -> str:
    encoders = sorted(
        {name for r in inputs.served.routers for name in (*r.config.question_encoders, *r.config.picture_encoders)}
    )
    return (
        f"Knows the VLMs above and no other. Encoders: {', '.join(encoders)}. Confidences are calibrated on queries "
        "like the training ones; on other kinds of questions (test_ood) they mean less. A label says that the answer "
        "matched, not why."
    )


def _figure(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4f}"
