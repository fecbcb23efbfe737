"""What asking a VLM should cost and how long it should take: from its kept answers, else by rules of thumb."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from arms_model.errors import ConfigError
from arms_model.progress import clock
from tasks.common.asked import first_asked
from tasks.common.endpoint.answers import AnswerStore, Spent
from tasks.common.endpoint.asking import api_key
from tasks.common.endpoint.collection import (
    Questions,
    Standing,
    answered_by_base,
    standing,
    to_ask_once,
)
from tasks.common.endpoint.prices import expected_usd, worst_case_usd
from tasks.common.endpoint.requests import Request
from tasks.common.vlms import Vlm

_ASSUMED_LATENCY_S = 2.0  # where no answer was kept yet


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What asking one VLM would mean.

    Attributes:
        vlm: its name.
        num_questions: all that it is asked.
        num_known: those with an answer.
        num_to_ask: those that would be asked; not what another block asks the same model.
        num_failed: of those to ask, those that were asked before and ended in an error.
        is_at_most: whether the numbers of questions are upper bounds.
        expected_usd: of those to ask; None where no price is known, or answers may have any length and none came yet.
        worst_usd: likewise, every answer as long as max_tokens allows, each asked once; None without that limit, too.
        spent_usd: what the known answers cost.
        expected_s: time for those to ask, s.
        is_assumed: whether the time rests on an assumed latency.
        warning: what would stop its asking; None where nothing is foreseen.
    """

    vlm: str
    num_questions: int
    num_known: int
    num_to_ask: int
    num_failed: int
    is_at_most: bool
    expected_usd: float | None
    worst_usd: float | None
    spent_usd: float
    expected_s: float
    is_assumed: bool
    warning: str | None

    def cells(self) -> list[str]:
        """A row of the table that `--dry-run` prints."""
        bound = "≤ " if self.is_at_most else ""
        return [
            self.vlm,
            f"{bound}{self.num_questions}",
            str(self.num_known),
            f"{bound}{self.num_to_ask}",
            "not known" if self.expected_usd is None else f"{self.expected_usd:.4f}",
            "not known" if self.worst_usd is None else f"{self.worst_usd:.4f}",
            f"{self.spent_usd:.4f}",
            clock(self.expected_s) + (" *" if self.is_assumed and self.num_to_ask else ""),
        ]


def forecast(standing: Standing, to_ask: Sequence[Request], store: AnswerStore, *, is_at_most: bool) -> Forecast:
    """What asking the open questions of one VLM would mean.

    Args:
        standing: how far it is answered.
        to_ask: the open questions that no other VLM's block asks as well.
        store: its kept answers give the means of latency and tokens.
        is_at_most: whether `standing` holds more than will be asked.
    """
    vlm = standing.vlm
    endpoint = vlm.endpoint
    assert endpoint is not None, f"{vlm.name} has no endpoint"  # noqa: S101 - refused before
    latency_s, prompt_tokens, completion_tokens = store.mean_of(endpoint=endpoint.name, model=endpoint.model)
    spent = store.spent_usd(standing.keys)
    expected = sum(
        expected_usd(vlm, request, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens) or 0.0
        for request in to_ask
    )
    is_bounded = endpoint.max_tokens is not None or not vlm.usd_per_mtok_out
    seconds = len(to_ask) * (_ASSUMED_LATENCY_S if latency_s is None else latency_s) / endpoint.concurrency
    if endpoint.requests_per_minute is not None:
        seconds = max(seconds, len(to_ask) * 60 / endpoint.requests_per_minute)
    return Forecast(
        vlm=vlm.name,
        num_questions=len(standing.requests),
        num_known=len(standing.requests) - len(standing.pending),
        num_to_ask=len(to_ask),
        num_failed=len(store.attempts({request.key for request in to_ask})),
        is_at_most=is_at_most,
        expected_usd=expected if vlm.is_priced and (is_bounded or completion_tokens is not None) else None,
        worst_usd=sum(worst_case_usd(vlm, request) for request in to_ask) if vlm.is_priced and is_bounded else None,
        spent_usd=spent,
        expected_s=seconds,
        is_assumed=latency_s is None,
        warning=_warning(vlm, bool(to_ask), spent_and_expected=spent + expected),
    )


def _warning(vlm: Vlm, is_asked: bool, *, spent_and_expected: float) -> str | None:
    if not is_asked or vlm.endpoint is None:
        return None
    try:
        api_key(vlm)
    except ConfigError as error:
        return str(error)
    budget = vlm.endpoint.budget_usd
    if budget is not None and spent_and_expected > budget:
        return (
            f"it would stop midway: endpoint.budget_usd is ${budget:.4f}, spent and expected ${spent_and_expected:.4f}"
        )
    return None


def forecasts(
    vlms: Sequence[Vlm], questions: Questions, *, queries: pl.DataFrame, store: AnswerStore
) -> list[Forecast]:
    """What asking all VLMs would mean; where the base pool is not known yet, a sample of it is at most so large.

    Args:
        vlms: the VLMs; each has an endpoint.
        questions: made of `queries`.
        queries: table `queries`.
        store: the answer store.
    """
    first = first_asked(vlms)
    known = [standing(vlm, questions.of(vlm, answered_by_base=set()), store) for vlm in first]
    is_base_known = not any(each.pending for each in known if each.vlm.pool == "base")
    if later := [vlm for vlm in vlms if vlm not in first]:
        askable = answered_by_base(known, queries, store) if is_base_known else set(queries["query_id"])
        known += [standing(vlm, questions.of(vlm, answered_by_base=askable), store) for vlm in later]
    return [
        forecast(each, to_ask, store, is_at_most=each.vlm in later and not is_base_known)
        for each, to_ask in to_ask_once(known)
    ]


def as_document(forecasts: Sequence[Forecast], *, budget_usd: float | None) -> dict[str, Any]:
    """The forecasts for programs: a JSON object; null where a cost is not known.

    Args:
        forecasts: of all VLMs; none where nobody would be asked.
        budget_usd: what the answers of all VLMs may cost together; None for no limit.
    """
    names = (
        "vlm", "num_questions", "num_known", "num_to_ask", "num_failed", "is_at_most", "expected_usd", "worst_usd",
        "spent_usd", "expected_s", "warning",
    )  # fmt: skip
    asked = [each for each in forecasts if each.num_to_ask]
    total = {
        "num_to_ask": sum(each.num_to_ask for each in asked),
        "expected_usd": _sum_of_known([each.expected_usd for each in asked]),
        "worst_usd": _sum_of_known([each.worst_usd for each in asked]),
    }
    rows = [{name: getattr(each, name) for name in names} for each in forecasts]
    return {"vlms": rows, "total": total, "budget_usd": budget_usd}


def _sum_of_known(amounts: Sequence[float | None]) -> float | None:
    """None where one is not known: then the sum is not known either."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def show_spent(spent: Sequence[Spent], *, failed_usd: float) -> None:
    """Print what the kept answers cost, by model, and the sum.

    Args:
        spent: by model.
        failed_usd: of failed attempts whose question has no answer.
    """
    table = Table("endpoint", "model", "answers", "spent $", box=SIMPLE)
    for column in table.columns[2:]:
        column.justify = "right"
    for each in spent:
        table.add_row(each.endpoint, each.model, str(each.num_answers), f"{each.spent_usd:.4f}")
    terminal = Console()
    terminal.width = max(terminal.width, 110)
    terminal.print(table)
    total = sum(each.spent_usd for each in spent) + failed_usd
    print(f"${total:.4f} spent in all, ${failed_usd:.4f} of it on failed attempts at questions without an answer")


def show(forecasts: Sequence[Forecast], *, budget_usd: float | None) -> None:
    """Print the forecasts as a table, and their sums."""
    table = Table("VLM", "questions", "known", "to ask", "expected $", "at most $", "spent $", "time", box=SIMPLE)
    for column in table.columns:
        column.justify, column.no_wrap = "left" if column.header == "VLM" else "right", True
    for each in forecasts:
        table.add_row(*each.cells())
    terminal = Console()
    terminal.width = max(terminal.width, 110)  # names are not cut where the output goes into a file
    terminal.print(table)
    num_to_ask, spent = sum(each.num_to_ask for each in forecasts), sum(each.spent_usd for each in forecasts)
    expected, worst = sum(each.expected_usd or 0 for each in forecasts), sum(each.worst_usd or 0 for each in forecasts)
    longest = max((each.expected_s for each in forecasts), default=0.0)
    budget = "no budget is set" if budget_usd is None else f"collect.budget_usd is ${budget_usd:.2f}"
    print(f"{num_to_ask} questions would be asked: ${expected:.2f} expected, ${worst:.2f} at most; ${spent:.2f} spent")
    print(f"already; {budget}. VLMs are asked side by side: about {clock(longest)}. Nothing was asked.")
    for each in forecasts:
        if each.warning is not None:
            print(f"{each.vlm}: {each.warning}")
    if budget_usd is not None and spent + expected > budget_usd:
        print(f"It would stop midway: collect.budget_usd is below what is spent and expected, ${spent + expected:.4f}.")
    if any(each.num_known + each.num_to_ask < each.num_questions for each in forecasts):
        print("Questions that are the same to one model, or that two blocks ask it, are asked once.")
    if any(each.is_assumed and each.num_to_ask for each in forecasts):
        print(f"* no answer is known yet: {_ASSUMED_LATENCY_S:g} s each and answers half of max_tokens long assumed.")
