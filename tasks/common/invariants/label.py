"""What must hold of the labels, both pools together. `tasks.common.gates` says how it is held."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import polars as pl

from arms_model.errors import ConfigError
from arms_model.settings import nearest
from tasks.common.gates import Check, Invariant, View, is_true, none_of_them, parts, table_view, unique, within

KEY = ["query_id", "vlm"]
UNIQUE = Invariant(
    name="label_pair_unique",
    sentence="An answer has one label.",
    remedy="Report it: stage label gave two to one answer.",
)
SOURCE = Invariant(
    name="label_has_a_source",
    sentence="Every label rests on an output without an error, or on a right or wrong that was imported.",
    remedy="Run stage collect again; if it stays, report it.",
)
ERROR = Invariant(
    name="label_error_not_correct",
    sentence="No answer that ended in an error counts as correct.",
    remedy="Correct the source of the answers: it has an error and a verdict in one row.",
)
EVERY = Invariant(
    name="label_every_answer",
    sentence="Every collected answer without an error has a label.",
    remedy=(
        "Each needs an output, an imported right or wrong, or an error; correct the source and run `collect` again, or "
        "drop them."
    ),
)
SHARE = Invariant(
    name="label_positive_share",
    sentence="Every VLM is right often enough, and wrong often enough, to be believable.",
    severity="warn",
    bounds="`gates.label.positive_share`",
    remedy=(
        "Look at some of its outputs: a prompt or a way of reading answers that does not fit shows like this. A VLM "
        "that is really so weak or strong is declared under gates.label.declared."
    ),
)
INVARIANTS = (UNIQUE, SOURCE, ERROR, EVERY, SHARE)


@dataclass(frozen=True, kw_only=True)
class PositiveShare:
    """Bounds of a VLM's share of right answers."""

    min: float = 0.02
    max: float = 0.98

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.max <= 1:
            raise ValueError(f"min and max must be 0 <= min <= max <= 1, not {self.min} and {self.max}")


@dataclass(frozen=True, kw_only=True)
class LabelGate:
    """Section `gates.label`.

    Attributes:
        positive_share: bounds of a VLM's share of right answers.
        declared: VLMs that are known to lie outside.
    """

    positive_share: PositiveShare = field(default_factory=PositiveShare)
    declared: list[str] = field(default_factory=list)


def checks(labels: Mapping[str, pl.DataFrame], answers: Mapping[str, pl.DataFrame], *, gate: LabelGate) -> list[Check]:
    """The checks of stage `label`.

    Args:
        labels: table `label` by pool.
        answers: table `collect` by pool.
        gate: section `gates.label`.

    Raises:
        ConfigError: `declared` names a VLM that has no answers.
    """
    labelled = pl.concat([table.select(*KEY, "correct") for table in labels.values()])
    collected = pl.concat([table.select(*KEY, "output", "imported_correct", "error") for table in answers.values()])
    view = View(name="label", key=tuple(KEY), shards=lambda: _with_sources(labelled, collected))
    return [
        unique(UNIQUE, labelled, key=KEY),
        Check(invariant=SOURCE, rule=is_true("has_source"), view=view),
        Check(invariant=ERROR, rule=none_of_them("num_wrongly_correct"), view=view),
        _every_answer(labelled, collected),
        _positive_share(labelled, set(collected["vlm"].unique()), gate),
    ]


def _with_sources(labelled: pl.DataFrame, collected: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Labels with what their answers say of them."""
    is_error, imported = pl.col("error").is_not_null(), pl.col("imported_correct").is_not_null()
    sources = [
        is_error.alias("is_error"),
        (imported | (pl.col("output").is_not_null() & ~is_error)).alias("has_source"),
    ]
    for some_labels, some_answers in parts(labelled, collected, by="query_id"):
        joined = some_labels.join(some_answers.select(*KEY, *sources), on=KEY, how="left", maintain_order="left")
        yield joined.with_columns(
            pl.col("has_source").fill_null(value=False),
            (pl.col("correct") & pl.col("is_error").fill_null(value=False)).cast(pl.Int8).alias("num_wrongly_correct"),
        )


def _every_answer(labelled: pl.DataFrame, collected: pl.DataFrame) -> Check:
    def lacking() -> Iterator[pl.DataFrame]:
        for some_labels, some_answers in parts(labelled, collected, by="query_id"):
            answered = some_answers.filter(pl.col("error").is_null()).select(KEY)
            yield answered.join(some_labels, on=KEY, how="anti")

    answered = collected.lazy().filter(pl.col("error").is_null()).group_by("vlm").len("num_answers").collect()
    num_lacking = pl.concat([rows.select("vlm") for rows in lacking()]).group_by("vlm").len("num_unlabelled")
    summary = answered.join(num_lacking, on="vlm", how="left").with_columns(pl.col("num_unlabelled").fill_null(0))
    return Check(
        invariant=EVERY,
        rule=none_of_them("num_unlabelled"),
        view=table_view("answers and labels of each VLM", summary.sort("vlm"), key=["vlm"]),
        checked=int(summary["num_answers"].sum()),
        rows=lambda: pl.concat(list(lacking())).sort(KEY),
        key=tuple(KEY),
    )


def _positive_share(labelled: pl.DataFrame, vlms: set[str], gate: LabelGate) -> Check:
    for name in gate.declared:
        if name not in vlms:
            raise ConfigError(f"gates.label.declared: no answer is of a VLM '{name}'; {nearest(name, vlms)}")
    bounds = gate.positive_share
    shares = labelled.group_by("vlm").agg(pl.len().alias("num_labels"), pl.col("correct").mean().alias("share"))
    shares = shares.sort("vlm")
    is_declared = pl.col("vlm").is_in(gate.declared) & ~pl.col("share").is_between(bounds.min, bounds.max)
    low, high = (shares["share"].min(), shares["share"].max()) if shares.height else (None, None)
    return Check(
        invariant=SHARE,
        rule=within("share", least=bounds.min, most=bounds.max),
        view=table_view("share of right answers", shares.filter(~is_declared), key=["vlm"]),
        checked=shares.height,
        declared=shares.filter(is_declared).height,
        observed=None if low is None else {"min": round(float(low), 6), "max": round(float(high), 6)},  # type: ignore[arg-type]
    )
